"""What the options of training do: accumulation, clipping, weights of calls, the choice of the adapter."""

from __future__ import annotations

import math
import os
import shutil
import signal
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
from stages.train.loop import Run, draw_seed, train_adapter
from stages.train.loss import Losses, count_losses, count_validation, weighted_loss
from stages.train.memory import choose_checkpointing, estimate_gb
from stages.train.optimizer import clip_gradient
from stages.train.ranks import Ranks
from stages.train.recipe import make_recipe
from stages.train.rows import count_alike, make_batch, shared_prefix
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
    parts = run.rows_of(0)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert len({row for part in parts for row in part}) == 6
    assert run.rows_of(1)[0] == run.plan.rows_of(3)
    rows = [run.train[i] for part in parts for i in part]
    batch = make_batch(rows, run.trunk.size)
    compute = value_and_grad(run.model, partial(weighted_loss, run.split))
    hidden = run.trunk.hidden(rows, mx.array(batch.inputs))
    (total, _), gradient = compute(run.trunk.prefix, hidden, batch)
    expected = dict(tree_flatten(tree_map(lambda g: g / len(batch.where), gradient)))
    losses, tokens, stopped = run.step(0)
    assert (losses.tokens, tokens, stopped) == (len(batch.where), batch.tokens, False)
    assert losses.total == pytest.approx(total.item(), rel=1e-5)
    state = dict(tree_flatten(run.optimizer.state))
    for name, slope in expected.items():
        first = state[f"{name}.m"] / 0.1  # AdamW's first moment after one step is a tenth of the gradient
        assert float(mx.abs(first - slope).max()) < 1e-4 * float(mx.abs(slope).max()) + 1e-9


def test_clipping() -> None:
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
    rows = [row for row in run.train if max(row.calls) >= 0][:2]
    batch = make_batch(rows, run.trunk.size)
    hidden = run.trunk.hidden(rows, mx.array(batch.inputs))
    plain, losses = weighted_loss(run.split, run.trunk.prefix, hidden, batch)
    sums = count_losses(losses, batch)
    assert 0 < sums.call_tokens < sums.tokens
    assert plain.item() == pytest.approx(sums.total, rel=1e-5)
    heavy, _ = weighted_loss(run.split, run.trunk.prefix, hidden, batch, call_weight=3.0)
    assert heavy.item() == pytest.approx(sums.total + 2 * sums.call_total, rel=1e-5)


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
    run.model.eval()
    rows = []
    for start, slip in ((run.train[0], False), (run.train[1], False), (run.train[2], True)):
        prompt = start.tokens[: start.supervised.index(True)]
        steps = generate_step(mx.array(prompt), run.model, max_tokens=12, sampler=make_sampler(0.0))
        call = [int(token) for token, _ in steps]
        call[6] += slip
        learned = [False] * len(prompt) + [True] * len(call)
        rows.append(Encoded(prompt + call, learned, [0 if s else -1 for s in learned]))
    batch = make_batch(rows, run.trunk.size)
    hidden = run.trunk.hidden(rows, mx.array(batch.inputs))
    sums = count_validation(run.split, run.trunk.prefix, hidden, batch)
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
    kept: Any = mx.load(str(outcome.folder / "adapters.safetensors"))
    chosen: Any = mx.load(str(outcome.folder / "best" / "adapters.safetensors"))
    assert all(mx.array_equal(kept[name], chosen[name]) for name in kept)
    last: Any = mx.load(str(sorted((outcome.folder / "checkpoints").iterdir())[-1] / "adapters.safetensors"))
    assert not all(mx.array_equal(kept[name], last[name]) for name in kept)


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
    qwen3_moe_run.folder("convert_data")
    options = qwen3_moe_run.options("train", fine_tune_type="dora")
    with pytest.raises(StageError, match=r"^--fine-tune-type dora: .*doesn't support DoRA"):
        run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"}))


