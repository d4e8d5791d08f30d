"""The loss behind a frozen head: cross-entropy from final states, without ever keeping the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.core.cpu.blocks import Bools, Floats, Ints, count_cores, cut, run_blocks, views

LOGITS = 1 << 23  # logits that a thread computes together, 32 MiB


def head_cross_entropy(states: Any, weight: Any, targets: Any) -> Any:
    """Cross-entropy in nats, (M,), of the logits `states` (M, D) @ `weight` (V, D)^T and targets (M,).

    The gradient of the states is computed with the loss, block by block: it is (softmax - one-hot)
    times the weight, so nothing of the size of the logits is kept. The weight gets none.
    """
    import mlx.core as mx

    kept: dict[str, Floats] = {}  # from the forward to the backward pass

    @mx.custom_function
    def cross_entropy(states: Any) -> Any:
        losses, kept["slope"] = _differentiate(*views(states, weight, targets))
        return mx.array(losses)

    @cross_entropy.vjp
    def cross_entropy_vjp(_primals: Any, cotangent: Any, _output: Any) -> Any:
        (upstream,) = views(cotangent)
        return mx.array(kept["slope"] * upstream[:, None])

    return cross_entropy(states)


def working_memory() -> int:
    """Bytes that the logits of all threads take at most."""
    return 2 * 4 * LOGITS * count_cores()


def score_targets(states: Any, weight: Any, targets: Any) -> tuple[Floats, Bools]:
    """The same losses without a gradient, and whether each target is the most likely token."""
    states, weight, targets = views(states, weight, targets)
    losses, right = np.empty(len(states), np.float32), np.empty(len(states), np.bool_)

    def work(part: slice) -> None:
        scores = states[part] @ weight.T
        right[part] = scores.argmax(axis=-1) == targets[part]
        losses[part], _ = _exponentiate(scores, targets[part])

    run_blocks(work, cut(len(states), LOGITS // len(weight)))
    return losses, right


def _differentiate(states: Floats, weight: Floats, targets: Ints) -> tuple[Floats, Floats]:
    """Losses (M,) and their gradients by the states (M, D)."""
    losses, slope = np.empty(len(states), np.float32), np.empty_like(states)

    def work(part: slice) -> None:
        scores = states[part] @ weight.T
        losses[part], sums = _exponentiate(scores, targets[part])
        slope[part] = (scores @ weight) / sums[:, None] - weight[targets[part]]

    run_blocks(work, cut(len(states), LOGITS // len(weight)))
    return losses, slope


def _exponentiate(scores: Floats, targets: Ints) -> tuple[Floats, Floats]:
    """Losses of logits (M, V); leaves in `scores` what, divided by the sums (M,), is their softmax."""
    chosen = scores[np.arange(len(targets)), targets]
    top = scores.max(axis=-1)
    scores -= top[:, None]
    np.exp(scores, out=scores)
    sums = scores.sum(axis=-1)
    return np.log(sums) + top - chosen, sums
