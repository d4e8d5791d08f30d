"""A run: its checkpoints, that a stopped one goes on exactly, its log, and the adapter that it leaves."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from stages.core.compute import load_model
from stages.core.errors import Interrupted, StageError
from stages.core.records import LossPoint, read_lines, write_record
from stages.core.render import Encoded
from stages.train.__main__ import main
from stages.train.adapter import load_trainable
from stages.train.checkpoint import Checkpoints, State, load_adapter
from stages.train.log import RunLog
from stages.train.loop import Run, train_adapter
from stages.train.loss import Losses, plain_loss
from stages.train.stage import checkpoints_gb
from tests.models import BuiltOnce
from tests.pipeline import Pipeline, run_work, start_stage, stock_functions
from tests.training import (
    begin,
    encode_pipeline_rows,
    make_run,
    make_setup,
    prepare_run,
    resumed_step,
    stop_after,
    train_arguments,
    trained,
)
from tests.waiting import finish

LONG = {
    **{"iters": 10, "save_every": 2, "eval_every": 5, "num_layers": 1},
    **{"dropout": 0.1, "schedule": "cosine", "warmup": 3},  # all that a resumed run has to know as well
}


def test_a_stopped_run_goes_on_exactly(
    qwen2_run: Pipeline, artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped politely, then killed, then let through: the same adapter as without a stop, byte for byte."""
    whole = start_stage("train", train_arguments(qwen2_run, tmp_path / "whole", **LONG), artifacts)
    assert finish(whole)[::2] == (0, "")

    target, partial = tmp_path / "parts", tmp_path / ".parts.partial"
    command = train_arguments(qwen2_run, target, **LONG)
    code, _, error = stop_after(
        start_stage("train", command, artifacts), partial / "checkpoints" / "0000002", signal.SIGTERM
    )
    assert code == 130
    assert error == f"train: interrupted; finished work is kept in {partial}, the same command goes on\n"
    assert not target.exists()
    code, out, _ = stop_after(
        start_stage("train", command, artifacts), partial / "checkpoints" / "0000006", signal.SIGKILL
    )
    assert code == -signal.SIGKILL
    assert 2 <= resumed_step(out) < 10  # a polite stop saves the step that it was in
    assert not target.exists()
    capsys.readouterr()
    assert main([*command, "--check"]) == 3
    assert re.fullmatch(rf"train: unfinished at step [68] of 10: {target}\n", capsys.readouterr().out)
    assert main([*command, "--check", "--force", "--rank", "5"]) == 3
    assert capsys.readouterr().out == f"train: yet to be made: {target}\n", "which would not go on with it"
    code, out, error = finish(start_stage("train", command, artifacts))
    assert (code, error) == (0, "")
    assert resumed_step(out) in (6, 8)  # a killed run has what it saved by plan

    names = ["adapters.safetensors", "checkpoints/0000008/adapters.safetensors", "adapter_config.json"]
    for name in names:
        assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    points = [read_lines(folder / "log.jsonl", LossPoint) for folder in (target, tmp_path / "whole")]
    validated = [[(p.step, p.loss) for p in log if p.kind == "valid"] for log in points]
    assert validated[0] == validated[1]
    assert [step for step, _ in validated[0]] == [0, 5, 10]
    assert [p.step for p in points[0] if p.kind == "train"] == [10]
    assert sorted(p.name for p in (target / "checkpoints").iterdir()) == ["0000008", "0000010"]
    assert not list(target.rglob("optimizer.safetensors"))


def test_a_run_over_several_beginnings_goes_on_exactly(llama_run: Pipeline, tmp_path: Path) -> None:
    """From a checkpoint in its middle, with what the frozen layers kept to be computed anew."""
    plain = encode_pipeline_rows(llama_run)
    rows = [begin(row, index % 2 + 1, 100) for index, row in enumerate(plain)]
    setup = make_setup(batch_size=3, num_layers=1, iters=6, save_every=3, eval_every=3, dropout=0.2)

    def train_in(name: str) -> Run:
        mx.random.seed(0)
        (tmp_path / name).mkdir(exist_ok=True)
        run = Run(load_trainable(llama_run.model, setup), setup, 0, rows[2:], rows[:2], tmp_path / name)
        assert len(run.trunks) == 2
        train_adapter(run)
        return run

    whole = train_in("whole")
    middle = "checkpoints/0000003"
    shutil.copytree(tmp_path / "whole" / middle, tmp_path / "half" / middle)
    shutil.copy(tmp_path / "whole" / "log.jsonl", tmp_path / "half")
    half = trained(train_in("half"))
    assert all(mx.array_equal(array, half[name]) for name, array in trained(whole).items())
    logs = [read_lines(tmp_path / name / "log.jsonl", LossPoint) for name in ("whole", "half")]
    assert len(logs[0]) == 4
    assert [(p.step, p.kind, p.loss) for p in logs[0]] == [(p.step, p.kind, p.loss) for p in logs[1]]


