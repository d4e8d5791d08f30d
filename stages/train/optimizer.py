"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from stages.core.compute import Model
from stages.core.preset import TrainSetup

FLOOR = 0.05  # of the peak, where a cosine schedule ends


def make_optimizer(model: Model, setup: TrainSetup) -> Any:
    """AdamW over the model's trainable parameters, its state in place so that it can be saved."""
    optimizer = optim.AdamW(learning_rate=make_schedule(setup), weight_decay=setup.weight_decay)
    optimizer.init(model.trainable_parameters())
    return optimizer


def make_schedule(setup: TrainSetup) -> Any:
    """The learning rate as a function of the step."""
    steps = max(setup.iters - setup.warmup, 1)
    peak = setup.learning_rate
    after: Any = {
        "constant": lambda: optim.linear_schedule(peak, peak, steps),
        "cosine": lambda: optim.cosine_decay(peak, steps, peak * FLOOR),
        "linear": lambda: optim.linear_schedule(peak, 0.0, steps),
    }[setup.schedule]()
    if not setup.warmup:
        return after
    warmup = optim.linear_schedule(peak / setup.warmup, peak, setup.warmup)
    return optim.join_schedules([warmup, after], [setup.warmup])


def measure_norm(gradient: Any) -> float:
    """The gradient's norm over all parameters."""
    flat: Any = tree_flatten(gradient)
    total: Any = sum(mx.square(array).sum() for _, array in flat)
    return math.sqrt(total.item()) if math.isfinite(total.item()) else math.nan


def clip_gradient(gradient: Any, norm: float) -> Any:
    """The gradient, scaled down where its norm over all parameters is larger; 0 leaves it alone."""
    clip: Any = optim.clip_grad_norm
    return clip(gradient, norm)[0] if norm else gradient
