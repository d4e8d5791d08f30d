"""Several processes train as one: real processes that talk over loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import psutil
import pytest

from stages.core.cli import build_parser, read_options
from stages.core.compute import load_arrays
from stages.core.cpu.blocks import count_cores
from stages.core.errors import StageError
from stages.core.preset import PRESETS
from stages.core.records import LossPoint, read_lines
from stages.train.__main__ import main
from stages.train.hosts import describe_hosts, launch_there
from stages.train.launch import Launch, _free_ports, choose_launch, read_place
from tests.pipeline import Pipeline, start_stage
from tests.tiny.test_train import resumed_step, stop_after, train_arguments

SHORT = {"iters": 6, "batch_size": 3, "save_every": 2, "eval_every": 3, "num_layers": 1}


def read_losses(folder: Path) -> list[float]:
    return [point.loss for point in read_lines(folder / "log.jsonl", LossPoint)]


def wait_for(run: subprocess.Popen[str], checkpoint: Path) -> None:
    give_up = time.monotonic() + 120
    while not (checkpoint / "state.json").is_file():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.005)


def wait_for_end(place: Path) -> None:
    """Until the leader, which holds the lock as long as it lives, has ended."""
    give_up = time.monotonic() + 60
    while list(place.glob(".run.lock")):
        assert time.monotonic() < give_up, "the ranks go on without their launcher"
        time.sleep(0.05)


def find_ranks(launcher: int) -> dict[str, int]:
    """The processes of the ranks that a launcher here has started, by their rank."""
    children = psutil.Process(launcher).children()
    return {child.environ()["MLX_RANK"]: child.pid for child in children}


@pytest.mark.parametrize("name", ["qwen2_run", "qwen3_moe_run"])
def test_two_ranks_have_the_losses_of_one(
    name: str, request: pytest.FixtureRequest, artifacts: Path, tmp_path: Path
) -> None:
    run: Pipeline = request.getfixturevalue(name)
    for ranks in ("1", "2"):
        command = [*train_arguments(run, tmp_path / ranks, **SHORT), "--ranks", ranks]
        process = start_stage("train", command, artifacts)
        out, error = process.communicate(timeout=240)
        assert (process.returncode, error) == (0, "")
        assert out.count("train: done") == 1
    assert read_losses(tmp_path / "2") == pytest.approx(read_losses(tmp_path / "1"), rel=1e-4)
    one, two = (load_arrays(tmp_path / r / "adapters.safetensors") for r in "12")
    for key, array in one.items():
        assert float(mx.abs(array - two[key]).max()) < 1e-3 * float(mx.abs(array).max())


def test_a_run_of_two_ranks_that_was_stopped_goes_on(
    qwen2_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    """To the same bytes, with dropout and with batches (the last of an epoch) too small for both."""
    long = SHORT | {"iters": 12, "dropout": 0.3}
    whole = start_stage(
        "train", [*train_arguments(qwen2_run, tmp_path / "whole", **long), "--ranks", "2"], artifacts
    )
    whole.communicate(timeout=240)
    assert whole.returncode == 0
    target, partial = tmp_path / "run", tmp_path / ".run.partial"
    command = train_arguments(qwen2_run, target, **long)
    two = start_stage("train", [*command, "--ranks", "2"], artifacts)
    code, out, error = stop_after(two, partial / "checkpoints" / "0000006", signal.SIGTERM)
    assert code == 130
    assert error.count("train: interrupted") == 1
    again = start_stage("train", [*command, "--ranks", "2"], artifacts)
    out, error = again.communicate(timeout=240)
    assert (again.returncode, error) == (0, "")
    assert resumed_step(out) >= 6
    assert read_losses(target) == read_losses(tmp_path / "whole")
    same = [(place / "adapters.safetensors").read_bytes() for place in (target, tmp_path / "whole")]
    assert same[0] == same[1]


@pytest.fixture(scope="module")
def whole_losses(
    qwen2_run: Pipeline, artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """Those of one process that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = start_stage("train", train_arguments(qwen2_run, folder, **SHORT), artifacts)
    run.communicate(timeout=240)
    return read_losses(folder)


