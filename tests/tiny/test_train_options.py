"""What the options of training do: accumulation, clipping, weights of calls, the choice of the adapter."""

from __future__ import annotations

import math
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from filelock import FileLock
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

from stages.core.cli import Options
from stages.core.compute import load_model
from stages.core.errors import StageError
from stages.core.records import LossPoint, read_lines, write_record
from stages.core.render import Encoded
from stages.core.tokenizer import load_tokenizer
from stages.fuse.stage import fuse_adapter
from stages.train.adapter import load_trainable, unfreeze_layer
from stages.train.checkpoint import State
from stages.train.loop import Run, count_validations, draw_seed, is_better, train_adapter
from stages.train.loss import Losses, count_losses, count_validation, plain_loss, weighted_loss
from stages.train.memory import choose_checkpointing, estimate_gb
from stages.train.notes import describe_choice, describe_end, warn_of_ruin, warn_of_warmup
from stages.train.optimizer import FLOOR, clip_gradient, make_schedule
from stages.train.prefixes import group_rows, shared_prefix
from stages.train.ranks import Ranks
from stages.train.recipe import make_recipe
from stages.train.rows import make_batch
from stages.train.stage import checkpoints_gb, describe_beginnings
from stages.train.trackers import refuse_trackers, start_trackers
from tests.pipeline import Pipeline, run_work, stock_functions
from tests.tiny.test_train import encode_pipeline_rows, make_setup


def make_run(run: Pipeline, folder: Path, **overrides: Any) -> Run:
    mx.random.seed(0)
    setup, rows = make_setup(**overrides), encode_pipeline_rows(run)
    return Run(load_trainable(run.model, setup), setup, 0, rows, rows[:3], folder)


def trained(run: Run) -> dict[str, mx.array]:
    flat: Any = tree_flatten(run.model.trainable_parameters())
    return dict(flat)


def test_accumulated_batches_are_one_step_over_all_their_tokens(qwen2_run: Pipeline, tmp_path: Path) -> None:
    run = make_run(qwen2_run, tmp_path, batch_size=2, grad_accumulation=3)
    (trunk,) = run.trunks
    parts = run.rows_of(0)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert len({row for part in parts for row in part}) == 6
    assert run.rows_of(1)[0] == run.plan.rows_of(3)
    rows = [run.train[i] for part in parts for i in part]
    batch = make_batch(rows, trunk.size)
    compute = value_and_grad(run.model, partial(weighted_loss, run.split))
    hidden = trunk.hidden(rows, mx.array(batch.inputs))
    (total, _), gradient = compute(trunk.prefix, hidden, batch)
    expected = dict(tree_flatten(tree_map(lambda g: g / len(batch.where), gradient)))
    losses, tokens, stopped = run.step(0)
    assert (losses.tokens, tokens, stopped) == (len(batch.where), batch.tokens, False)
    assert losses.total == pytest.approx(total.item(), rel=1e-5)
    assert_same(first_gradient(run), expected)


def first_gradient(run: Run) -> dict[str, mx.array]:
    """That of the only step so far: AdamW's first moment is then a tenth of it."""
    state = dict(tree_flatten(run.optimizer.state))
    return {name: state[f"{name}.m"] / 0.1 for name in trained(run)}


