"""What the options of training do: schedules, the choice of the adapter, other ways to train, memory."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from stages.core.compute import load_model
from stages.core.errors import StageError
from stages.core.records import LossPoint, read_lines
from stages.fuse.stage import fuse_adapter
from stages.train.adapter import list_adapted, load_trainable, lora_sizes, open_trainable, unfreeze_layer
from stages.train.checkpoint import State
from stages.train.loop import count_validations, is_better
from stages.train.loss import Losses
from stages.train.memory import choose_checkpointing, estimate_gb
from stages.train.notes import describe_choice, describe_end, warn_of_ruin, warn_of_setup, warn_of_warmup
from stages.train.optimizer import FLOOR, make_schedule
from stages.train.prefixes import group_rows
from stages.train.ranks import Ranks
from stages.train.trackers import refuse_trackers, start_trackers
from tests.models import BuiltOnce, Kind
from tests.pipeline import Pipeline, run_work, stock_functions
from tests.training import make_run, make_setup


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


def test_validations_to_come() -> None:
    """That before the first step is over, that of the last step is not."""
    setup = make_setup(iters=10, eval_every=4)
    assert [count_validations(step, setup) for step in range(1, 11)] == [3] * 4 + [2] * 4 + [1] * 2
    assert [count_validations(step, make_setup(iters=4, eval_every=4)) for step in (1, 4)] == [1, 1]


@pytest.mark.parametrize(("rate", "count"), [(1.0, 0), (1e6, 1)])
def test_steps_that_are_larger_than_weights_are_named(rate: float, count: int) -> None:
    """Of an untrained model even those may end at a lower loss than they began with."""
    lines = warn_of_setup(make_setup(learning_rate=rate, iters=9, warmup=2))
    assert len(lines) == count
    assert all(line.startswith("WARNING: --learning-rate 1e+06: AdamW moves every weight ") for line in lines)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_a_rank_that_no_matrix_can_have_is_named(
    kind: Kind, built: BuiltOnce, capsys: pytest.CaptureFixture[str]
) -> None:
    base = built.model(kind, quantize=kind == "qwen2")
    open_trainable(base, make_setup(num_layers=1, rank=4))
    small = capsys.readouterr().out
    assert "WARNING" not in small
    assert re.search(r"  LoRA on 1 of 2 layers: \d{4,5} parameters\n", small), "which millions round to none"
    model = open_trainable(base, make_setup(num_layers=1, rank=5000))
    assert re.search(
        r"  LoRA on 1 of 2 layers: \d+\.\d\d M parameters\n"
        r"  WARNING: --rank 5000 is more than \d+ of \d+ matrices can have, the smallest \d+: ",
        capsys.readouterr().out,
    )
    for module in list_adapted(model):
        width, out = lora_sizes(module)
        assert width * out == math.prod(module.linear.weight.shape[-2:])


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_other_ways_to_train_can_be_fused_and_read_by_mlx_lm(
    kind: str, qwen2_run: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
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
    said = "fuse reads this adapter, stock mlx-lm does not; with lora and dora both do\n"
    assert (said in capsys.readouterr().out) == (kind == "full")
    if kind == "full":
        with stock_functions(), pytest.raises(ValueError, match="shape"):
            mlx_lm.load(str(qwen2_run.model), adapter_path=str(outcome.folder))


def test_dora_on_a_mixture_of_experts_is_refused_in_one_line(qwen3_moe_run: Pipeline, tmp_path: Path) -> None:
    options = qwen3_moe_run.options("train", fine_tune_type="dora")
    with pytest.raises(StageError, match=r"^--fine-tune-type dora: .*doesn't support DoRA"):
        run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"}))


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