@pytest.mark.parametrize("ranks", ["1 then 2", "2 then 1"])
def test_a_run_goes_on_with_another_number_of_ranks(
    ranks: str, qwen2_run: Pipeline, whole_losses: list[float], artifacts: Path, tmp_path: Path
) -> None:
    """To the same losses; the first run loses a rank, or itself, to a kill that nothing can answer."""
    first, second = ranks.split(" then ")
    command = train_arguments(qwen2_run, tmp_path / "run", **SHORT)
    run = start_stage("train", [*command, "--ranks", first], artifacts)
    wait_for(run, tmp_path / ".run.partial" / "checkpoints" / "0000002")
    victim = run.pid if first == "1" else find_ranks(run.pid)["1"]
    os.kill(victim, signal.SIGKILL)
    out, error = run.communicate(timeout=120)
    assert run.returncode == (-signal.SIGKILL if first == "1" else 1)
    assert first == "1" or "another process of this run has ended; finished work is kept" in error
    again = start_stage("train", [*command, "--ranks", second], artifacts)
    out, error = again.communicate(timeout=240)
    assert (again.returncode, error) == (0, "")
    assert resumed_step(out) >= 2
    assert read_losses(tmp_path / "run") == pytest.approx(whole_losses, rel=1e-4)


def test_the_best_adapter_of_two_ranks(qwen2_run: Pipeline, artifacts: Path, tmp_path: Path) -> None:
    command = train_arguments(qwen2_run, tmp_path / "run", **SHORT | {"choose_by": "calls"})
    process = start_stage("train", [*command, "--ranks", "2"], artifacts)
    _, error = process.communicate(timeout=240)
    assert (process.returncode, error) == (0, "")
    chosen, best = (
        load_arrays(tmp_path / "run" / name) for name in ("adapters.safetensors", "best/adapters.safetensors")
    )
    assert all(mx.array_equal(chosen[name], best[name]) for name in best)


def test_machines_are_started_by_mlx_launch(qwen2_run: Pipeline, artifacts: Path, tmp_path: Path) -> None:
    """Two addresses of this machine need no ssh."""
    command = [*train_arguments(qwen2_run, tmp_path / "run", **SHORT), "--hosts", "127.0.0.1,127.0.0.1"]
    process = start_stage("train", command, artifacts)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert out.count("train: done") == 1
    assert (tmp_path / "run" / "manifest.json").is_file()
    wrong = [*train_arguments(qwen2_run, tmp_path / "out", batch_size=14), "--hosts", "127.0.0.1,127.0.0.1"]
    process = start_stage("train", wrong, artifacts)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "batch size 14 is larger than the 13 rows" in error


def test_machines_that_are_told_to_stop_save_their_work(
    qwen2_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    """By a signal, and by the end of the process that started them, which they cannot hear."""
    command = train_arguments(qwen2_run, tmp_path / "run", **SHORT | {"iters": 500, "save_every": 100})
    hosts = ["--hosts", "127.0.0.1,127.0.0.1"]
    for how, code, resumed in ((signal.SIGTERM, 130, 0), (signal.SIGKILL, -signal.SIGKILL, 1)):
        run = start_stage("train", [*command, *hosts], artifacts)
        assert run.stdout is not None
        while "step 3: validation loss" not in (line := run.stdout.readline()) and not resumed:
            assert line, "it ended before"
        if resumed:
            while "goes on from the checkpoint of step" not in (line := run.stdout.readline()):
                assert line, "it ended before"
        run.send_signal(how)
        _, error = run.communicate(timeout=60)
        assert run.returncode == code, error
        wait_for_end(tmp_path)
        assert len(list((tmp_path / ".run.partial" / "checkpoints").glob("[0-9]*"))) == 1 + resumed


def test_hosts_have_addresses_and_get_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "/some/where")
    monkeypatch.setenv("FAIR_RETEST_API_KEY", "secret")
    found = describe_hosts(["localhost", "127.0.0.1"], "ring")
    assert found["hosts"] == [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2
    assert "FAIR_RETEST_ARTIFACTS=/some/where" in found["envs"]
    assert "secret" not in str(found)
    assert describe_hosts(["me@192.0.2.1"], "ring")["hosts"] == [
        {"ssh": "me@192.0.2.1", "ips": ["192.0.2.1"]}
    ]
    for names, reason in (
        (["no-such-host.invalid"], "'no-such-host.invalid' has no address that this machine can find"),
        (["192.0.2.1", "localhost"], "localhost is 127.0.0.1 here, where the other hosts cannot reach it"),
        (["192.0.2.1", ""], "name each host, as in"),
    ):
        with pytest.raises(StageError, match=rf"^--hosts: {reason}"):
            describe_hosts(names, "ring")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StageError, match=r"^--backend mpi: there is no mpirun on this machine"):
        describe_hosts(["a"], "mpi")


