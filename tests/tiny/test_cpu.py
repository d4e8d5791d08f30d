"""What NumPy computes on a CPU is what MLX computes, in value and in gradient."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx.nn.layers.linear import Linear
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import create_causal_mask, scaled_dot_product_attention
from mlx_lm.models.cache import QuantizedKVCache
from mlx_lm.tuner.lora import LoRALinear

from stages.core.compute import load_model
from stages.core.cpu import blocks, head_cross_entropy, linear, score_targets
from stages.core.cpu.attention import make_attention
from stages.core.cpu.swiglu import make_swiglu
from tests.models import BuiltOnce
from tests.pipeline import stock_functions

FAST = make_attention(scaled_dot_product_attention)
SWIGLU = make_swiglu(swiglu)


def draw(seed: int, *shape: int, spread: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng([seed, *shape]).normal(scale=spread, size=shape).astype(np.float32))


def assert_equal(found: Any, expected: Any, size: float = 1.0) -> None:
    """Equal in float32; `size` is that of the terms whose sum may be small."""
    found, expected = np.array(found), np.array(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 * max(size, np.abs(expected).max()))


def compare_attention(q: mx.array, k: mx.array, v: mx.array, mask: Any, scale: float) -> None:
    """Value and the gradients of q, k and v, through a loss that weighs every element differently."""
    weight = draw(9, *q.shape[:3], v.shape[-1])

    def run(attention: Any) -> tuple[Any, ...]:
        def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            total: mx.array = (attention(q, k, v, None, scale, mask) * weight).sum()
            return total

        value = attention(q, k, v, None, scale, mask)
        gradients = mx.grad(loss, argnums=(0, 1, 2))(q, k, v)
        mx.eval(value, gradients)
        return (value, *gradients)

    for found, expected in zip(run(FAST), run(scaled_dot_product_attention), strict=True):
        assert_equal(found, expected, max(1.0, float(mx.abs(q).max() * mx.abs(k).max())))


def make_mask(kind: str, batch: int, length: int, total: int) -> Any:
    offset = total - length
    if kind == "none":
        return None
    if kind == "causal":
        return "causal"
    if kind == "bool":
        return create_causal_mask(length, offset=offset)
    padding = mx.array([row % (offset + 1) for row in range(batch)])  # left padding, as in a batch of prompts
    seen = create_causal_mask(length, offset=offset, left_padding=padding)
    if kind == "padded":
        return seen
    hidden = mx.array(-math.inf if kind == "additive" else -1e9, mx.float32)
    return mx.where(seen, draw(7, *seen.shape), hidden)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["none", "causal", "bool", "padded", "additive", "additive, finite"]),
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    share=st.integers(1, 4),
    length=st.integers(1, 9),
    offset=st.integers(0, 7),
    width=st.sampled_from([(8, 8), (16, 16), (16, 8)]),
    spread=st.sampled_from([0.1, 1.0, 6.0]),
)
@example(kind="causal", batch=2, groups=2, share=2, length=1, offset=6, width=(16, 16), spread=1.0)
@example(kind="padded", batch=3, groups=1, share=3, length=5, offset=4, width=(8, 8), spread=1.0)
def test_attention(
    kind: str,
    batch: int,
    groups: int,
    share: int,
    length: int,
    offset: int,
    width: tuple[int, int],
    spread: float,
) -> None:
    total = length + offset
    q = draw(1, batch, groups * share, length, width[0], spread=spread)
    k = draw(2, batch, groups, total, width[0], spread=spread)
    v = draw(3, batch, groups, total, width[1])
    compare_attention(q, k, v, make_mask(kind, batch, length, total), width[0] ** -0.5)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["none", "causal", "bool", "padded"]),
    batch=st.integers(1, 5),
    groups=st.integers(1, 2),
    share=st.integers(1, 3),
    length=st.integers(1, 6),
    prefix=st.integers(1, 7),
    spread=st.sampled_from([0.1, 1.0, 6.0]),
)
@example(kind="padded", batch=70, groups=2, share=3, length=1, prefix=5, spread=1.0)
def test_a_prefix_apart_is_one_that_lies_under_each_row(
    kind: str, batch: int, groups: int, share: int, length: int, prefix: int, spread: float
) -> None:
    """Value and all gradients, those of the prefix summed over the rows that see it."""
    total = length + 3
    q = draw(1, batch, groups * share, length, 8, spread=spread)
    k, v = draw(2, batch, groups, total, 8, spread=spread), draw(3, batch, groups, total, 8)
    before = draw(4, 1, groups, prefix, 8, spread=spread), draw(5, 1, groups, prefix, 8)
    mask, weight = make_mask(kind, batch, length, total), draw(9, *q.shape)

    def apart(q: mx.array, k: mx.array, v: mx.array, *before: mx.array) -> Any:
        return FAST(q, k, v, SimpleNamespace(prefix=before), 0.3, mask)

    def under(q: mx.array, k: mx.array, v: mx.array, *before: mx.array) -> Any:
        seen = mask
        if isinstance(mask, mx.array):
            seen = mx.concatenate([mx.ones((*mask.shape[:-1], prefix), mx.bool_), mask], axis=-1)
        keys, values = (
            mx.concatenate([mx.repeat(one, batch, axis=0), own], axis=2)
            for one, own in zip(before, (k, v), strict=True)
        )
        return scaled_dot_product_attention(q, keys, values, None, 0.3, seen)

    size = max(1.0, float(mx.abs(q).max() * mx.abs(k).max()))
    given_ = (q, k, v, *before)
    assert_equal(apart(*given_), under(*given_), size)
    found, expected = (
        mx.grad(lambda *x, f=function: (f(*x) * weight).sum(), argnums=tuple(range(5)))(*given_)
        for function in (apart, under)
    )
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other, size * batch)


@pytest.mark.parametrize("kind", ["none", "causal", "padded", "additive"])
def test_a_prefix_lies_under_each_row_where_mlx_computes(kind: str) -> None:
    q, k, v = draw(1, 2, 4, 3, 8), draw(2, 2, 2, 5, 8), draw(3, 2, 2, 5, 8)
    before = draw(4, 1, 2, 6, 8), draw(5, 1, 2, 6, 8)
    mask, sinks = make_mask(kind, 2, 3, 5), draw(6, 4)
    wide = mask
    if isinstance(mask, mx.array):
        see = mx.zeros if kind == "additive" else mx.ones
        wide = mx.concatenate([see((*mask.shape[:-1], 6), mask.dtype), mask], axis=-1)
    keys, values = (
        mx.concatenate([mx.repeat(one, 2, axis=0), own], axis=2)
        for one, own in zip(before, (k, v), strict=True)
    )
    expected = scaled_dot_product_attention(q, keys, values, None, 0.3, wide, sinks)
    found = FAST(q, k, v, SimpleNamespace(prefix=before), 0.3, mask, sinks=sinks)
    assert_equal(found, expected)


def test_attention_takes_views_that_are_not_contiguous() -> None:
    """Heads are split by a transposition, and a cache hands out the filled part of a larger array."""
    q = draw(1, 2, 5, 4 * 8).reshape(2, 5, 4, 8).transpose(0, 2, 1, 3)
    k, v = (draw(seed, 2, 2, 20, 8)[..., 3:12, :] for seed in (2, 3))
    compare_attention(q, k, v, "causal", 0.3)


def test_attention_leaves_to_mlx_what_it_does_not_cover() -> None:
    q, k, v = draw(1, 1, 4, 3, 64), draw(2, 1, 2, 3, 64), draw(3, 1, 2, 3, 64)
    halves = [a.astype(mx.bfloat16) for a in (q, k, v)]
    expected = scaled_dot_product_attention(*halves, None, 0.1, "causal")
    assert mx.array_equal(FAST(*halves, None, 0.1, "causal"), expected)
    sinks = draw(4, 4)
    expected = scaled_dot_product_attention(q, k, v, None, 0.1, "causal", sinks)
    assert mx.array_equal(FAST(q, k, v, None, 0.1, "causal", sinks=sinks), expected)
    cache = QuantizedKVCache(group_size=64, bits=8)
    keys, values = cache.update_and_fetch(k, v)
    # mlx-lm scales the queries in place here, so each call gets its own.
    expected = scaled_dot_product_attention(q + 0, keys, values, cache, 0.1, "causal")
    assert mx.array_equal(FAST(q + 0, keys, values, cache=cache, scale=0.1, mask="causal"), expected)


def test_scores_that_are_added_have_their_gradient() -> None:
    """DeepSeek's attention passes a part of its scores as the mask."""
    q, k, v, bias = draw(1, 1, 2, 3, 8), draw(2, 1, 2, 3, 8), draw(3, 1, 2, 3, 8), draw(4, 1, 2, 3, 3)

    def gradient(attention: Any) -> mx.array:
        found: mx.array = mx.grad(lambda mask: (attention(q, k, v, None, 0.3, mask) * v).sum())(bias)
        return found

    assert float(mx.abs(gradient(FAST)).max()) > 1e-3
    assert_equal(gradient(FAST), gradient(scaled_dot_product_attention))


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0, 300.0])
def test_swiglu(spread: float) -> None:
    gate, x, weight = draw(1, 2, 7, 33, spread=spread), draw(2, 2, 7, 33), draw(3, 2, 7, 33)

    def run(function: Any) -> tuple[Any, ...]:
        gradients = mx.grad(lambda g, u: (function(g, u) * weight).sum(), argnums=(0, 1))(gate, x)
        return function(gate, x), *gradients

    plain = run(lambda g, u: g * mx.sigmoid(g) * u)  # not compiled: a compiler is no part of the comparison
    for found, expected in zip(run(SWIGLU), plain, strict=True):
        assert_equal(found, expected)
    halves = gate.astype(mx.bfloat16), x.astype(mx.bfloat16)
    assert mx.array_equal(SWIGLU(*halves), swiglu(*halves))


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_cross_entropy_behind_a_head(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.core.cpu.head.LOGITS", 301 * 4)  # three blocks of rows
    states, weight, shares = draw(1, 11, 24, spread=spread), draw(2, 301, 24), draw(3, 11)
    targets = mx.array(np.random.default_rng(0).integers(0, 301, 11).astype(np.int32))

    def plain(states: mx.array) -> Any:
        losses: Any = nn.losses.cross_entropy(states @ weight.T, targets)
        return losses

    def run(function: Any) -> tuple[Any, Any]:
        return function(states), mx.grad(lambda x: (function(x) * shares).sum())(states)

    found, expected = run(lambda x: head_cross_entropy(x, weight, targets)), run(plain)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other, float(mx.abs(states @ weight.T).max()))
    targets = mx.where(mx.arange(11) < 4, mx.argmax(states @ weight.T, axis=-1), targets).astype(mx.int32)
    losses, right = score_targets(states, weight, targets)
    assert_equal(losses, plain(states), float(mx.abs(states @ weight.T).max()))
    assert right.tolist() == (mx.argmax(states @ weight.T, axis=-1) == targets).tolist()
    assert 4 <= right.sum() < 11


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [5, 1000])
def test_lora_and_frozen_layers(rows: int, bias: bool) -> None:
    layer = LoRALinear.from_base(Linear(24, 40, bias=bias), r=3, scale=1.7)
    layer.lora_b = draw(1, 3, 40)
    layer.freeze()
    layer.unfreeze(keys=["lora_a", "lora_b"])
    layer.linear.freeze()
    x, shares = draw(2, 2, rows, 24), draw(3, 2, rows, 40)

    def run() -> list[Any]:
        def of_lora(x: mx.array, a: mx.array, b: mx.array) -> Any:
            layer.lora_a, layer.lora_b = a, b
            return (layer(x) * shares).sum()

        a, b = layer.lora_a, layer.lora_b
        value = layer(x), layer.linear(x)
        gradients = mx.grad(of_lora, argnums=(0, 1, 2))(x, a, b)
        layer.lora_a, layer.lora_b = a, b
        return [*value, *gradients, mx.grad(lambda x: (layer.linear(x) * shares).sum())(x)]

    linear.use_fast_linear()
    found = run()
    with stock_functions():
        expected = run()
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other, float(mx.abs(other).max()))


