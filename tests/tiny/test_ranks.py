"""Several processes train as one: real processes that talk over loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
import pytest

from stages.core.artifact import read_manifest
from stages.core.blas import count_cpus
from stages.core.cli import build_parser, read_options
from stages.core.compute import load_arrays
from stages.core.cpu.blocks import THREADS, count_cores
from stages.core.errors import StageError
from stages.core.preset import PRESETS
from stages.core.records import LossPoint, read_lines
from stages.train.__main__ import main
from stages.train.hosts import describe_hosts, launch_there
from stages.train.launch import Launch, _free_ports, choose_launch, read_place, warn_of_crowd
from stages.train.recipe import make_recipe
from tests.pipeline import Pipeline, run_work, start_stage
from tests.training import resumed_step, stop_after, train_arguments
from tests.waiting import finish, wait_for, wait_for_line, wait_until

SHORT = {"iters": 6, "batch_size": 3, "save_every": 2, "eval_every": 3, "num_layers": 1}


def read_losses(folder: Path) -> list[float]:
    return [point.loss for point in read_lines(folder / "log.jsonl", LossPoint)]


def wait_for_end(place: Path) -> None:
    """Until the leader, which holds the lock as long as it lives, has ended."""
    wait_until(lambda: not (place / ".run.lock").exists(), "the ranks go on without their launcher")


def find_ranks(launcher: int) -> dict[str, int]:
    """The processes of the ranks that a launcher here has started, by their rank."""
    children = psutil.Process(launcher).children()
    return {child.environ()["MLX_RANK"]: child.pid for child in children}


def train_alone(run: Pipeline, folder: Path, **overrides: Any) -> Path:
    """A run in this process, which is never stopped."""
    options = run.options("train", **overrides)
    return run_work("train", replace(options, out=folder / "alone")).folder


@pytest.mark.parametrize("name", ["qwen2_run", "qwen3_moe_run"])
def test_two_ranks_have_the_losses_of_one(
    name: str, request: pytest.FixtureRequest, artifacts: Path, tmp_path: Path
) -> None:
    run: Pipeline = request.getfixturevalue(name)
    command = [*train_arguments(run, tmp_path / "two", **SHORT), "--ranks", "2"]
    code, out, error = finish(start_stage("train", command, artifacts))
    assert (code, error) == (0, "")
    assert out.count("train: done") == 1
    alone = train_alone(run, tmp_path, **SHORT)
    assert read_losses(tmp_path / "two") == pytest.approx(read_losses(alone), rel=1e-4)
    one, two = (load_arrays(place / "adapters.safetensors") for place in (alone, tmp_path / "two"))
    for key, array in one.items():
        assert float(mx.abs(array - two[key]).max()) < 1e-3 * float(mx.abs(array).max())


def test_two_ranks_have_the_losses_of_one_behind_several_beginnings(
    llama_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    data, kept = tmp_path / "data", llama_run.folder("convert_data")
    shutil.copytree(kept, data)
    for split in ("train", "valid"):
        lines = (kept / f"{split}.jsonl").read_text("utf-8").splitlines()
        rows = [
            begin_with(json.loads(line), f"You know project {n % 2}. " * 30) for n, line in enumerate(lines)
        ]
        (data / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    setup = SHORT | {"batch_size": 8, "iters": 3}
    command = [*train_arguments(llama_run, tmp_path / "two", **setup), "--data", str(data)]
    code, out, error = finish(start_stage("train", [*command, "--ranks", "2"], artifacts))
    assert (code, error) == (0, "")
    assert re.search(r"\d rows begin with the same \d{3} tokens, \d with \d{3}; ", out)
    options = replace(llama_run.options("train", **setup), data=data, out=tmp_path / "alone")
    alone = run_work("train", options).folder
    assert read_losses(tmp_path / "two") == pytest.approx(read_losses(alone), rel=1e-4)


def begin_with(row: dict[str, Any], system: str) -> dict[str, Any]:
    """The row behind another system turn."""
    spoken = [message for message in row["messages"] if message["role"] != "system"]
    return row | {"messages": [{"role": "system", "content": system}, *spoken]}


def test_a_run_of_two_ranks_that_was_stopped_goes_on(
    llama_run: Pipeline, artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the same bytes, with dropout and with batches (the last of an epoch) too small for both.

    With dropout one process would draw other masks, so it may not go on.
    """
    long = SHORT | {"iters": 12, "dropout": 0.3, "choose_by": "calls"}
    whole = start_stage(
        "train", [*train_arguments(llama_run, tmp_path / "whole", **long), "--ranks", "2"], artifacts
    )
    assert finish(whole)[0] == 0
    target, partial = tmp_path / "run", tmp_path / ".run.partial"
    command = train_arguments(llama_run, target, **long)
    two = start_stage("train", [*command, "--ranks", "2"], artifacts)
    code, out, error = stop_after(two, partial / "checkpoints" / "0000006", signal.SIGTERM)
    assert code == 130
    assert error.count("train: interrupted") == 1
    assert main([*command, "--check"]) == 2
    assert "train: an unfinished run with ranks=2 (now 1) is in " in capsys.readouterr().err
    code, out, error = finish(start_stage("train", [*command, "--ranks", "2"], artifacts))
    assert (code, error) == (0, "")
    assert resumed_step(out) >= 6
    assert read_losses(target) == read_losses(tmp_path / "whole")
    chosen = (target / "adapters.safetensors").read_bytes()
    assert chosen == (tmp_path / "whole" / "adapters.safetensors").read_bytes()
    best = f"{read_manifest(target).facts['best_step']:07d}"  # type: ignore[union-attr]
    assert chosen == (target / "checkpoints" / best / "adapters.safetensors").read_bytes()
    assert main([*command, "--check"]) == 2
    assert "run was made with ranks=2 (now 1): --force" in capsys.readouterr().err
    assert main([*command, "--ranks", "2", "--check"]) == 0