def test_the_exit_code_of_mpirun_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of this name stands for Open MPI's program: it runs one rank, as that would."""
    program = tmp_path / "mpirun"
    program.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n', "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for code in (0, 2):
        assert launch_there(["a", "b"], "mpi", [sys.executable, "-c", f"raise SystemExit({code})"]) == code


def test_hosts_that_differ_are_refused(qwen2_run: Pipeline, artifacts: Path, tmp_path: Path) -> None:
    """Two ranks that are started as two hosts would start them, the second with other rows."""
    other = tmp_path / "other"
    shutil.copytree(qwen2_run.folder("convert_data"), other)
    manifest = json.loads((other / "manifest.json").read_text("utf-8"))
    (other / "manifest.json").write_text(json.dumps(manifest | {"content": "0" * 64}), "utf-8")
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(2)]), "utf-8")
    command = train_arguments(qwen2_run, tmp_path / "run", **SHORT)
    ranks = [
        start_stage("train", arguments, artifacts, MLX_RANK=str(rank), MLX_HOSTFILE=str(hosts))
        for rank, arguments in enumerate((command, [*command, "--data", str(other)]))
    ]
    for rank in ranks:
        _, error = rank.communicate(timeout=120)
        assert rank.returncode == 2
        assert error.startswith("train: the hosts differ in: data; give all of them the same")
    assert not (tmp_path / ".run.partial").exists()


def test_a_mistake_is_one_line_whatever_the_number_of_ranks(
    qwen2_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    command = [*train_arguments(qwen2_run, tmp_path / "out", batch_size=14), "--ranks", "2"]
    process = start_stage("train", command, artifacts)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error == "train: batch size 14 is larger than the 13 rows: lower --batch-size\n"


def test_ranks_stop_when_their_launcher_is_killed(
    qwen2_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    partial = tmp_path / ".run.partial"
    command = train_arguments(qwen2_run, tmp_path / "run", **SHORT | {"iters": 500, "ranks": 2})
    launcher = start_stage("train", command, artifacts)
    stop_after(launcher, partial / "checkpoints" / "0000002", signal.SIGKILL)
    wait_for_end(tmp_path)
    assert len(list((partial / "checkpoints").glob("[0-9]*"))) == 2, "and save what they did"


def choose(*words: str, on_cpu: bool = True) -> Launch | None:
    place, rest = read_place(words)
    options = read_options(build_parser("train", "", ("train",)).parse_args(rest))
    return choose_launch(options, place, on_cpu=on_cpu)


def test_launch_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text((PRESETS / "smol.toml").read_text("utf-8").replace("ranks = 1", "ranks = 2"), "utf-8")
    assert choose("--model", "7b") is None
    assert choose("--model", "7b", "--ranks", "2") == Launch(2, None, "ring")
    assert choose("--model", "7b", "--hosts", "a,b") == Launch(1, "a,b", "ring")
    assert choose("--ranks", "1") is None
    assert choose("--model", str(preset)) == (Launch(2, None, "ring") if count_cores() > 1 else None)
    assert choose("--model", str(preset), on_cpu=False) is None
    assert choose("--ranks", "2", on_cpu=False) == Launch(2, None, "ring")
    with pytest.raises(StageError, match="--ranks 0: use 1 or more"):
        choose("--ranks", "0")
    with pytest.raises(StageError, match="use one of them"):
        choose("--ranks", "2", "--hosts", "a")
    assert main(["--ranks", "two"]) == 2
    assert "'two' is not a whole number" in capsys.readouterr().err
