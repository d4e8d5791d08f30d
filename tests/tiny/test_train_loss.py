"""The loss and the gradient of a step: fast, and those of the plain computation."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

from stages.core.errors import StageError
from stages.core.preset import load_preset
from stages.core.render import Encoded, find_turns
from stages.core.tokenizer import load_tokenizer
from stages.train.adapter import load_trainable
from stages.train.loop import Run, draw_seed
from stages.train.loss import Losses, count_losses, count_validation, plain_loss, weighted_loss
from stages.train.optimizer import clip_gradient
from stages.train.prefixes import shared_prefix
from stages.train.rows import load_rows, make_batch
from stages.train.split import SplitModel
from stages.train.stage import describe_beginnings
from tests.models import KINDS, BuiltOnce, Kind
from tests.pipeline import Pipeline, stock_functions
from tests.training import (
    begin,
    encode_pipeline_rows,
    make_run,
    make_setup,
    prepare_run,
    trained,
)


def whole_loss(model: Any, rows: Sequence[Encoded]) -> mx.array:
    """The summed loss row by row through the whole model, with mlx-lm's and MLX's own functions."""
    total = mx.array(0.0)
    for row in rows:
        logits = model(mx.array([row.tokens[:-1]]))[0]
        losses = nn.losses.cross_entropy(logits, mx.array(row.tokens[1:]))
        total = total + (losses * mx.array(row.supervised[1:])).sum()
    return total


@pytest.mark.parametrize("layers", [1, 2], ids=["frozen layer below", "all layers trained"])
@pytest.mark.parametrize("kind", KINDS)
def test_fast_loss_and_gradient_are_the_plain_ones(
    kind: Kind, layers: int, built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    run = prepare_run(kind, layers, built, qwen2_run, tmp_path)
    by_length = {len(row.tokens): row for row in run.train}
    rows = [by_length[length] for length in sorted(by_length)[:2]]
    (trunk,) = run.trunks
    assert trunk.size > 5
    with stock_functions():
        plain, plain_gradient = value_and_grad(run.model, whole_loss)(run.model, rows)
        mx.eval(plain, plain_gradient)
    batch = make_batch(rows, trunk.size)
    for checkpoint in (False, True):  # the second time also from the hidden states that were kept
        hidden = trunk.hidden(rows, mx.array(batch.inputs))
        split = SplitModel(run.model, layers, checkpoint=checkpoint)
        compute = value_and_grad(run.model, partial(weighted_loss, split))
        (fast, _), gradient = compute(trunk.prefix, hidden, batch)
        mx.eval(fast, gradient)
        assert fast.item() == pytest.approx(plain.item(), rel=1e-5)
        expected, found = dict(tree_flatten(plain_gradient)), dict(tree_flatten(gradient))
        assert expected.keys() == found.keys()
        assert len(expected) == layers * {"qwen2": 14, "qwen3_moe": 16, "llama": 14}[kind]
        for name, value in expected.items():
            largest = float(mx.abs(value).max())
            assert largest > 1e-4, name
            assert float(mx.abs(value - found[name]).max()) < 1e-4 * largest, name
    assert plain_loss(run.model, rows) == pytest.approx(plain.item(), rel=1e-5)
    with stock_functions():  # as on a GPU: the prefix lies under each row
        split = SplitModel(run.model, layers)
        fast, _ = weighted_loss(split, trunk.prefix, hidden, batch)
        assert fast.item() == pytest.approx(plain.item(), rel=1e-5)


def test_kept_states_serve_rows_in_another_batch(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    (trunk,) = run.trunks
    first, second, third = run.train[0], run.train[4], run.train[1]
    for rows in ([first, second], [third, first], [second, third], [first, second, third]):
        batch = make_batch(rows, trunk.size)
        hidden = trunk.hidden(rows, mx.array(batch.inputs))
        fast = weighted_loss(run.split, trunk.prefix, hidden, batch)[0].item()
        assert fast == pytest.approx(plain_loss(run.model, rows), rel=1e-5)


def cut_row(row: Encoded, start: int) -> Encoded:
    return Encoded(row.tokens[start:], row.supervised[start:], row.calls[start:])


def test_rows_without_a_common_beginning(built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    rows = [run.train[0], cut_row(run.train[1], 3)]
    alone = Run(run.model, run.setup, 0, rows, rows, tmp_path)
    (trunk,) = alone.trunks
    assert (trunk.size, trunk.prefix) == (0, None)
    batch = make_batch(rows, 0)
    fast = weighted_loss(alone.split, None, trunk.hidden(rows, mx.array(batch.inputs)), batch)[0].item()
    assert fast == pytest.approx(plain_loss(run.model, rows), rel=1e-5)


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


def first_gradient(run: Run) -> dict[str, mx.array]:
    """That of the only step so far: AdamW's first moment is then a tenth of it."""
    state = dict(tree_flatten(run.optimizer.state))
    return {name: state[f"{name}.m"] / 0.1 for name in trained(run)}


