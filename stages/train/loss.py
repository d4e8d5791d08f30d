"""The loss: cross-entropy of the assistant's tokens, the fast way and the plain way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from stages.core.compute import Model, head_cross_entropy, score_targets
from stages.core.render import Encoded
from stages.train.rows import Batch, Floats
from stages.train.split import SplitModel


@dataclass
class Losses:
    """Sums over supervised tokens: of all, of those of calls alone, and how many calls are all right.

    A call is exact when each of its tokens is the most likely one behind the right ones before it;
    that is when greedy decoding would write this call and end the turn.
    """

    total: float = 0.0
    tokens: int = 0
    call_total: float = 0.0
    call_tokens: int = 0
    exact_calls: int = 0
    calls: int = 0

    def __add__(self, other: Losses) -> Losses:
        """The sums over both."""
        return Losses(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> Losses:
        """The sums from numbers in the order of the fields, counts maybe as floats."""
        total, tokens, call_total, *counts = numbers or [0.0] * 6
        return cls(total, round(tokens), call_total, *map(round, counts))

    @property
    def mean(self) -> float:
        """Nats per supervised token."""
        return self.total / max(self.tokens, 1)

    @property
    def call_mean(self) -> float | None:
        """Nats per token of a call; None without one."""
        return self.call_total / self.call_tokens if self.call_tokens else None

    @property
    def exact_share(self) -> float | None:
        """The share of calls that are exact; None without one."""
        return self.exact_calls / self.calls if self.calls else None


def weighted_loss(
    split: SplitModel, prefix: mx.array | None, hidden: mx.array, batch: Batch, call_weight: float = 1.0
) -> tuple[mx.array, mx.array]:
    """Cross-entropy in nats, weighted and summed, and per supervised token (M,), from states at the cut.

    `prefix` (1, P, width) goes through the trained layers once; its keys and values are broadcast to
    the rows, so gradients flow through them exactly as if each row had carried its own copy.
    """
    states = split.supervised(prefix, hidden, mx.array(batch.where))
    losses: mx.array = head_cross_entropy(states, split.head, mx.array(batch.targets))
    return (losses * mx.array(batch.weights(call_weight))).sum(), losses


def count_losses(losses: mx.array | Floats, batch: Batch) -> Losses:
    """The sums of a batch's losses (M,)."""
    values = np.array(losses)
    calling = batch.calls >= 0
    return Losses(
        total=float(values.sum(dtype=np.float64)),
        tokens=len(values),
        call_total=float(values[calling].sum(dtype=np.float64)),
        call_tokens=int(calling.sum()),
    )


def count_validation(split: SplitModel, prefix: mx.array | None, hidden: mx.array, batch: Batch) -> Losses:
    """The sums of a batch without gradients, exact calls among them."""
    states = split.supervised(prefix, hidden, mx.array(batch.where))
    losses, right = score_targets(states, split.head, mx.array(batch.targets))
    sums = count_losses(losses, batch)
    calling = batch.calls >= 0
    sums.calls = len(np.unique(batch.calls[calling]))
    sums.exact_calls = sums.calls - len(np.unique(batch.calls[calling & ~right]))
    return sums


def plain_loss(model: Model, rows: Sequence[Encoded]) -> float:
    """The sum over rows computed one by one through the whole model: what the fast loss must equal."""
    total = 0.0
    for row in rows:
        logits = model(mx.array([row.tokens[:-1]]))[0].astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, mx.array(row.tokens[1:])).astype(mx.float32)
        value: Any = (losses * mx.array(row.supervised[1:])).sum().item()
        total += float(value)
    return total
