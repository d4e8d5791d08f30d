"""The training loop: steps, validations, checkpoints, the log."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import orjson
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_map

from stages.core import progress
from stages.core.cli import deferred_interrupts
from stages.core.compute import Model
from stages.core.errors import StageError
from stages.core.preset import TrainSetup
from stages.core.records import LossPoint
from stages.core.render import Encoded
from stages.train.checkpoint import Checkpoints, State, save_adapter
from stages.train.loss import plain_loss, sum_loss
from stages.train.rows import BatchPlan, make_batch, shared_prefix
from stages.train.split import SplitModel, Trunk

REPORT_EVERY = 10  # steps between lines of the log
# Relative difference at which the fast computation is not trusted; 16-bit models round differently
# in other shapes, and a mixture of experts may then choose another expert.
SAME_LOSS, SAME_LOSS_16_BIT = 2e-3, 3e-2


@dataclass
class Run:
    """One training run: everything that its steps need."""

    model: Model
    setup: TrainSetup
    seed: int
    train: list[Encoded]
    valid: list[Encoded]
    folder: Path

    def __post_init__(self) -> None:
        self.split = SplitModel(self.model, self.setup.num_layers, checkpoint=self.setup.grad_checkpoint)
        if not self.split.can_split:
            raise StageError(
                "this architecture has layers with a sliding window or a state, which train cannot do yet"
            )
        self.trunk = Trunk(self.split, shared_prefix([*self.train, *self.valid]))
        self.plan = BatchPlan(tuple(len(r.tokens) for r in self.train), self.setup.batch_size, self.seed)
        self.optimizer = optim.AdamW(learning_rate=make_schedule(self.setup), weight_decay=0.0)
        self.optimizer.init(self.model.trainable_parameters())
        self.checkpoints = Checkpoints(self.folder)
        self._gradient = value_and_grad(self.model, lambda *args: sum_loss(self.split, *args))

    def verify(self) -> None:
        """Compare the fast loss with the plain one on a few rows, before hours depend on it."""
        rows = self.train[:2]
        batch = make_batch(rows, self.trunk.size)
        hidden = self.trunk.hidden(rows, mx.array(batch.inputs))
        fast = _value(sum_loss(self.split, self.trunk.prefix, hidden, batch))
        plain = plain_loss(self.model, rows)
        tolerance = SAME_LOSS if hidden.dtype == mx.float32 else SAME_LOSS_16_BIT
        if not math.isclose(fast, plain, rel_tol=tolerance):
            raise StageError(
                f"the fast loss {fast:.4f} is not the model's own {plain:.4f}: "
                "train cannot do this architecture yet"
            )

    def step(self, index: int) -> tuple[float, int, int]:
        """One optimizer step: the summed loss, its supervised tokens, and the rows' tokens."""
        rows = [self.train[i] for i in self.plan.rows_of(index)]
        batch = make_batch(rows, self.trunk.size)
        hidden = self.trunk.hidden(rows, mx.array(batch.inputs))
        loss, gradient = self._gradient(self.trunk.prefix, hidden, batch)
        supervised = int(batch.weights.sum())
        gradient = tree_map(lambda g: g / supervised, gradient)
        self.optimizer.update(self.model, gradient)
        mx.eval(loss, self.model.trainable_parameters(), self.optimizer.state)
        value = _value(loss)
        if not math.isfinite(value):
            lines = ", ".join(str(i + 1) for i in self.plan.rows_of(index))
            raise StageError(
                f"the loss is {value} in step {index + 1}, rows {lines} of train.jsonl: "
                "lower --learning-rate; the last good checkpoint is kept"
            )
        return value, supervised, batch.tokens

    def validate(self) -> float:
        """Mean cross-entropy in nats over all supervised tokens of the validation rows."""
        self.model.eval()
        total, count, size = 0.0, 0, self.setup.batch_size
        for rows in _by_length(self.valid, size):
            batch = make_batch(rows, self.trunk.size)
            hidden = self.trunk.hidden(rows, mx.array(batch.inputs))
            total += _value(sum_loss(self.split, self.trunk.prefix, hidden, batch))
            count += int(batch.weights.sum())
        self.model.train()
        return total / count


