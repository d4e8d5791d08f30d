"""Several processes train as one: real processes that talk over loopback."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import mlx.core as mx
import pytest

from stages.core.cli import build_parser, read_options
from stages.core.compute import load_arrays
from stages.core.cpu.blocks import count_cores
from stages.core.errors import StageError
from stages.core.preset import PRESETS
from stages.core.records import LossPoint, read_lines
from stages.train.__main__ import main
from stages.train.launch import Launch, choose_launch, read_place
from tests.pipeline import Pipeline, start_stage
from tests.tiny.test_train import resumed_step, stop_after, train_arguments

SHORT = {"iters": 6, "batch_size": 3, "save_every": 2, "eval_every": 3, "num_layers": 1}


def read_losses(folder: Path) -> list[float]:
    return [point.loss for point in read_lines(folder / "log.jsonl", LossPoint)]


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
    """With two ranks to the same bytes, with one to the same losses."""
    long = SHORT | {"iters": 12}
    whole = start_stage(
        "train", [*train_arguments(qwen2_run, tmp_path / "whole", **long), "--ranks", "2"], artifacts
    )
    whole.communicate(timeout=240)
    assert whole.returncode == 0
    target, partial = tmp_path / "run", tmp_path / ".run.partial"
    command = train_arguments(qwen2_run, target, **long)
    two = start_stage("train", [*command, "--ranks", "2"], artifacts)
    code, out, error = stop_after(two, partial / "checkpoints" / "0000002", signal.SIGTERM)
    assert code == 130
    assert error.count("train: interrupted") == 1
    shutil.copytree(partial, tmp_path / ".one.partial")
    for ranks, folder in (("2", target), ("1", tmp_path / "one")):
        command = [*train_arguments(qwen2_run, folder, **long), "--ranks", ranks]
        again = start_stage("train", command, artifacts)
        out, error = again.communicate(timeout=240)
        assert (again.returncode, error) == (0, "")
        assert resumed_step(out) >= 2
        assert read_losses(folder) == pytest.approx(read_losses(tmp_path / "whole"), rel=1e-4)
    same = [(place / "adapters.safetensors").read_bytes() for place in (target, tmp_path / "whole")]
    assert same[0] == same[1]


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
    give_up = time.monotonic() + 60
    while list(tmp_path.glob(".run.lock")):  # the leader holds it as long as it lives
        assert time.monotonic() < give_up, "the ranks go on without their launcher"
        time.sleep(0.05)
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