def assert_same(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert found.keys() == expected.keys()
    for name, slope in expected.items():
        assert float(mx.abs(found[name] - slope).max()) < 1e-4 * float(mx.abs(slope).max()) + 1e-9, name


def test_rows_that_begin_in_other_ways_have_the_plain_loss_and_gradient(
    llama_run: Pipeline, tmp_path: Path
) -> None:
    """Two long system turns and a row with neither: each part of a batch is computed behind its own."""
    plain = encode_pipeline_rows(llama_run)
    rows = [begin(row, index % 2 + 1, 200) for index, row in enumerate(plain[:-1])] + plain[-1:]
    mx.random.seed(0)
    setup = make_setup(batch_size=len(rows), num_layers=1)
    run = Run(load_trainable(llama_run.model, setup), setup, 0, rows, rows[:3], tmp_path)
    assert [len(trunk.rows) for trunk in run.trunks] == [8, 7, 1], "those of the validation among them"
    assert [trunk.size > 200 for trunk in run.trunks] == [True, True, False]
    compute = value_and_grad(run.model, partial(weighted_loss, run.split))
    whole = make_batch(rows, 0)  # nothing is shared
    (total, _), gradient = compute(None, run.split.trunk(mx.array(whole.inputs), None), whole)
    validated, expected = run.validate(), plain_loss(run.model, rows[:3])
    assert validated is not None
    assert validated.total == pytest.approx(expected, rel=1e-5)
    assert run.step(0)[0].total == pytest.approx(total.item(), rel=1e-5)
    assert_same(first_gradient(run), dict(tree_flatten(tree_map(lambda g: g / len(whole.where), gradient))))


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


def begin(row: Encoded, token: int, count: int) -> Encoded:
    """The row behind so many of a token."""
    unlearned = [False] * count, [-1] * count
    return Encoded([token] * count + row.tokens, unlearned[0] + row.supervised, unlearned[1] + row.calls)


def test_what_rows_begin_with_is_said(qwen2_run: Pipeline, tmp_path: Path) -> None:
    plain = encode_pipeline_rows(qwen2_run)
    size = len(shared_prefix(plain))
    mx.random.seed(0)
    setup = make_setup(batch_size=8, num_layers=1)
    model = load_trainable(qwen2_run.model, setup)

    def describe(rows: list[Encoded]) -> str:
        return describe_beginnings(Run(model, setup, 0, rows, rows[:1], tmp_path).trunks)

    assert describe(plain) == f"all rows begin with the same {size} tokens"
    rows = [begin(plain[0], token, 500) for token in (1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5)]
    own = len(shared_prefix([plain[0]]))
    found = describe(rows)
    assert found.startswith(f"5 rows begin with the same {500 + own} tokens, 3 with {500 + own}, 2 with")
    assert found.endswith(", 2 in other ways")


def test_clipping(qwen2_run: Pipeline, tmp_path: Path) -> None:
    run = make_run(qwen2_run, tmp_path, clip_norm=1e-3, num_layers=1)
    run.step(0)
    squares = [float(mx.square(slope).sum()) for slope in first_gradient(run).values()]
    assert math.sqrt(sum(squares)) == pytest.approx(1e-3, rel=1e-3), "a step clips its whole gradient"
    gradient = {"a": mx.array([3.0, 0.0]), "b": mx.array([4.0])}
    clipped = clip_gradient(gradient, 1.0)
    assert np.allclose(clipped["a"], [0.6, 0.0], atol=1e-5)
    assert np.allclose(clipped["b"], [0.8], atol=1e-5)
    assert clip_gradient(gradient, 0.0) is gradient
    assert np.allclose(clip_gradient(gradient, 9.0)["b"], [4.0])


def test_calls_weigh_what_the_option_says_and_the_log_stays_in_nats_per_token(
    qwen2_run: Pipeline, tmp_path: Path
) -> None:
    run = make_run(qwen2_run, tmp_path)
    (trunk,) = run.trunks
    rows = [row for row in run.train if max(row.calls) >= 0][:2]
    batch = make_batch(rows, trunk.size)
    hidden = trunk.hidden(rows, mx.array(batch.inputs))
    plain, losses = weighted_loss(run.split, trunk.prefix, hidden, batch)
    sums = count_losses(losses, batch)
    assert 0 < sums.call_tokens < sums.tokens
    assert plain.item() == pytest.approx(sums.total, rel=1e-5)
    heavy, _ = weighted_loss(run.split, trunk.prefix, hidden, batch, call_weight=3.0)
    assert heavy.item() == pytest.approx(sums.total + 2 * sums.call_total, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("constant", 1.0, 1.0), ("cosine", (1 + FLOOR) / 2, FLOOR), ("linear", 0.5, 0.0)],
)
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules(schedule: str, middle: float, end: float, warmup: int) -> None:
    setup = make_setup(iters=20 + warmup, warmup=warmup, schedule=schedule, learning_rate=0.2)
    rate = make_schedule(setup)
    rates = [float(rate(mx.array(step)).item()) / 0.2 for step in range(warmup + 21)]
    assert rates[:warmup] == pytest.approx([0.25, 0.4375, 0.625, 0.8125][:warmup])
    assert rates[warmup::10] == pytest.approx([1.0, middle, end], abs=1e-6)


