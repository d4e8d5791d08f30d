"""NumPy's attention, SwiGLU and cross-entropy are MLX's own, in value and in gradient."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import create_causal_mask, scaled_dot_product_attention
from mlx_lm.models.cache import QuantizedKVCache

from stages.core.compute import load_model
from stages.core.cpu_math import _make_attention, _make_swiglu, make_cross_entropy
from tests.models import BuiltOnce

FAST = _make_attention(scaled_dot_product_attention)
SWIGLU = _make_swiglu(swiglu)


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


@settings(max_examples=60, deadline=None)
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


@pytest.mark.parametrize("spread", [0.01, 1.0, 50.0, 1e4])
def test_cross_entropy(spread: float) -> None:
    logits, weight = draw(1, 11, 301, spread=spread), draw(2, 11)
    targets = mx.array(np.random.default_rng(0).integers(0, 301, 11).astype(np.int32))

    def run(function: Any) -> tuple[Any, Any]:
        return function(logits, targets), mx.grad(lambda a: (function(a, targets) * weight).sum())(logits)

    for found, expected in zip(run(make_cross_entropy()), run(nn.losses.cross_entropy), strict=True):
        assert_equal(found, expected)


def test_a_loaded_model_has_the_fast_functions_once(built: BuiltOnce) -> None:
    from mlx_lm.models import qwen2

    load_model(built.model("qwen2"))
    first = (qwen2.scaled_dot_product_attention, qwen2.swiglu)
    assert all(hasattr(function, "fast") for function in first)
    load_model(built.model("qwen2"))
    assert (qwen2.scaled_dot_product_attention, qwen2.swiglu) == first
    assert not hasattr(scaled_dot_product_attention, "fast")
