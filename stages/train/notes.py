"""What a run says about itself beside its losses: what it ended with, and what is odd about its set-up."""

from __future__ import annotations

import mlx.core as mx

from stages.core.preset import TrainSetup
from stages.train.checkpoint import State
from stages.train.optimizer import make_schedule

LARGEST_STEP = 1.0  # learning rate


def warn_of_setup(setup: TrainSetup) -> list[str]:
    """Lines about what is allowed and hardly meant."""
    return [*warn_of_warmup(setup), *warn_of_rate(setup)]


def warn_of_rate(setup: TrainSetup) -> list[str]:
    """A line where steps are larger than the weights, which may end at any loss, also one below the start."""
    if setup.learning_rate <= LARGEST_STEP:
        return []
    return [
        f"WARNING: --learning-rate {setup.learning_rate:g}: AdamW moves every weight by about that much in a "
        "step, and few weights are larger than 1: nothing of what the model knows may be left"
    ]


def warn_of_warmup(setup: TrainSetup) -> list[str]:
    """A line where no step has the learning rate that was asked for."""
    if setup.warmup < setup.iters:
        return []
    reached = float(make_schedule(setup)(mx.array(setup.iters - 1)).item())
    return [
        f"WARNING: --warmup {setup.warmup} leaves no step of {setup.iters} with the learning rate "
        f"{setup.learning_rate:g}: it gets to {reached:.2g}"
    ]


def describe_end(state: State, setup: TrainSetup) -> list[str]:
    """Which adapter is kept, where it ended early, and what is wrong with it."""
    return [describe_choice(state, setup), *name_early_end(state, setup), *warn_of_ruin(state, setup)]


def describe_choice(state: State, setup: TrainSetup) -> str:
    """Which step's adapter is kept, and how its validation loss compares with the lowest."""
    best = f"{state.best_loss:.4f}"
    if setup.choose_by == "loss":
        return f"adapter of step {state.best_step}, which has the lowest validation loss, {best}"
    if setup.choose_by == "calls":
        exact = f"{state.best_calls:.0%} of the calls exact"
        return f"adapter of step {state.best_step}, the best by calls: {exact}, validation loss {best}"
    if state.best_step == state.step:
        return f"adapter of the last step {state.step}; its validation loss, {best}, is the lowest"
    own = "" if state.valid_loss is None else f" ({state.valid_loss:.4f})"
    lowest = f"the lowest validation loss was {best}, at step {state.best_step}"
    return f"adapter of the last step {state.step}{own}; {lowest}"


def name_early_end(state: State, setup: TrainSetup) -> list[str]:
    """A line where the run ended before its last step."""
    if state.step >= setup.iters:
        return []
    return [
        f"ended early, after step {state.step} of {setup.iters}: --patience {state.waiting} passed without a "
        f"better validation than that of step {state.best_step}"
    ]


def warn_of_ruin(state: State, setup: TrainSetup) -> list[str]:
    """A line where the model is no better with the adapter than without it, though no step failed."""
    if setup.choose_by != "last" and state.best_step == 0:
        return [
            "WARNING: no validation was better than the one before the first step: this adapter changes "
            "nothing; lower --learning-rate, or raise --iters and --patience"
        ]
    kept = state.valid_loss
    if setup.choose_by != "last" or state.first_loss is None or kept is None or kept <= state.first_loss:
        return []  # a chosen one is better than none by what it was chosen by
    return [
        f"WARNING: training made it worse: validation loss {state.first_loss:.4f} before the first step, "
        f"{kept:.4f} with this adapter: lower --learning-rate or set --clip-norm 1"
    ]