@pytest.mark.parametrize(("iters", "reached"), [(6, "0.00055"), (10, "0.00091")])
def test_a_warm_up_that_outlasts_the_run_is_named(iters: int, reached: str) -> None:
    """As in a first trial of a few steps with a preset's own warm-up."""
    (line,) = warn_of_warmup(make_setup(iters=iters, warmup=10, learning_rate=1e-3))
    assert line == (
        f"WARNING: --warmup 10 leaves no step of {iters} with the learning rate 0.001: it gets to {reached}"
    )
    assert not warn_of_warmup(make_setup(iters=iters, warmup=iters - 1))


def test_which_adapter_is_kept_is_said() -> None:
    """With the default the last one, whatever the lowest validation loss was."""
    state = State(step=60, best_step=50, best_loss=0.0861, best_calls=0.78, valid_loss=0.0863)
    lowest = "the lowest validation loss was 0.0861, at step 50"
    assert describe_choice(state, make_setup()) == f"adapter of the last step 60 (0.0863); {lowest}"
    old = state.model_copy(update={"valid_loss": None})
    assert describe_choice(old, make_setup()) == f"adapter of the last step 60; {lowest}"
    last = state.model_copy(update={"best_step": 60})
    own = "adapter of the last step 60; its validation loss, 0.0861, is the lowest"
    assert describe_choice(last, make_setup()) == own
    words = "which has the lowest validation loss, 0.0861"
    assert describe_choice(state, make_setup(choose_by="loss")) == f"adapter of step 50, {words}"
    by_calls = describe_choice(state, make_setup(choose_by="calls"))
    assert by_calls == (
        "adapter of step 50, the best by calls: 78% of the calls exact, validation loss 0.0861"
    )


def test_an_adapter_that_is_worse_than_none_is_named() -> None:
    """Whose loss is a number all the same, so that no step stopped the run."""
    state = State(step=60, best_step=10, best_loss=1.5, valid_loss=9.2, first_loss=2.0)
    (line,) = warn_of_ruin(state, make_setup())
    assert line.startswith(
        "WARNING: training made it worse: validation loss 2.0000 before the first step, 9.2000 "
    )
    assert not warn_of_ruin(state, make_setup(choose_by="loss")), "the best one is better"
    by_calls = state.model_copy(update={"best_loss": 2.1, "best_calls": 0.9})
    assert not warn_of_ruin(by_calls, make_setup(choose_by="calls")), "more calls are exact than before"
    for update in ({"valid_loss": 2.0}, {"first_loss": None}, {"valid_loss": None}):
        assert not warn_of_ruin(state.model_copy(update=update), make_setup())


@pytest.mark.parametrize("choose_by", ["loss", "calls"])
def test_an_adapter_that_changes_nothing_is_named(choose_by: str) -> None:
    """Chosen by loss, or by calls of which none was ever exact: no step beat the start."""
    state = State(step=1, best_step=0, best_loss=2.0, valid_loss=2.5, first_loss=2.0, waiting=1)
    setup = make_setup(choose_by=choose_by, patience=1)
    choice, early, warning = describe_end(state, setup)
    assert choice.startswith("adapter of step 0, ")
    passed = "--patience 1 passed without a better validation than that of step 0"
    assert early == f"ended early, after step 1 of 4: {passed}"
    assert warning.startswith("WARNING: no validation was better than the one before the first step: ")
    later = state.model_copy(update={"step": 4, "best_step": 2, "waiting": 0})
    assert len(describe_end(later, setup)) == 1


