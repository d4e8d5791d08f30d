"""The loss: cross-entropy of the assistant's tokens, the fast way and the plain way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from stages.core.compute import Model, cross_entropy
from stages.core.render import Encoded
from stages.train.rows import Batch
from stages.train.split import SplitModel


def sum_loss(split: SplitModel, prefix: mx.array | None, hidden: mx.array, batch: Batch) -> mx.array:
    """Cross-entropy in nats summed over a batch's supervised tokens, from hidden states at the cut.

    `prefix` (1, P, width) goes through the trained layers once; its keys and values are broadcast to
    the rows, so gradients flow through them exactly as if each row had carried its own copy.
    """
    out = split.top(prefix, hidden)
    chosen = out.reshape(-1, out.shape[-1])[mx.array(batch.where)]
    losses: mx.array = cross_entropy(
        split.logits(chosen).astype(mx.float32), mx.array(batch.targets)
    ) * mx.array(batch.weights)
    return losses.sum()


def plain_loss(model: Model, rows: Sequence[Encoded]) -> float:
    """The same sum computed row by row through the whole model: what `sum_loss` must equal."""
    total = 0.0
    for row in rows:
        logits = model(mx.array([row.tokens[:-1]]))[0].astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, mx.array(row.tokens[1:])).astype(mx.float32)
        value: Any = (losses * mx.array(row.supervised[1:])).sum().item()
        total += float(value)
    return total