def train_adapter(run: Run) -> State:
    """Run all steps, from the last checkpoint if there is one; writes log and adapter."""
    state = run.checkpoints.resume(run.model, run.optimizer) or State(
        step=0, seconds=0.0, log_bytes=0, best_loss=None
    )
    log = _Log(run.folder / "log.jsonl", state)
    if state.step:
        progress.say(f"  goes on from the checkpoint of step {state.step}")
    else:
        state = log.validated(state, run.validate())
    losses = _Window()
    with (
        deferred_interrupts() as stop,
        progress.bar("train", run.setup.iters, "steps", done=state.step) as bar,
    ):
        for index in range(state.step, run.setup.iters):
            losses.add(*run.step(index))
            done = index + 1
            bar.advance(note=f"loss {losses.mean:.3f}")
            last = done == run.setup.iters
            if done % REPORT_EVERY == 0 or last:
                log.trained(done, losses, float(run.optimizer.learning_rate.item()))
                losses = _Window()
            state = state.model_copy(update={"step": done, "seconds": log.seconds})
            if done % run.setup.eval_every == 0 or last:
                state = log.validated(state, run.validate())
            if done % run.setup.save_every == 0 or last or stop.is_set():
                state = state.model_copy(update={"seconds": log.seconds, "log_bytes": log.size})
                run.checkpoints.save(state, run.model, run.optimizer)
            if stop.is_set() and not last:
                raise KeyboardInterrupt
    save_adapter(run.model, run.folder / "adapters.safetensors")
    run.checkpoints.drop_optimizers()
    return state


def make_schedule(setup: TrainSetup) -> Any:
    """The learning rate as a function of the step, or a constant."""
    steps = max(setup.iters - setup.warmup, 1)
    peak = setup.learning_rate
    after: Any = {
        "constant": lambda: optim.linear_schedule(peak, peak, steps),
        "cosine": lambda: optim.cosine_decay(peak, steps, peak * 0.05),
        "linear": lambda: optim.linear_schedule(peak, 0.0, steps),
    }[setup.schedule]()
    if not setup.warmup:
        return after
    warmup = optim.linear_schedule(peak / setup.warmup, peak, setup.warmup)
    return optim.join_schedules([warmup, after], [setup.warmup])


class _Window:
    """Losses since the last line of the log."""

    def __init__(self) -> None:
        self.loss, self.supervised, self.tokens, self.started = 0.0, 0, 0, time.perf_counter()

    def add(self, loss: float, supervised: int, tokens: int) -> None:
        self.loss += loss
        self.supervised += supervised
        self.tokens += tokens

    @property
    def mean(self) -> float:
        return self.loss / max(self.supervised, 1)


class _Log:
    """`log.jsonl`: what a resumed run had not yet written is cut off first."""

    def __init__(self, path: Path, state: State) -> None:
        self._path, self._before, self._started = path, state.seconds, time.perf_counter()
        path.touch()
        with path.open("r+b") as file:
            file.truncate(state.log_bytes)

    @property
    def seconds(self) -> float:
        """Training time so far, earlier parts of a resumed run included."""
        return round(self._before + time.perf_counter() - self._started, 3)

    @property
    def size(self) -> int:
        return self._path.stat().st_size

    def trained(self, step: int, window: _Window, rate: float) -> None:
        speed = window.tokens / (time.perf_counter() - window.started)
        self._write(
            LossPoint(
                step=step,
                kind="train",
                loss=round(window.mean, 5),
                learning_rate=rate,
                tokens_per_second=round(speed, 1),
                seconds=self.seconds,
            )
        )

    def validated(self, state: State, loss: float) -> State:
        progress.say(f"  step {state.step}: validation loss {loss:.4f}")
        self._write(LossPoint(step=state.step, kind="valid", loss=round(loss, 5), seconds=self.seconds))
        best = loss if state.best_loss is None else min(loss, state.best_loss)
        return state.model_copy(update={"best_loss": best, "log_bytes": self.size})

    def _write(self, point: LossPoint) -> None:
        with self._path.open("ab") as file:
            file.write(orjson.dumps(point.model_dump()) + b"\n")


def _by_length(rows: list[Encoded], size: int) -> list[list[Encoded]]:
    ordered = sorted(rows, key=lambda row: len(row.tokens))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _value(scalar: mx.array) -> float:
    value: Any = scalar.item()
    return float(value)
