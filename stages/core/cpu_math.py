"""Attention, SwiGLU and cross-entropy at NumPy's speed, for models that compute on a Linux CPU.

MLX's CPU backend computes `exp` one element at a time on one thread (about 11 ns each; NumPy needs
0.5 ns), and a small transformer spends half of its time in these three. Here NumPy computes them
and hands them back to MLX with their exact gradients. The backward pass computes the attention
weights again instead of keeping them. Metal and CUDA need none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
HIDDEN = np.float32(-1e30)  # the score of a position that must not be seen
# A training that diverges is reported by its loss, in one line, and not by NumPy's warnings.
quietly = np.errstate(over="ignore", invalid="ignore")


def use_fast_functions(model: Any) -> None:
    """Give the model's architecture the attention and SwiGLU of this module.

    They are exchanged where mlx-lm's models look them up, in the module of the model's class; an
    architecture that uses other functions keeps its own.
    """
    module = sys.modules[type(model).__module__]
    plain = getattr(module, "scaled_dot_product_attention", None)
    if plain is not None and not hasattr(plain, "fast"):
        module.scaled_dot_product_attention = _make_attention(plain)  # type: ignore[attr-defined]
    plain = getattr(module, "swiglu", None)
    if plain is not None and not hasattr(plain, "fast"):
        module.swiglu = _make_swiglu(plain)  # type: ignore[attr-defined]


def _make_attention(plain: Callable[..., Any]) -> Callable[..., Any]:
    """An attention with mlx-lm's signature that falls back to `plain` for what it does not cover."""
    import mlx.core as mx

    def attention(
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any = None
    ) -> Any:
        added = isinstance(mask, mx.array) and mask.dtype != mx.bool_  # scores, maybe with a gradient
        if added or sinks is not None or hasattr(cache, "bits") or queries.dtype != mx.float32:
            return plain(queries, keys, values, cache, scale, mask, sinks)
        seen = _visible(mask, queries.shape, keys.shape)

        @mx.custom_function
        @quietly
        def attend(q: Any, k: Any, v: Any) -> Any:
            queries, keys, values = _views(q, k, v)
            return mx.array(_attend(queries, keys, values, scale, seen))

        @attend.vjp
        @quietly
        def attend_vjp(primals: Any, cotangent: Any, output: Any) -> Any:
            q, k, v, upstream, out = _views(*primals, cotangent, output)
            return tuple(mx.array(g) for g in _attend_back(q, k, v, upstream, out, scale, seen))

        return attend(queries, keys, values)

    attention.fast = True  # type: ignore[attr-defined]
    return attention


def _make_swiglu(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A SwiGLU with mlx-lm's signature that leaves other types than float32 to `plain`."""
    import mlx.core as mx

    @mx.custom_function
    @quietly
    def fast(gate: Any, x: Any) -> Any:
        g, up = _views(gate, x)
        out = _sigmoid(g)
        out *= g
        out *= up
        return mx.array(out)

    @fast.vjp
    @quietly
    def fast_vjp(primals: Any, cotangent: Any, _output: Any) -> Any:
        gate, up, upstream = _views(*primals, cotangent)
        sigmoid = _sigmoid(gate)
        silu = gate * sigmoid
        slope = 1 - sigmoid
        slope *= silu
        slope += sigmoid
        slope *= upstream
        slope *= up
        silu *= upstream
        return mx.array(slope), mx.array(silu)

    def swiglu(gate: Any, x: Any) -> Any:
        return fast(gate, x) if gate.dtype == x.dtype == mx.float32 else plain(gate, x)

    swiglu.fast = True  # type: ignore[attr-defined]
    return swiglu


@cache
def make_cross_entropy() -> Callable[..., Any]:
    """Cross-entropy in nats, (M,), of logits (M, V) and targets (M,)."""
    import mlx.core as mx

    @mx.custom_function
    @quietly
    def cross_entropy(logits: Any, targets: Any) -> Any:
        scores, wanted = _views(logits, targets)
        top = scores.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(scores, wanted[:, None], axis=-1)[:, 0]
        return mx.array(np.log(np.exp(scores - top).sum(axis=-1)) + top[:, 0] - chosen)

    @cross_entropy.vjp
    @quietly
    def cross_entropy_vjp(primals: Any, cotangent: Any, _output: Any) -> Any:
        scores, wanted, upstream = _views(*primals, cotangent)
        slope = scores - scores.max(axis=-1, keepdims=True)
        np.exp(slope, out=slope)
        slope /= slope.sum(axis=-1, keepdims=True)
        slope[np.arange(len(wanted)), wanted] -= 1
        slope *= upstream[:, None]
        return mx.array(slope), mx.zeros_like(primals[1])

    return cross_entropy


def _views(*arrays: Any) -> Any:
    """MLX arrays as NumPy arrays over the same memory."""
    import mlx.core as mx

    mx.eval(*arrays)
    return tuple(np.array(a, copy=False) for a in arrays)


def _sigmoid(x: Floats) -> Floats:
    out = np.clip(x, -80.0, 80.0)  # beyond it float32 is 0 or 1 all the same
    np.negative(out, out=out)
    np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)


def _visible(mask: Any, queries: tuple[int, ...], keys: tuple[int, ...]) -> Bools | None:
    """Which key each query sees, broadcastable to (B, H, L, S); None: all of them."""
    if mask is None:
        return None
    length, total = queries[2], keys[2]
    if isinstance(mask, str):  # "causal": the last query sees every key
        return np.tri(length, total, total - length, dtype=np.bool_)[None, None]
    seen: Bools = np.array(mask)
    return seen.reshape((1,) * (4 - seen.ndim) + seen.shape)


def _grouped(x: Floats, groups: int) -> Floats:
    """(B, H, L, D) as (B, G, H/G * L, D): the heads that share keys are rows of one product."""
    batch, heads, length, width = x.shape
    return np.ascontiguousarray(x).reshape(batch, groups, heads // groups * length, width)


def _weights(q: Floats, k: Floats, scale: float, seen: Bools | None) -> Floats:
    """Attention weights (B, G, H/G * L, S) for q (B, H, L, D) and k (B, G, S, D)."""
    batch, heads, length, _ = q.shape
    groups, total = k.shape[1:3]
    scores: Floats = np.matmul(_grouped(q, groups) * np.float32(scale), k.swapaxes(2, 3))
    if seen is not None:
        np.copyto(scores.reshape(batch, heads, length, total), HIDDEN, where=~seen)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _attend(q: Floats, k: Floats, v: Floats, scale: float, seen: Bools | None) -> Floats:
    out: Floats = np.matmul(_weights(q, k, scale, seen), v)
    return out.reshape(*q.shape[:3], v.shape[-1])


def _attend_back(
    q: Floats, k: Floats, v: Floats, upstream: Floats, output: Floats, scale: float, seen: Bools | None
) -> tuple[Floats, Floats, Floats]:
    """Gradients of q, k and v: softmax's own is p * (dp - sum(dp * p)), and that sum is do . o."""
    groups = k.shape[1]
    weights = _weights(q, k, scale, seen)
    d_out = _grouped(upstream, groups)
    d_v = np.matmul(weights.swapaxes(2, 3), d_out)
    d_scores: Floats = np.matmul(d_out, v.swapaxes(2, 3))
    d_scores -= (d_out * _grouped(output, groups)).sum(axis=-1, keepdims=True)
    d_scores *= weights
    d_scores *= np.float32(scale)
    d_q = np.matmul(d_scores, k).reshape(q.shape)
    d_k = np.matmul(d_scores.swapaxes(2, 3), _grouped(q, groups))
    return d_q, d_k, d_v