def test_memory_decides_on_checkpointing(
    qwen2_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(qwen2_run, tmp_path)
    plain, lean = (estimate_gb(run.model, run.setup, run.train, checkpoint=c) for c in (False, True))
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
    plain, lean = (estimate_gb(run.model, half, run.train, checkpoint=c) for c in (False, True))
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


def test_a_validation_that_a_stop_cuts_short_is_done_when_the_run_goes_on(
    qwen2_run: Pipeline, tmp_path: Path
) -> None:
    options = {"iters": 12, "eval_every": 10, "save_every": 100, "num_layers": 1}
    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
    with pytest.raises(KeyboardInterrupt):
        train_adapter(make_run(qwen2_run, tmp_path / "stopped", **options), StopsAt())
    stopped = make_run(qwen2_run, tmp_path / "stopped", **options)
    ended = train_adapter(stopped)
    whole = train_adapter(make_run(qwen2_run, tmp_path / "whole", **options))
    logs = [read_lines(tmp_path / name / "log.jsonl", LossPoint) for name in ("stopped", "whole")]
    losses = [[(point.step, point.kind, point.loss) for point in log] for log in logs]
    assert losses[0] == losses[1]
    assert [step for step, kind, _ in losses[0] if kind == "valid"] == [0, 10, 12]
    assert (ended.best_step, ended.validated) == (whole.best_step, 12)


def test_an_early_end_that_was_killed_is_not_trained_on(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """A rate that changes nothing: the run ends by its patience, and is killed before it is in place."""
    setup = {"iters": 30, "learning_rate": 1e-30, "eval_every": 2, "choose_by": "loss", "patience": 2}
    first = make_run(qwen2_run, tmp_path, **setup)
    ended = train_adapter(first)
    assert (ended.step, ended.best_step, ended.waiting) == (4, 0, 2)
    first.checkpoints.drop_optimizers()
    again = make_run(qwen2_run, tmp_path, **setup)
    assert train_adapter(again) == ended
    assert all(mx.array_equal(array, trained(again)[name]) for name, array in trained(first).items())


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
    refuse_run(
        options(patience=2), place / "out", r"^--patience 2 ends a run .* add --choose-by loss or calls$"
    )
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


def test_a_run_that_saved_nothing_blocks_no_other(qwen2_run: Pipeline, tmp_path: Path) -> None:
    options = qwen2_run.options("train", learning_rate=1e30, num_layers=1, save_every=100)
    reason = r"in step 2, rows .*: lower --learning-rate or set --clip-norm 1; no checkpoint was due yet$"
    with pytest.raises(StageError, match=reason):
        run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"}))
    assert (tmp_path / ".out.partial" / "log.jsonl").is_file()
    options = qwen2_run.options("train", iters=1, num_layers=1)
    assert not run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"})).up_to_date


def test_a_choice_by_calls_needs_calls(qwen2_run: Pipeline, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(qwen2_run.folder("convert_data"), data)
    lines = (data / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (data / "valid.jsonl").write_text("".join(line for line in lines if "tool_calls" not in line), "utf-8")
    options = qwen2_run.options("train", choose_by="calls")
    options = type(options)(**vars(options) | {"data": data})
    refuse_run(options, tmp_path / "out", r"^--choose-by calls: no row of valid has a call")


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


def test_rows_that_begin_in_another_way_are_counted(qwen2_run: Pipeline) -> None:
    rows = encode_pipeline_rows(qwen2_run)
    size = len(shared_prefix(rows))
    assert count_alike(rows) == (size, 0)
    odd = Encoded([7, *rows[0].tokens], [False, *rows[0].supervised], [-1, *rows[0].calls])
    assert len(shared_prefix([*rows, odd])) == 0
    assert count_alike([*rows, odd]) == (size, 1)
    assert count_alike([*rows, odd], share=1.0) == (0, 0)


def test_sums_add_up_and_go_through_numbers() -> None:
    one, two = Losses(1.5, 3, 0.5, 1, 1, 2), Losses(2.5, 5, 0.0, 0, 0, 1)
    both = one + two
    assert both == Losses(4.0, 8, 0.5, 1, 1, 3)
    assert Losses.from_numbers([4.0, 8.0, 0.5, 1.0, 1.0, 3.0]) == both
    assert Losses.from_numbers([]) == Losses()
    assert (both.mean, both.call_mean, two.call_mean) == (0.5, 0.5, None)
    assert math.isfinite(Losses().mean)