def test_the_loss_before_the_first_step_is_known_in_the_end(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """Also where the run was stopped in between."""
    options = {"iters": 12, "eval_every": 10, "save_every": 100, "num_layers": 1}
    with pytest.raises(KeyboardInterrupt):
        train_adapter(make_run(qwen2_run, tmp_path, **options), StopsAt())
    state = train_adapter(make_run(qwen2_run, tmp_path, **options))
    points = [p for p in read_lines(tmp_path / "log.jsonl", LossPoint) if p.kind == "valid"]
    assert (state.first_loss, state.valid_loss) == pytest.approx((points[0].loss, points[-1].loss), abs=1e-4)


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


@pytest.mark.parametrize(
    ("exact", "loss", "by_calls", "by_loss"),
    [(3, 2.0, True, False), (2, 0.5, True, True), (2, 1.5, False, False), (1, 0.5, False, True)],
)
def test_the_best_validation(exact: int, loss: float, by_calls: bool, by_loss: bool) -> None:
    """Against two of four calls exact at a loss of 1."""
    losses = Losses(total=loss * 10, tokens=10, exact_calls=exact, calls=4)
    state = State(best_step=5, best_loss=1.0, best_calls=0.5)
    assert is_better(losses, state, "calls") is by_calls
    assert is_better(losses, state, "loss") is by_loss
    assert is_better(losses, State(), "calls"), "the first is the best so far"


def test_the_tokens_of_calls_are_the_call_and_its_end(qwen2_run: Pipeline) -> None:
    tokenizer = load_tokenizer(qwen2_run.model)
    texts = []
    for row in encode_pipeline_rows(qwen2_run):
        for turn in range(max(row.calls) + 1):
            tokens = [t for t, c in zip(row.tokens, row.calls, strict=True) if c == turn]
            texts.append(tokenizer.decode(tokens))
        assert all(s for s, c in zip(row.supervised, row.calls, strict=True) if c >= 0)
    assert len(texts) >= 6
    for text in texts:
        assert text.lstrip().startswith('<tool_call>\n{"name"')
        assert text.endswith("</tool_call><|im_end|>")
    assert any(max(row.calls) < 0 for row in encode_pipeline_rows(qwen2_run))


def test_an_exact_call_is_one_that_greedy_decoding_writes(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """What mlx-lm writes greedily is taken as the call of a row, once as it is and once with a slip."""
    run = make_run(qwen2_run, tmp_path)
    (trunk,) = run.trunks
    run.model.eval()
    rows = []
    for start, slip in ((run.train[0], False), (run.train[1], False), (run.train[2], True)):
        prompt = start.tokens[: start.supervised.index(True)]
        steps = generate_step(mx.array(prompt), run.model, max_tokens=12, sampler=make_sampler(0.0))
        call = [int(token) for token, _ in steps]
        call[6] += slip
        learned = [False] * len(prompt) + [True] * len(call)
        rows.append(Encoded(prompt + call, learned, [0 if s else -1 for s in learned]))
    batch = make_batch(rows, trunk.size)
    hidden = trunk.hidden(rows, mx.array(batch.inputs))
    sums = count_validation(run.split, trunk.prefix, hidden, batch)
    assert (sums.exact_calls, sums.calls, sums.call_tokens) == (2, 3, 36)


def test_the_best_adapter_counts_and_waiting_ends_the_run(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """A rate at which the validation loss first falls and then rises."""
    options = qwen2_run.options(
        "train", iters=30, learning_rate=0.3, eval_every=2, save_every=4, choose_by="loss", patience=2
    )
    options = type(options)(**vars(options) | {"out": tmp_path / "best"})
    outcome = run_work("train", options)
    points = [p for p in read_lines(outcome.folder / "log.jsonl", LossPoint) if p.kind == "valid"]
    best = min(points, key=lambda p: p.loss)
    assert points[-1].step == best.step + 4 < 30
    assert outcome.facts["best_step"] == best.step
    assert outcome.lines[0].startswith(f"adapter of step {best.step}, which has the lowest validation loss, ")
    assert outcome.lines[1].startswith(f"ended early, after step {best.step + 4} of 30: ")
    kept: Any = mx.load(str(outcome.folder / "adapters.safetensors"))
    checkpoints = outcome.folder / "checkpoints"
    chosen: Any = mx.load(str(checkpoints / f"{best.step:07d}" / "adapters.safetensors"))
    assert all(mx.array_equal(kept[name], chosen[name]) for name in kept)
    last: Any = mx.load(str(sorted(checkpoints.iterdir())[-1] / "adapters.safetensors"))
    assert not all(mx.array_equal(kept[name], last[name]) for name in kept)


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


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_other_ways_to_train_can_be_fused_and_read_by_mlx_lm(
    kind: str, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    options = qwen2_run.options("train", fine_tune_type=kind, iters=3, num_layers=1, learning_rate=1e-2)
    outcome = run_work("train", type(options)(**vars(options) | {"out": tmp_path / kind}))
    points = [p.loss for p in read_lines(outcome.folder / "log.jsonl", LossPoint) if p.kind == "valid"]
    assert points[-1] < points[0]
    prompt = mx.array([list(range(100, 130))])
    base = load_model(qwen2_run.model, dequantize=True)[0]
    before = base(prompt)
    fused = fuse_adapter(base, outcome.folder)(prompt)
    assert float(mx.abs(fused - before).max()) > 1e-3
    if kind == "dora":
        with stock_functions():
            loaded: Any = mlx_lm.load(str(qwen2_run.model), adapter_path=str(outcome.folder))
            loaded[0].set_dtype(mx.float32)
            assert float(mx.abs(loaded[0](prompt) - fused).max()) < 0.05 * float(mx.abs(fused).max())


def test_dora_on_a_mixture_of_experts_is_refused_in_one_line(qwen3_moe_run: Pipeline, tmp_path: Path) -> None:
    options = qwen3_moe_run.options("train", fine_tune_type="dora")
    with pytest.raises(StageError, match=r"^--fine-tune-type dora: .*doesn't support DoRA"):
        run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"}))


def test_memory_decides_on_checkpointing(
    qwen2_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(qwen2_run, tmp_path)
    groups = group_rows(run.train, run.setup.batch_size)
    plain, lean = (estimate_gb(run.model, run.setup, groups, checkpoint=c) for c in (False, True))
    assert 0.05 < lean < plain < 1

    def choose(free: float, **overrides: Any) -> bool:
        monkeypatch.setattr("stages.train.memory.free_memory_gb", lambda: free)
        return choose_checkpointing(run.model, make_setup(**overrides), run.train).grad_checkpoint

    assert not choose(plain + 0.01)
    assert choose((plain + lean) / 2)
    with pytest.raises(StageError, match="set --dropout 0"):
        choose((plain + lean) / 2, dropout=0.1)
    with pytest.raises(StageError, match="lower --batch-size"):
        choose(lean - 0.01)
    # Two processes here have half of the memory each, and half of the batch.
    half = run.setup.model_copy(update={"batch_size": -(-run.setup.batch_size // 2)})
    groups = group_rows(run.train, half.batch_size)
    plain, lean = (estimate_gb(run.model, half, groups, checkpoint=c) for c in (False, True))
    for free, checkpoint in ((2.02 * plain, False), (plain + lean, True)):
        monkeypatch.setattr("stages.train.memory.free_memory_gb", lambda: free)  # noqa: B023
        chosen = choose_checkpointing(run.model, run.setup, run.train, Ranks(0, 2, here=2))
        assert chosen.grad_checkpoint == checkpoint


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


def test_validations_to_come() -> None:
    """That before the first step is over, that of the last step is not."""
    setup = make_setup(iters=10, eval_every=4)
    assert [count_validations(step, setup) for step in range(1, 11)] == [3] * 4 + [2] * 4 + [1] * 2
    assert [count_validations(step, make_setup(iters=4, eval_every=4)) for step in (1, 4)] == [1, 1]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("model.embed_tokens", "--lora-keys: model.embed_tokens.* is outside of the layers"),
        ("self_attn.q_proj,self_attn.w_proj", "--lora-keys self_attn.w_proj names no module of this model"),
    ],
)
def test_keys_that_cannot_be_trained(keys: str, reason: str, qwen2_run: Pipeline) -> None:
    with pytest.raises(StageError, match=reason):
        load_trainable(qwen2_run.model, make_setup(lora_keys=keys.split(",")))


def test_a_tracker_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_trackers((), tmp_path, {}) as callbacks:
        assert callbacks is None
    refuse_trackers(())
    with pytest.raises(StageError, match=r"^--report-to tensorbord: use wandb, swanlab, trackio$"):
        refuse_trackers(("tensorbord",))
    (tmp_path / "wandb").mkdir()  # as wandb itself leaves where it ran
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("wandb", "trackio"):
        with pytest.raises(StageError, match=rf"^--report-to {name}: install {name} where train runs"):
            refuse_trackers((name,))


# What is refused before hours of work


def refuse_run(options: Options, out: Path, reason: str) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(StageError, match=reason):
        run_work("train", type(options)(**vars(options) | {"out": out}))
    assert sorted(out.parent.iterdir()) == before, "a refusal leaves nothing behind"


def test_what_is_wrong_is_said_before_the_rows_are_read(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """The last row is broken, which would come first if rows were read first."""
    data = tmp_path / "data"
    shutil.copytree(qwen2_run.folder("convert_data"), data)
    with (data / "train.jsonl").open("a") as file:
        file.write("no row\n")
    place = tmp_path / "runs"
    place.mkdir()

    def options(**overrides: Any) -> Options:
        made = qwen2_run.options("train", **overrides)
        return type(made)(**vars(made) | {"data": data})

    refuse_run(options(batch_size=15), place / "out", r"^batch size 15 is larger than the 14 rows")
    refuse_run(options(num_layers=3), place / "out", r"^--num-layers 3 is more than the model's 2 layers")
    refuse_run(options(lora_keys=["mlp.up"]), place / "out", r"^--lora-keys mlp.up names no module")
    refuse_run(options(report_to=["wandb"]), place / "out", r"^--report-to wandb: install wandb")
    with FileLock(place / ".out.lock"):
        refuse_run(options(), place / "out", r"^another process is writing \S+/out: wait for it to end$")
    begun = place / ".out.partial" / "checkpoints" / "0000002"
    begun.mkdir(parents=True)
    write_record(begun / "state.json", State(step=2))
    write_record(begun.parents[1] / "recipe.json", make_recipe(options(iters=9)))
    refuse_run(
        options(), place / "out", r"^an unfinished run with iters=9 \(now 4\) is in \S+/\.out\.partial: "
    )
    recipe = make_recipe(options())
    others = recipe.model_copy(update={"inputs": recipe.inputs | {"data": "0" * 64}})
    write_record(begun.parents[1] / "recipe.json", others)
    refuse_run(options(), place / "out", r"^an unfinished run with other data is in \S+\.out\.partial: ")
    refuse_run(options(), place / "other", r"train\.jsonl:14 is not a converted row")


def test_a_run_that_saved_nothing_blocks_no_other(
    qwen2_run: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = qwen2_run.options("train", learning_rate=1e30, num_layers=1, save_every=100)
    reason = (
        r"in step 2, rows .*: lower --learning-rate or set --clip-norm 1; there is no good checkpoint yet$"
    )
    with pytest.raises(StageError, match=reason):
        run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"}))
    assert (tmp_path / ".out.partial" / "log.jsonl").is_file()
    capsys.readouterr()
    options = qwen2_run.options("train", iters=1, num_layers=1, warmup=1)
    assert not run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"})).up_to_date
    said = capsys.readouterr().out
    assert f"\n  until it is done, log.jsonl and checkpoints are in {tmp_path}/.out.partial\n" in said
    assert "  WARNING: --warmup 1 leaves no step of 1 " in said
    points = read_lines(tmp_path / "out" / "log.jsonl", LossPoint)
    assert [point.kind for point in points] == ["valid", "train", "valid"]
    assert all(point.memory_gb for point in points)


def test_a_choice_by_calls_needs_calls(qwen2_run: Pipeline, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(qwen2_run.folder("convert_data"), data)
    lines = (data / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (data / "valid.jsonl").write_text("".join(line for line in lines if "tool_calls" not in line), "utf-8")
    options = qwen2_run.options("train", choose_by="calls")
    options = type(options)(**vars(options) | {"data": data})
    refuse_run(options, tmp_path / "out", r"^--choose-by calls: no row of valid has a call")


def test_rows_that_were_edited_are_other_rows(qwen2_run: Pipeline, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(qwen2_run.folder("convert_data"), data)
    options = replace(qwen2_run.options("train", iters=1, num_layers=1), data=data)
    run_work("train", replace(options, out=out))
    assert run_work("train", replace(options, out=out)).up_to_date
    rows = (data / "train.jsonl").read_text("utf-8")
    (data / "train.jsonl").write_text(
        rows.replace('"role":"user","content":"', '"role":"user","content":"So: ', 1)
    )
    assert (data / "train.jsonl").read_text("utf-8") != rows
    refuse_run(options, out, "was made with other data: --force replaces it")


# What is drawn and computed


def test_dropout_depends_on_the_step_and_the_rank_alone(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """So that a resumed run draws what the first would have drawn, however often its ranks drew before."""
    losses = []
    for drawn in (0, 3):
        run = make_run(qwen2_run, tmp_path, dropout=0.5, num_layers=1, learning_rate=1e-2)
        run.step(0)
        for _ in range(drawn):
            mx.eval(mx.random.normal((4,)))
        losses += [run.step(1)[0].total]
    assert losses[0] == losses[1]
    seeds = {draw_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600
    assert max(seeds) < 2**64


def test_whole_layers_are_trained_in_float32(qwen3_moe_run: Pipeline) -> None:
    """In bfloat16 an update of 1e-5 rounds away."""
    model = load_model(qwen3_moe_run.model, dequantize=True)[0]
    model.set_dtype(mx.bfloat16)
    model.freeze()
    unfreeze_layer(model.layers[-1])
    learned = dict(tree_flatten(model.trainable_parameters()))
    assert {array.dtype for array in learned.values()} == {mx.float32}
    assert model.layers[0].self_attn.q_proj.weight.dtype == mx.bfloat16
    names = dict(tree_flatten(model.parameters()))
    assert learned.keys() == {name for name in names if name.startswith("model.layers.1.")}


def test_sums_add_up_and_go_through_numbers() -> None:
    one, two = Losses(1.5, 3, 0.5, 1, 1, 2), Losses(2.5, 5, 0.0, 0, 0, 1)
    both = one + two
    assert both == Losses(4.0, 8, 0.5, 1, 1, 3)
    assert Losses.from_numbers([4.0, 8.0, 0.5, 1.0, 1.0, 3.0]) == both
    assert Losses.from_numbers([]) == Losses()
    assert (both.mean, both.call_mean, two.call_mean) == (0.5, 0.5, None)
    assert math.isfinite(Losses().mean)
