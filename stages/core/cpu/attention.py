"""Scaled dot-product attention that computes its weights again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from stages.core.cpu.blocks import BLOCK, Floats, cut, run_blocks, views

HIDDEN = np.float32(-1e30)  # the score of a position that must not be seen


def make_attention(plain: Callable[..., Any]) -> Callable[..., Any]:
    """An attention with mlx-lm's signature that falls back to `plain` for what it does not cover.

    A cache may have a `prefix`: keys and values (1, G, P, D) that every query of every row sees before
    those that it is given, and that are kept once for all rows.
    """
    import mlx.core as mx

    def attention(
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any = None
    ) -> Any:
        prefix = getattr(cache, "prefix", None)
        added = isinstance(mask, mx.array) and mask.dtype != mx.bool_  # scores, maybe with a gradient
        if added or sinks is not None or hasattr(cache, "bits") or queries.dtype != mx.float32:
            if prefix is not None:
                mask = _widen(mask, prefix[0].shape[2])
                keys, values = (lay_under(*pair) for pair in zip(prefix, (keys, values), strict=True))
            return plain(queries, keys, values, cache, scale, mask, sinks)
        hidden = _hidden_scores(mask, queries.shape)
        kept: dict[str, Floats] = {}  # from the forward to the backward pass

        @mx.custom_function
        def attend(q: Any, *seen: Any) -> Any:
            q, *seen = views(q, *seen)
            out, kept["log_sums"] = _forward(q, _list_parts(seen, hidden), scale)
            return mx.array(out)

        @attend.vjp
        def attend_vjp(primals: Any, cotangent: Any, output: Any) -> Any:
            q, *seen, upstream, out = views(*primals, cotangent, output)
            gradients = _backward(q, _list_parts(seen, hidden), upstream, out, kept["log_sums"], scale)
            return tuple(mx.array(g) for g in gradients)

        return attend(queries, keys, values, *(prefix or ()))

    attention.fast = True  # type: ignore[attr-defined]
    return attention


def lay_under(prefix: Any, rows: Any) -> Any:
    """A prefix's keys or values (1, G, P, D) before those of each row (B, G, S, D)."""
    import mlx.core as mx

    return mx.concatenate([mx.broadcast_to(prefix, (rows.shape[0], *prefix.shape[1:])), rows], axis=2)


def _widen(mask: Any, prefix: int) -> Any:
    """A mask whose queries see the prefix as well."""
    import mlx.core as mx

    if not isinstance(mask, mx.array):
        return mask
    seen = mx.array(True) if mask.dtype == mx.bool_ else mx.array(0, mask.dtype)
    return mx.concatenate([mx.broadcast_to(seen, (*mask.shape[:-1], prefix)), mask], axis=-1)


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


@dataclass(frozen=True)
class _Part:
    """Keys and values (B, G, S, D) that the queries see, or (1, G, S, D) that those of all rows see.

    `hidden` is added to the scores of the last keys. Attention over several parts is the mean of the
    attention over each, weighed by the sums of their softmaxes; gradients need the sum of these alone.
    """

    keys: Floats
    values: Floats
    hidden: Floats | None = None
    shared: bool = False

    def of(self, rows: slice) -> _Part:
        """What some of the rows see."""
        if self.shared:
            return self
        hidden = self.hidden if self.hidden is None or len(self.hidden) == 1 else self.hidden[rows]
        return _Part(self.keys[rows], self.values[rows], hidden)

    def arrange(self, x: Floats) -> Floats:
        """(B, H, L, D) as it is, or as one long row (1, H, B * L, D) where all rows see the same."""
        return x.swapaxes(0, 1).reshape(1, x.shape[1], -1, x.shape[3]) if self.shared else x

    def restore(self, x: Floats, rows: int) -> Floats:
        """`arrange` undone, from any shape of the same order."""
        if not self.shared:
            return x
        groups, width = x.shape[1], x.shape[3]
        return x.reshape(groups, rows, -1, width).swapaxes(0, 1)


def _list_parts(seen: Sequence[Floats], hidden: Floats | None) -> list[_Part]:
    own, *prefix = zip(seen[::2], seen[1::2], strict=True)
    return [_Part(*own, hidden), *(_Part(*pair, shared=True) for pair in prefix)]