def test_what_frozen_layers_give_is_computed_before_the_first_step(
    qwen2_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the rows that are to come, and no others."""
    monkeypatch.setattr("stages.train.loop.COMPANY", 1)
    run = make_run(qwen2_run, tmp_path, iters=3, batch_size=1, num_layers=1)
    (trunk,) = run.trunks
    assert trunk.find_missing(run.train) == run.train
    run.prepare(1)
    ahead = [*run.valid, *(run.train[i] for step in (1, 2) for i in run.rows_of(step)[0])]
    others = [row for row in run.train if not any(row is one for one in ahead)]
    assert trunk.find_missing(run.train) == others
    assert len(others) >= len(run.train) - 5

    begun, begin_step = [], run.step

    def step(index: int, **how: Any) -> Any:
        begun.append(index)
        assert not trunk.find_missing([run.train[i] for i in run.rows_of(index)[0]])
        return begin_step(index, **how)

    monkeypatch.setattr(run, "step", step)
    train_adapter(run)
    assert begun == [0, 1, 2]


def test_a_stop_while_the_frozen_layers_work_is_heard_as_one_of_a_step_is(
    qwen2_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that just left would have the others fail, which wait for it in the first validation."""
    monkeypatch.setattr("stages.train.loop.COMPANY", 1)
    run = make_run(qwen2_run, tmp_path, iters=3, batch_size=1, num_layers=1)
    (trunk,) = run.trunks
    compute = trunk.prepare

    def prepare(row: Encoded) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        compute(row)

    monkeypatch.setattr(trunk, "prepare", prepare)
    with pytest.raises(Interrupted):
        train_adapter(run)
    assert len(trunk.find_missing(run.train)) == len(run.train) - 1
    assert not (tmp_path / "checkpoints").exists()


def test_a_validation_can_be_cut_short(built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    assert run.validate(lambda: True) is None
    assert run.validate() == run.validate(bool), "and leaves nothing behind"


class StopsAt:
    """A tracker during whose report the run is told to stop, just before a validation is due."""

    def on_train_loss_report(self, report: dict[str, Any]) -> None:
        if report["iteration"] == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_val_loss_report(self, report: dict[str, Any]) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("name", ["qwen2_run", "qwen3_moe_run"])
def test_a_validation_that_a_stop_cuts_short_is_done_when_the_run_goes_on(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """And the adapter is the same, to the last bit."""
    options = {"iters": 12, "eval_every": 10, "save_every": 100, "num_layers": 1}
    run = request.getfixturevalue(name)
    for place in ("stopped", "whole"):
        (tmp_path / place).mkdir()
    with pytest.raises(KeyboardInterrupt):
        train_adapter(make_run(run, tmp_path / "stopped", **options), StopsAt())
    stopped, whole = (make_run(run, tmp_path / place, **options) for place in ("stopped", "whole"))
    ended, expected = train_adapter(stopped), train_adapter(whole)
    assert all(mx.array_equal(array, trained(whole)[key]) for key, array in trained(stopped).items())
    logs = [read_lines(tmp_path / place / "log.jsonl", LossPoint) for place in ("stopped", "whole")]
    losses = [[(point.step, point.kind, point.loss) for point in log] for log in logs]
    assert losses[0] == losses[1]
    assert [step for step, kind, _ in losses[0] if kind == "valid"] == [0, 10, 12]
    assert (ended.best_step, ended.validated) == (expected.best_step, 12)


def test_the_loss_before_the_first_step_is_known_in_the_end(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """Also where the run was stopped in between."""
    options = {"iters": 12, "eval_every": 10, "save_every": 100, "num_layers": 1}
    with pytest.raises(KeyboardInterrupt):
        train_adapter(make_run(qwen2_run, tmp_path, **options), StopsAt())
    state = train_adapter(make_run(qwen2_run, tmp_path, **options))
    points = [p for p in read_lines(tmp_path / "log.jsonl", LossPoint) if p.kind == "valid"]
    assert (state.first_loss, state.valid_loss) == pytest.approx((points[0].loss, points[-1].loss), abs=1e-4)


def test_an_early_end_that_was_killed_is_not_trained_on(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """A rate that changes nothing: the run ends by its patience, and is killed before it is in place."""
    setup = {"iters": 30, "learning_rate": 1e-30, "eval_every": 2, "choose_by": "loss", "patience": 2}
    first = make_run(qwen2_run, tmp_path, **setup)
    ended = train_adapter(first)
    assert (ended.step, ended.best_step, ended.waiting) == (4, 0, 2)
    first.checkpoints.drop_optimizers()
    log = tmp_path / "log.jsonl"
    points = [(p.step, p.kind) for p in read_lines(log, LossPoint)]
    assert points == [(0, "valid"), (2, "valid"), (4, "valid"), (4, "train")], "the last steps' loss too"
    again = make_run(qwen2_run, tmp_path, **setup)
    assert train_adapter(again) == ended
    assert [(p.step, p.kind) for p in read_lines(log, LossPoint)] == points
    assert all(mx.array_equal(array, trained(again)[name]) for name, array in trained(first).items())


def test_a_stop_before_the_validation_that_ends_a_run_loses_no_line(
    qwen2_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last steps' loss is logged when the run goes on, without a speed: it takes no step of its own."""
    setup = {"iters": 30, "learning_rate": 1e-30, "eval_every": 2, "choose_by": "loss", "patience": 2}
    first, logs = make_run(qwen2_run, tmp_path, **setup), []
    begin_step = first.step

    def step(index: int, **how: Any) -> Any:
        if index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin_step(index, **how)

    monkeypatch.setattr(first, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train_adapter(first)
    (tmp_path / "whole").mkdir()
    for place in (tmp_path, tmp_path / "whole"):
        assert train_adapter(make_run(qwen2_run, place, **setup)).step == 4
        logs.append(read_lines(place / "log.jsonl", LossPoint))
    assert [(p.step, p.kind) for p in logs[0]] == [(0, "valid"), (2, "valid"), (4, "valid"), (4, "train")]
    assert [(p.step, p.kind, p.loss) for p in logs[0]] == [(p.step, p.kind, p.loss) for p in logs[1]]
    assert [log[-1].tokens_per_second is None for log in logs] == [True, False]


class FallsAt:
    """A tracker in whose report of a step the run breaks off, as if it were killed."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_loss_report(self, report: dict[str, Any]) -> None:
        if report["iteration"] == self._step:
            raise MemoryError

    def on_val_loss_report(self, report: dict[str, Any]) -> None:
        """Nothing to do."""


def test_the_best_adapter_is_the_one_that_the_state_names(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """Also when what follows a kill goes another way, as on a GPU or with other ranks: here it is a ruin."""
    setup = {"iters": 12, "eval_every": 4, "save_every": 5, "choose_by": "loss", "keep_checkpoints": 1}
    with pytest.raises(MemoryError):
        train_adapter(make_run(qwen2_run, tmp_path, **setup), FallsAt(10))
    points = [p for p in read_lines(tmp_path / "log.jsonl", LossPoint) if p.kind == "valid"]
    assert points[0].loss > points[1].loss > points[2].loss, "step 8 was the best so far"
    again = make_run(qwen2_run, tmp_path, **setup | {"learning_rate": 3e4})
    state = train_adapter(again)
    assert state.step == 12
    losses = again.validate()
    assert losses is not None
    assert losses.mean == pytest.approx(state.best_loss, rel=1e-6)
    kept = {f"{step:07d}" for step in (state.best_step, 12)}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == kept


def test_a_loss_that_is_no_number_stops_the_run(
    llama_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate that ruins the adapter after some steps; the one checkpoint that stays is a good one."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    options = {"iters": 20, "learning_rate": 1e17, "save_every": 1, "eval_every": 20, "keep_checkpoints": 1}
    arguments = train_arguments(llama_run, tmp_path / "out", num_layers=1, **options)
    capsys.readouterr()
    for _ in range(2):  # the same command ends the same way
        assert main(arguments) == 2
        found = re.fullmatch(
            r"train: the (?:loss|norm of the gradient) is (?:nan|inf) in step (\d+), rows \d+, \d+ of the "
            r"training split: lower --learning-rate or set --clip-norm 1, with --force or another --out; the "
            rf"last good checkpoint, of step (\d+), is kept in {re.escape(str(tmp_path))}/\.out\.partial\n",
            capsys.readouterr().err,
        )
        assert found
        failed, kept = int(found[1]), int(found[2])
        assert kept == failed - 2 >= 1, "the loss of a step comes from the weights of the step before"
        checkpoints = tmp_path / ".out.partial" / "checkpoints"
        assert [p.name for p in checkpoints.iterdir()] == [f"{kept:07d}"]
    assert not (tmp_path / "out").exists()
    model = load_trainable(llama_run.model, make_setup(num_layers=1))
    load_adapter(model, checkpoints / f"{kept:07d}" / "adapters.safetensors")
    assert np.isfinite(plain_loss(model, encode_pipeline_rows(llama_run)))


def test_a_last_update_that_ruins_the_adapter_is_found(
    llama_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step comes after it: the validation alone sees what it did."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    options = {"iters": 1, "learning_rate": 1e30, "save_every": 1, "num_layers": 1}
    capsys.readouterr()
    assert main(train_arguments(llama_run, tmp_path / "out", **options)) == 2
    assert re.fullmatch(
        r"train: the validation loss is (nan|inf) after 1 step: lower --learning-rate or set --clip-norm 1; "
        r"there is no good checkpoint yet\n",
        capsys.readouterr().err,
    )
    assert not (tmp_path / "out").exists()
    points = read_lines(tmp_path / ".out.partial" / "log.jsonl", LossPoint)
    assert [(point.step, point.kind) for point in points] == [(0, "valid"), (1, "train")]


def test_what_a_kill_left_among_the_checkpoints(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    root = checkpoints.folder / "checkpoints"
    for half in ("0000001", ".0000002.partial"):  # half removed, half written
        (root / half).mkdir(parents=True)
        (root / half / "adapters.safetensors").touch()
    for step in (3, 4, 5):
        state = State(step=step, seconds=1.0, ended=True)
        checkpoints.save(state, run.model, run.optimizer)
        checkpoints.prune()
    assert sorted(p.name for p in root.iterdir()) == ["0000004", "0000005"]
    checkpoints.drop_optimizers()
    assert checkpoints.resume(run.model, run.optimizer) == state
    checkpoints.drop_optimizers()


def test_a_checkpoint_that_does_not_fit_is_refused(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    """MLX itself would load what fits, and go on with a fresh LoRA under an old optimizer."""
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    run.checkpoints.save(State(step=1), run.model, run.optimizer)
    saved = tmp_path / "checkpoints" / "0000001"
    assert run.checkpoints.resume(run.model, run.optimizer) == State(step=1)
    write_record(saved / "state.json", State(step=1))  # as older ones are, which know no digests
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        whole = (saved / name).read_bytes()
        arrays: dict[str, Any] = dict(mx.load(str(saved / name)))  # type: ignore[arg-type]
        first = sorted(arrays)[0]
        others = {n: a for n, a in arrays.items() if n != first}
        reshaped = mx.concatenate([mx.contiguous(arrays[first]).reshape(-1), mx.zeros(1)])
        for wrong in (others | {first + "x": arrays[first]}, others, arrays | {first: reshaped}):
            mx.save_safetensors(str(saved / name), wrong)
            with pytest.raises(StageError, match=rf"{name} is not what this run trains, as after .*remove"):
                run.checkpoints.resume(run.model, run.optimizer)
        (saved / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(StageError, match=rf"cannot read \S+{name} \(.*remove its folder, and any"):
            run.checkpoints.resume(run.model, run.optimizer)
        (saved / name).write_bytes(whole)
    (saved / "optimizer.safetensors").unlink()
    with pytest.raises(StageError, match=r"cannot read \S+optimizer.safetensors"):
        run.checkpoints.resume(run.model, run.optimizer)


@pytest.mark.parametrize("name", ["adapters.safetensors", "optimizer.safetensors"])
def test_a_bit_that_flipped_in_a_checkpoint_is_found(
    name: str, built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    """It is a file like any other then, with another number in it."""
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    for step in (1, 2):
        checkpoints.save(State(step=step), run.model, run.optimizer)
    checkpoints.save(State(step=2, validated=2), run.model, run.optimizer)  # the state alone is another
    saved = tmp_path / "run" / "checkpoints" / "0000002"
    data = bytearray((saved / name).read_bytes())
    data[-1000] ^= 64
    (saved / name).write_bytes(data)
    with pytest.raises(
        StageError, match=rf"{name} \(it is not as it was written\): remove its folder, and any "
    ):
        checkpoints.resume(run.model, run.optimizer)
    shutil.rmtree(saved)
    assert checkpoints.resume(run.model, run.optimizer) == State(step=1), "as the message says"


def test_a_best_adapter_that_is_damaged_goes_with_those_that_name_it(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    """If its folder alone went, the run would go on to its end and look for that adapter again."""
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    checkpoints = Checkpoints(tmp_path / "run", keep=3, keeps_best=True)
    for step, best in ((1, 1), (2, 2), (3, 2)):
        checkpoints.save(State(step=step, best_step=best), run.model, run.optimizer)
    root = tmp_path / "run" / "checkpoints"
    adapter = root / "0000002" / "adapters.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))
    both = r"remove its folder, and any after it, to go on from the checkpoint before, or the whole "
    for found in (r"0000002/adapters\.safetensors \(it is not as it was written\)", "no file .*/0000002/"):
        assert checkpoints.resume(run.model, run.optimizer) == State(step=3, best_step=2)
        with pytest.raises(StageError, match=f"{found}.*: {both}"):
            checkpoints.load_step(run.model, 2)
        shutil.rmtree(root / "0000002", ignore_errors=True)
    shutil.rmtree(root / "0000003")
    assert checkpoints.resume(run.model, run.optimizer) == State(step=1, best_step=1)
    checkpoints.load_step(run.model, 1)


def test_a_damaged_state_says_what_to_do(built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    run.checkpoints.save(State(step=1), run.model, run.optimizer)
    path = tmp_path / "checkpoints" / "0000001" / "state.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StageError, match=r"0000001/state.json is not valid: .*: remove its folder, and any"):
        run.checkpoints.resume(run.model, run.optimizer)


@pytest.mark.parametrize("left", [0, 20, 200])
def test_a_log_that_lost_lines_goes_on_with_whole_ones(
    left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is not filled up with zero bytes, which no reader of lines takes."""
    path = tmp_path / "log.jsonl"
    log = RunLog(path, State())
    for step in (1, 2, 3):
        log.validated(step, Losses(total=2.0, tokens=1))
    state = State(step=2, log_bytes=len(b"".join(path.read_bytes().splitlines(keepends=True)[:2])))
    RunLog(path, state)
    points = read_lines(path, LossPoint)
    assert [point.step for point in points] == [1, 2], "what came after the checkpoint is cut off"
    capsys.readouterr()
    if left:
        path.write_bytes(path.read_bytes()[:left])
    else:
        path.unlink()
    again = RunLog(path, state)
    kept = 1 if left == 200 else 0
    assert f"WARNING: {path} has lost losses of the 2 steps so far: those after line {kept} " in (
        capsys.readouterr().out
    )
    again.validated(3, Losses(total=2.0, tokens=1))
    assert [point.step for point in read_lines(path, LossPoint)] == [1] * kept + [3]
    assert again.size == path.stat().st_size


def test_the_disk_for_checkpoints_is_what_they_take(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """With the one in the making there are three, even where one is to stay."""
    run = make_run(qwen2_run, tmp_path, keep_checkpoints=1)
    for step in (1, 2):
        run.checkpoints.save(State(step=step), run.model, run.optimizer)
    first, second = sorted((tmp_path / "checkpoints").iterdir())
    adapter = (second / "adapters.safetensors").stat().st_size
    whole = adapter + (first / "optimizer.safetensors").stat().st_size
    needed = 1e9 * (checkpoints_gb(run.model, run.setup) - 0.05)
    assert 3 * whole + adapter == pytest.approx(needed, rel=0.1), "beside the adapter itself"
    many = make_setup(keep_checkpoints=10**9, iters=4, save_every=2)
    needed = 1e9 * (checkpoints_gb(run.model, many) - 0.05)
    assert 5 * whole + adapter == pytest.approx(needed, rel=0.1), "no more than there can be"


def test_a_full_disk_is_one_line(built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path) -> None:
    """A limit of this process on the size of its files stands for the disk: the kernel refuses to write."""
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    run.checkpoints.save(State(step=1), run.model, run.optimizer)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        with pytest.raises(
            StageError, match=r"^cannot write \S+safetensors \(.*\): free some space; .* goes on$"
        ):
            run.checkpoints.save(State(step=2), run.model, run.optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.checkpoints.resume(run.model, run.optimizer) == State(step=1)
    run.checkpoints.save(State(step=3), run.model, run.optimizer)
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(left) == ["0000001", "0000003"], "what could not be written is gone"


def test_training_learns_and_a_second_call_does_nothing(
    qwen2_run: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = qwen2_run.folder("train")
    losses = [p.loss for p in read_lines(folder / "log.jsonl", LossPoint) if p.kind == "valid"]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(np.log(151936), rel=0.05)  # random weights know nothing
    assert losses[-1] < losses[0]
    assert run_work("train", qwen2_run.options("train")).up_to_date
    with pytest.raises(
        StageError, match=r"was made with iters=4 \(now 5\): --force replaces it, --out FOLDER"
    ):
        run_work("train", qwen2_run.options("train", iters=5))
    capsys.readouterr()
    for iters, reason in (
        (5, ", and a finished run takes no more steps: its "),
        (3, ": --force replaces it"),
    ):
        assert main([*train_arguments(qwen2_run, folder, iters=iters), "--check"]) == 2
        assert f"was made with iters=4 (now {iters}){reason}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qwen2_run", "qwen3_moe_run"])
def test_stock_mlx_lm_loads_the_adapter(name: str, request: pytest.FixtureRequest) -> None:
    run: Pipeline = request.getfixturevalue(name)
    adapter = run.folder("train")
    ours = load_trainable(run.model, make_setup())
    ours.load_weights(str(adapter / "adapters.safetensors"), strict=False)
    ours.eval()
    tokens = mx.array([encode_pipeline_rows(run)[0].tokens[:24]])
    with stock_functions():
        loaded: Any = mlx_lm.load(str(run.model), adapter_path=str(adapter))
        stock, tokenizer = loaded
        plain = mlx_lm.load(str(run.model))[0]
        for model in (stock, plain):
            model.set_dtype(mx.float32)  # its own bfloat16 differs by more than the adapter changes
        expected, base = stock(tokens), plain(tokens)
        mx.eval(expected, base)
    assert tokenizer.chat_template
    found = load_model(run.model)[0](tokens)
    assert float(mx.abs(found - base).max()) < 1e-4
    changed = float(mx.abs(expected - base).max())
    assert changed > 1e-2
    assert float(mx.abs(ours(tokens) - expected).max()) < 1e-2 * changed


def test_an_adapter_of_stock_mlx_lm_is_read_back(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    base, rows = built.model("llama"), encode_pipeline_rows(qwen2_run)
    words = ["--train", "--iters", "1", "--batch-size", "1", "--num-layers", "1", "--max-seq-length", "32"]
    places = {"model": base, "data": qwen2_run.folder("convert_data"), "adapter-path": tmp_path / "adapter"}
    words += [word for name, place in places.items() for word in (f"--{name}", str(place))]
    words += ["--learning-rate", "1e-2", "--val-batches", "1"]
    command = [sys.executable, "-m", "mlx_lm", "lora", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = load_trainable(base, make_setup(num_layers=1, rank=8, scale=20.0))  # as mlx-lm has them
    tokens = mx.array([[token % 49152 for token in rows[0].tokens[:24]]])
    before = ours(tokens)
    load_adapter(ours, tmp_path / "adapter" / "adapters.safetensors")
    ours.eval()
    with stock_functions():
        stock = mlx_lm.load(str(base), adapter_path=str(tmp_path / "adapter"))[0]
        stock.set_dtype(mx.float32)
        expected = stock(tokens)
        mx.eval(expected)
    changed = float(mx.abs(expected - before).max())
    assert changed > 1e-2
    assert float(mx.abs(ours(tokens) - expected).max()) < 1e-2 * changed
