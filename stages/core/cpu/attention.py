"""Scaled dot-product attention that computes its weights again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from stages.core.cpu.blocks import BLOCK, Floats, run_blocks, views

HIDDEN = np.float32(-1e30)  # the score of a position that must not be seen


def make_attention(plain: Callable[..., Any]) -> Callable[..., Any]:
    """An attention with mlx-lm's signature that falls back to `plain` for what it does not cover."""
    import mlx.core as mx

    def attention(
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any = None
    ) -> Any:
        added = isinstance(mask, mx.array) and mask.dtype != mx.bool_  # scores, maybe with a gradient
        if added or sinks is not None or hasattr(cache, "bits") or queries.dtype != mx.float32:
            return plain(queries, keys, values, cache, scale, mask, sinks)
        hidden = _hidden_scores(mask, queries.shape)
        kept: dict[str, Floats] = {}  # from the forward to the backward pass

        @mx.custom_function
        def attend(q: Any, k: Any, v: Any) -> Any:
            q, k, v = views(q, k, v)
            out, kept["log_sums"] = _forward(q, k, v, scale, hidden)
            return mx.array(out)

        @attend.vjp
        def attend_vjp(primals: Any, cotangent: Any, output: Any) -> Any:
            q, k, v, upstream, out = views(*primals, cotangent, output)
            gradients = _backward(q, k, v, upstream, out, kept["log_sums"], scale, hidden)
            return tuple(mx.array(g) for g in gradients)

        return attend(queries, keys, values)

    attention.fast = True  # type: ignore[attr-defined]
    return attention


def _hidden_scores(mask: Any, queries: tuple[int, ...]) -> Floats | None:
    """What is added to the scores of the last keys, broadcastable to (B, H, L, last); None: nothing."""
    if mask is None:
        return None
    if isinstance(mask, str):  # "causal": the last query sees every key, all see those before the first
        return _causal(queries[2])
    seen = np.array(mask)
    return np.where(seen, np.float32(0), HIDDEN).reshape((1,) * (4 - seen.ndim) + seen.shape)


def _causal(length: int) -> Floats:
    return _largest_causal(1 << (length - 1).bit_length())[..., :length, :length]


@lru_cache(maxsize=2)
def _largest_causal(length: int) -> Floats:
    return np.triu(np.full((length, length), HIDDEN, np.float32), 1)[None, None]


def _forward(q: Floats, k: Floats, v: Floats, scale: float, hidden: Floats | None) -> tuple[Floats, Floats]:
    """Attention (B, H, L, D), and the logarithms (B, H, L, 1) of the sums of its softmax."""
    out = np.empty((*q.shape[:3], v.shape[-1]), np.float32)
    log_sums = np.empty((*q.shape[:3], 1), np.float32)

    def work(rows: slice) -> None:
        weights = _scores(q[rows], k[rows], scale, _of_rows(hidden, rows))
        top = weights.max(axis=-1, keepdims=True)
        weights -= top
        np.exp(weights, out=weights)
        sums = weights.sum(axis=-1, keepdims=True)
        result = np.matmul(weights, v[rows])
        result /= sums
        out[rows] = result.reshape(out[rows].shape)
        log_sums[rows] = (np.log(sums) + top).reshape(log_sums[rows].shape)

    run_blocks(work, _row_blocks(q, k))
    return out, log_sums


def _backward(
    q: Floats,
    k: Floats,
    v: Floats,
    upstream: Floats,
    output: Floats,
    log_sums: Floats,
    scale: float,
    hidden: Floats | None,
) -> tuple[Floats, Floats, Floats]:
    """Gradients of q, k and v: softmax's own is p * (dp - sum(dp * p)), and that sum is do . o."""
    groups = k.shape[1]
    d_q, d_k, d_v = (np.empty(x.shape, np.float32) for x in (q, k, v))

    def work(rows: slice) -> None:
        weights = _scores(q[rows], k[rows], scale, _of_rows(hidden, rows))
        weights -= _grouped(log_sums[rows], groups)
        np.exp(weights, out=weights)
        d_out = _grouped(upstream[rows], groups)
        np.matmul(weights.swapaxes(2, 3), d_out, out=d_v[rows])
        d_scores = np.matmul(d_out, v[rows].swapaxes(2, 3))
        d_scores -= (d_out * _grouped(output[rows], groups)).sum(axis=-1, keepdims=True)
        d_scores *= weights
        d_scores *= np.float32(scale)
        d_q[rows] = np.matmul(d_scores, k[rows]).reshape(d_q[rows].shape)
        np.matmul(d_scores.swapaxes(2, 3), _grouped(q[rows], groups), out=d_k[rows])

    run_blocks(work, _row_blocks(q, k))
    return d_q, d_k, d_v


def _scores(q: Floats, k: Floats, scale: float, hidden: Floats | None) -> Floats:
    """Scores (B, G, H/G * L, S) for q (B, H, L, D) and k (B, G, S, D)."""
    scores: Floats = np.matmul(_grouped(q, k.shape[1]) * np.float32(scale), k.swapaxes(2, 3))
    if hidden is not None:
        by_head = scores.reshape(*q.shape[:3], k.shape[2])
        by_head[..., k.shape[2] - hidden.shape[-1] :] += hidden
    return scores


def _grouped(x: Floats, groups: int) -> Floats:
    """(B, H, L, D) as (B, G, H/G * L, D): the heads that share keys are rows of one product."""
    batch, heads, length, width = x.shape
    return np.ascontiguousarray(x).reshape(batch, groups, heads // groups * length, width)


def _row_blocks(q: Floats, k: Floats) -> list[slice]:
    """Stretches of the batch whose scores stay in the processor's cache."""
    batch, heads, length, _ = q.shape
    size = max(BLOCK // (heads * length * k.shape[2]), 1)
    return [slice(start, start + size) for start in range(0, batch, size)]


def _of_rows(hidden: Floats | None, rows: slice) -> Floats | None:
    return hidden if hidden is None or len(hidden) == 1 else hidden[rows]