def test_a_run_goes_on_with_another_number_of_ranks(
    llama_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    """Two ranks, one, and two, to the losses of one; each run but the last is killed without a word."""
    long = SHORT | {"iters": 12}
    command = train_arguments(llama_run, tmp_path / "run", **long)
    for ranks, step in (("2", 2), ("1", 4)):
        run = start_stage("train", [*command, "--ranks", ranks], artifacts)
        wait_for(tmp_path / ".run.partial" / "checkpoints" / f"{step:07d}" / "state.json", run)
        os.kill(run.pid if ranks == "1" else find_ranks(run.pid)["1"], signal.SIGKILL)
        code, out, error = finish(run)
        assert code == (-signal.SIGKILL if ranks == "1" else 1)
        assert ranks == "1" or "another process of this run has ended; finished work is kept" in error
        assert step == 2 or resumed_step(out) >= 2
    code, out, error = finish(start_stage("train", [*command, "--ranks", "2"], artifacts))
    assert (code, error) == (0, "")
    assert resumed_step(out) >= 4
    alone = train_alone(llama_run, tmp_path, **long)
    assert read_losses(tmp_path / "run") == pytest.approx(read_losses(alone), rel=1e-4)


def test_machines_are_started_by_mlx_launch(llama_run: Pipeline, artifacts: Path, tmp_path: Path) -> None:
    """Two addresses of this machine need no ssh."""
    command = [*train_arguments(llama_run, tmp_path / "run", **SHORT), "--hosts", "127.0.0.1,127.0.0.1"]
    code, out, _ = finish(start_stage("train", command, artifacts))
    assert code == 0
    assert out.count("train: done") == 1
    assert (tmp_path / "run" / "manifest.json").is_file()


def test_machines_that_are_told_to_stop_save_their_work(
    llama_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    """By a signal, and by the end of the process that started them, which they cannot hear."""
    command = train_arguments(llama_run, tmp_path / "run", **SHORT | {"iters": 500, "save_every": 100})
    hosts = ["--hosts", "127.0.0.1,127.0.0.1"]
    for how, code, resumed in ((signal.SIGTERM, 130, 0), (signal.SIGKILL, -signal.SIGKILL, 1)):
        run = start_stage("train", [*command, *hosts], artifacts)
        if resumed:
            wait_for_line(run, "goes on from the checkpoint of step")
        wait_for_line(run, ": validation loss")  # it takes steps, and would save them
        if not resumed:
            wait_for_line(run, "step 3: validation loss")
        run.send_signal(how)
        ended, _, error = finish(run)
        assert ended == code, error
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


@pytest.mark.parametrize("backend", ["ring", "mpi"])
def test_how_a_rank_there_ended_counts_here(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A script of this name stands for Open MPI's program: it runs one rank, as that would."""
    program = tmp_path / "mpirun"
    program.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n', "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for code in (0, 2):
        words = f"import sys; sys.stderr.write('ended with {code}\\n'); sys.exit({code})"
        assert launch_there(["127.0.0.1"] * 2, backend, [sys.executable, "-c", words]) == code
        assert f"ended with {code}\n" in capfd.readouterr().err


def test_hosts_that_differ_are_refused(llama_run: Pipeline, artifacts: Path, tmp_path: Path) -> None:
    """Two ranks that are started as two hosts would start them, the second with other rows."""
    other = tmp_path / "other"
    shutil.copytree(llama_run.folder("convert_data"), other)
    (other / "card.md").write_text("Other rows.\n", "utf-8")
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(2)]), "utf-8")
    command = train_arguments(llama_run, tmp_path / "run", **SHORT)
    ranks = [
        start_stage("train", arguments, artifacts, MLX_RANK=str(rank), MLX_HOSTFILE=str(hosts))
        for rank, arguments in enumerate((command, [*command, "--data", str(other)]))
    ]
    for rank in ranks:
        code, _, error = finish(rank)
        assert code == 2
        assert error.startswith("train: the hosts differ in: data; give all of them the same")
    assert not (tmp_path / ".run.partial").exists()