def assert_same(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert found.keys() == expected.keys()
    for name, slope in expected.items():
        assert float(mx.abs(found[name] - slope).max()) < 1e-4 * float(mx.abs(slope).max()) + 1e-9, name


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


def test_a_model_that_the_fast_loss_does_not_fit_is_refused(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    """Gemma scales its embeddings outside of its layers, which the split does not know."""
    from mlx_lm.models import gemma
    from mlx_lm.utils import save_config, save_model

    llama = built.model("llama")
    config = json.loads((llama / "config.json").read_text("utf-8"))
    config = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    config |= {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "head_dim": 16}
    mx.random.seed(0)
    folder = tmp_path / "gemma"
    folder.mkdir()
    save_model(folder, gemma.Model(gemma.ModelArgs.from_dict(config)))
    save_config(config, folder / "config.json")
    tokenizer = load_tokenizer(llama, load_preset("smol").model)
    data = qwen2_run.folder("convert_data")
    rows = load_rows(data, "train", tokenizer, find_turns(tokenizer), 1024)
    run = Run(load_trainable(folder, make_setup()), make_setup(), 0, rows, rows, tmp_path)
    with pytest.raises(StageError, match=r"^the fast loss .* train cannot do this architecture yet$"):
        run.verify()


def test_a_model_with_a_sliding_window_is_refused_when_it_is_loaded(built: BuiltOnce, tmp_path: Path) -> None:
    folder = tmp_path / "sliding"
    shutil.copytree(built.model("llama"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(StageError, match=r"^this architecture has layers with a sliding window"):
        load_trainable(folder, make_setup(num_layers=1))


def test_a_long_row_is_not_computed_the_plain_way(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    """Whose logits alone would take more memory than its training."""
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    middle = run.train[0].tokens[-20:]
    long = [replace_tokens(row, row.tokens[:-20] + middle * 40 + row.tokens[-20:]) for row in run.train[:2]]
    logits = 4 * len(long[0].tokens) * run.split.head.weight.shape[0]
    alone = Run(run.model, run.setup, 0, [*long, *run.train[2:]], run.valid, tmp_path)
    gc.collect()  # what earlier tests left would go at any moment
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    alone.verify()
    assert 0 < mx.get_peak_memory() - before < logits


def replace_tokens(row: Encoded, tokens: list[int]) -> Encoded:
    """The row with more tokens in its middle, none of them learned."""
    more = len(tokens) - len(row.tokens)
    at = row.supervised.index(True)
    supervised = row.supervised[:at] + [False] * more + row.supervised[at:]
    return Encoded(tokens, supervised, row.calls[:at] + [-1] * more + row.calls[at:])


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


def test_sums_add_up_and_go_through_numbers() -> None:
    one, two = Losses(1.5, 3, 0.5, 1, 1, 2), Losses(2.5, 5, 0.0, 0, 0, 1)
    both = one + two
    assert both == Losses(4.0, 8, 0.5, 1, 1, 3)
    assert Losses.from_numbers([4.0, 8.0, 0.5, 1.0, 1.0, 3.0]) == both
    assert Losses.from_numbers([]) == Losses()
    assert (both.mean, both.call_mean, two.call_mean) == (0.5, 0.5, None)
    assert math.isfinite(Losses().mean)