def test_a_layer_that_is_trained_or_drops_is_left_alone() -> None:
    linear.use_fast_linear()
    layer = Linear(8, 8)
    gradient: Any = mx.grad(lambda w: layer.update({"weight": w})(draw(1, 900, 8)).sum())(layer.weight)
    assert float(mx.abs(gradient).max()) > 0.1
    dropping = LoRALinear.from_base(layer, r=2, dropout=0.5)
    dropping.lora_b = draw(2, 2, 8)
    layer.freeze()
    x = draw(3, 4, 8)
    assert not mx.array_equal(dropping(x), dropping(x))


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LoRALinear.from_base(Linear(64, 48), r=4)
    layer.linear.freeze()
    layer.lora_b = draw(1, 4, 48)
    x = draw(2, 3000, 64)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv(blocks.THREADS, threads)
        blocks._threads.cache_clear()
        gradient = mx.grad(lambda a: (linear._make_adapted(layer.linear, 2.0)(x, a, layer.lora_b) ** 2).sum())
        results.append(gradient(layer.lora_a))
    blocks._threads.cache_clear()
    assert mx.array_equal(*results)


def test_a_loaded_model_has_the_fast_functions_once(built: BuiltOnce) -> None:
    from mlx_lm.models import qwen2

    load_model(built.model("qwen2"))
    first = (qwen2.scaled_dot_product_attention, qwen2.swiglu)
    assert all(hasattr(function, "fast") for function in first)
    load_model(built.model("qwen2"))
    assert (qwen2.scaled_dot_product_attention, qwen2.swiglu) == first
    assert not hasattr(scaled_dot_product_attention, "fast")