def _forward(q: Floats, parts: list[_Part], scale: float) -> tuple[Floats, Floats]:
    """Attention (B, H, L, D), and the logarithms (B, H, L, 1) of the sums of its softmax."""
    out = np.empty((*q.shape[:3], parts[0].values.shape[-1]), np.float32)
    log_sums = np.empty((*q.shape[:3], 1), np.float32)

    def work(rows: slice) -> None:
        results = [_attend(q[rows], part.of(rows), scale) for part in parts]
        top = np.maximum.reduce([top for *_, top in results])
        result, sums = np.float32(0), np.float32(0)
        for one, its_sums, its_top in results:
            share = np.exp(its_top - top)
            result, sums = result + share * one, sums + share * its_sums
        out[rows] = result / sums
        log_sums[rows] = np.log(sums) + top

    run_blocks(work, _row_blocks(q, parts))
    return out, log_sums


def _attend(q: Floats, part: _Part, scale: float) -> tuple[Floats, Floats, Floats]:
    """Values weighed by exponentials (B, H, L, D), and the exponentials' sums and shifts (B, H, L, 1)."""
    batch, heads = q.shape[:2]
    weights = _scores(part.arrange(q), part.keys, scale, part.hidden)
    top = weights.max(axis=-1, keepdims=True)
    weights -= top
    np.exp(weights, out=weights)
    sums = weights.sum(axis=-1, keepdims=True)
    result = np.matmul(weights, part.values)
    by_head = (x.reshape(len(x), heads, -1, x.shape[-1]) for x in (result, sums, top))
    result, sums, top = (part.restore(x, batch) for x in by_head)
    return result, sums, top


def _backward(
    q: Floats, parts: list[_Part], upstream: Floats, output: Floats, log_sums: Floats, scale: float
) -> list[Floats]:
    """Gradients of q and of each part's keys and values.

    Softmax's own is p * (dp - sum(dp * p)), and that sum is do . o.
    """
    dots = (upstream * output).sum(axis=-1, keepdims=True)
    d_q = np.empty(q.shape, np.float32)

    def work(rows: slice) -> list[tuple[Floats, Floats]]:
        given = [x[rows] for x in (q, upstream, log_sums, dots)]
        slopes = [_differentiate(part.of(rows), *given, scale=scale) for part in parts]
        d_q[rows] = np.add.reduce([slope for slope, *_ in slopes])
        return [(d_k, d_v) for _, d_k, d_v in slopes]

    blocks = run_blocks(work, _row_blocks(q, parts))
    gradients = [d_q]
    for part, of_blocks in zip(parts, zip(*blocks, strict=True), strict=True):
        join: Any = np.add.reduce if part.shared else np.concatenate
        gradients += [join(one) for one in zip(*of_blocks, strict=True)]
    return gradients


def _differentiate(
    part: _Part, q: Floats, upstream: Floats, log_sums: Floats, dots: Floats, *, scale: float
) -> tuple[Floats, Floats, Floats]:
    """What a part adds to the gradient of q, and the gradients of its keys and values."""
    groups = part.keys.shape[1]
    weights = _scores(part.arrange(q), part.keys, scale, part.hidden)
    queries, d_out, sums, dots = (_grouped(part.arrange(x), groups) for x in (q, upstream, log_sums, dots))
    weights -= sums
    np.exp(weights, out=weights)
    d_values = np.matmul(weights.swapaxes(2, 3), d_out)
    d_scores = np.matmul(d_out, part.values.swapaxes(2, 3))
    d_scores -= dots
    d_scores *= weights
    d_scores *= np.float32(scale)
    d_q = np.matmul(d_scores, part.keys)
    d_q = part.restore(d_q.reshape(len(d_q), q.shape[1], -1, d_q.shape[-1]), len(q))
    return d_q, np.matmul(d_scores.swapaxes(2, 3), queries), d_values


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


def _row_blocks(q: Floats, parts: list[_Part]) -> list[slice]:
    """Stretches of the batch whose scores stay in the processor's cache."""
    batch, heads, length, _ = q.shape
    keys = sum(part.keys.shape[2] for part in parts)
    return cut(batch, max(BLOCK // (heads * length * keys), 1))