def test_a_mistake_is_one_line_whatever_the_number_of_ranks(
    llama_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    command = [*train_arguments(llama_run, tmp_path / "out", batch_size=14), "--ranks", "2"]
    code, _, error = finish(start_stage("train", command, artifacts))
    assert code == 2
    assert error == "train: batch size 14 is larger than the 13 rows: lower --batch-size\n"


def test_ranks_stop_when_their_launcher_is_killed(
    llama_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    partial = tmp_path / ".run.partial"
    command = train_arguments(llama_run, tmp_path / "run", **SHORT | {"iters": 500, "ranks": 2})
    launcher = start_stage("train", command, artifacts)
    stop_after(launcher, partial / "checkpoints" / "0000002", signal.SIGKILL)
    wait_for_end(tmp_path)
    assert len(list((partial / "checkpoints").glob("[0-9]*"))) == 2, "and save what they did"


def test_ranks_decide_an_adapter_with_dropout_alone(llama_run: Pipeline) -> None:
    for dropout, same in ((0.0, True), (0.1, False)):
        options = llama_run.options("train", dropout=dropout)
        assert (make_recipe(options, 2) == make_recipe(options)) is same
    assert Launch(1, "a, b,c", "ring").size == 3


def choose(*words: str, on_cpu: bool = True) -> Launch | None:
    place, rest = read_place(words)
    options = read_options(build_parser("train", "", ("train",)).parse_args(rest))
    return choose_launch(options, place, on_cpu=on_cpu)


def test_launch_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with pytest.raises(StageError, match=r"^--hosts 10\.0\.0\.1 is one machine: name several"):
        choose("--hosts", "10.0.0.1")
    with pytest.raises(StageError, match=r"^--hosts a,b,c: a batch of 2 rows has none for each: name fewer"):
        choose("--model", "7b", "--hosts", "a,b,c")
    assert warn_of_crowd(Launch(9, None, "ring"), cores=8) == [
        "WARNING: --ranks 9 are more than this machine's 8 cores, and take turns on them"
    ]
    assert "this machine's 1 core, and" in warn_of_crowd(Launch(2, None, "ring"), cores=1)[0]
    assert not warn_of_crowd(Launch(8, None, "ring"), cores=8)
    assert not warn_of_crowd(Launch(1, "a,b,c", "ring"), cores=2)
    monkeypatch.setenv(THREADS, "1")
    assert not warn_of_crowd(Launch(count_cpus(), None, "ring")), "each has one thread, and a core"
    assert main(["--ranks", "two"]) == 2
    assert "'two' is not a whole number" in capsys.readouterr().err
