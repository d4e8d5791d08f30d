"""The training loop: steps, validations, checkpoints, the choice of the adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_map

from stages.core import progress
from stages.core.compute import Model
from stages.core.errors import Interrupted, StageError
from stages.core.interrupts import deferred_interrupts
from stages.core.preset import TrainSetup
from stages.core.render import Encoded
from stages.core.words import plural
from stages.train.checkpoint import Checkpoints, State, share_state
from stages.train.log import RunLog
from stages.train.loss import Losses, count_losses, count_validation, plain_loss, weighted_loss
from stages.train.optimizer import clip_gradient, make_optimizer, measure_norm
from stages.train.prefixes import group_rows
from stages.train.ranks import Ranks
from stages.train.rows import Batch, BatchPlan, make_batch
from stages.train.split import SplitModel, Trunk, make_trunks

COMPANY = 8  # rows whose frozen layers are computed together
STOPPING = "stops and saves its work as soon as this step is done"
VERIFIED = 4  # groups of rows whose fast loss is compared with the plain one
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
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        self.split = SplitModel(self.model, self.setup.num_layers, checkpoint=self.setup.grad_checkpoint)
        groups = group_rows([*self.train, *self.valid], -(-self.setup.batch_size // self.ranks.size))
        # Ranks ask for rows of every company: alone, none is computed twice.
        self.trunks = make_trunks(self.split, groups, COMPANY if self.ranks.size == 1 else 1)
        self._trunk_of = {id(row): trunk for trunk in self.trunks for row in trunk.rows}
        self.plan = BatchPlan(tuple(len(r.tokens) for r in self.train), self.setup.batch_size, self.seed)
        self.optimizer = make_optimizer(self.model, self.setup)
        self.checkpoints = Checkpoints(
            self.folder, self.setup.keep_checkpoints, keeps_best=self.setup.choose_by != "last"
        )
        self._gradient = value_and_grad(
            self.model, partial(weighted_loss, self.split, call_weight=self.setup.call_weight)
        )

    def verify(self) -> None:
        """Compare the fast loss with the plain one on a few rows, before hours depend on it.

        On short ones: the plain loss holds all their logits, which the run itself never does.
        """
        shortest = [sorted(trunk.rows, key=lambda row: len(row.tokens)) for trunk in self.trunks[:VERIFIED]]
        rows = [*shortest[0][:2], *(first for first, *_ in shortest[1:])]
        fast = self._count(rows).total
        plain = plain_loss(self.model, rows)
        tolerance = SAME_LOSS if self.split.dtype == mx.float32 else SAME_LOSS_16_BIT
        if not math.isclose(fast, plain, rel_tol=tolerance):
            raise StageError(
                f"the fast loss {fast:.4f} is not the model's own {plain:.4f}: "
                "train cannot do this architecture yet"
            )

    def rows_of(self, step: int) -> list[list[int]]:
        """The row numbers (from 0) of each batch of a step."""
        accumulated = self.setup.grad_accumulation
        return [self.plan.rows_of(step * accumulated + part) for part in range(accumulated)]

    def prepare(self, step: int, stop: Callable[[], bool] = bool) -> None:
        """Compute what the frozen layers make of the rows that this rank will need from a step on.

        It is work that the steps would do as they meet the rows, the early ones most of it: now one takes as
        long as another, and the time that is left can be told. What `stop` leaves undone they do again.
        """
        ahead = [row for batch in self.valid_batches() for row in batch]
        # The rest of an epoch and a whole one have every row.
        epochs = -(-2 * self.plan.steps_per_epoch // self.setup.grad_accumulation)
        for index in range(step, min(self.setup.iters, step + epochs)):
            for numbers in self.rows_of(index):
                ahead += [self.train[i] for i in self.ranks.share(numbers)]
        missing = [(trunk, row) for trunk in self.trunks for row in trunk.find_missing(ahead)]
        with progress.bar("frozen layers", len(missing), "groups of rows") as bar:
            for trunk, row in missing:
                if stop():  # which the other ranks hear of in the next validation or step
                    break
                trunk.prepare(row)
                bar.advance()

    def valid_batches(self) -> list[list[Encoded]]:
        """This rank's part of each batch of a validation, of rows of like length."""
        rows = sorted(self.valid, key=lambda row: len(row.tokens))
        size = self.setup.batch_size * self.ranks.size
        return [self.ranks.share(rows[i : i + size]) for i in range(0, len(rows), size)]

    def divide(self, rows: list[Encoded]) -> list[tuple[Trunk, list[Encoded]]]:
        """A batch of the run's rows in parts, each with the trunk of what its rows begin with."""
        parts = [(trunk, [row for row in rows if self._trunk_of[id(row)] is trunk]) for trunk in self.trunks]
        return [(trunk, part) for trunk, part in parts if part]

    def step(self, index: int, *, stop: Callable[[], bool] = bool) -> tuple[Losses, int, bool]:
        """One optimizer step: its losses, the tokens of its rows, and whether any rank was told to stop."""
        gradient, weight, tokens, losses = None, 0.0, 0, Losses()
        # Dropout depends on the step, so that a resumed run draws the same, and on the rank.
        mx.random.seed(draw_seed(self.seed, index, self.ranks.rank))
        for numbers in self.rows_of(index):
            tokens += sum(len(self.train[i].tokens) for i in numbers)
            for trunk, rows in self.divide([self.train[i] for i in self.ranks.share(numbers)]):
                part, batch_losses, batch = self._differentiate(trunk, rows)
                gradient = part if gradient is None else tree_map(mx.add, gradient, part)
                mx.eval(gradient)
                weight += float(batch.weights(self.setup.call_weight).sum())
                losses += count_losses(batch_losses, batch)
        if gradient is None:
            gradient = tree_map(mx.zeros_like, self.model.trainable_parameters())
        weight, stopped, *sums = self.ranks.sum_numbers([weight, float(stop()), *astuple(losses)])
        losses = Losses.from_numbers(sums)
        self._require_finite("loss", losses.total, index)
        gradient = tree_map(lambda g: g / weight, self.ranks.sum_tree(gradient))
        self._require_finite("norm of the gradient", measure_norm(gradient), index)
        self.optimizer.update(self.model, clip_gradient(gradient, self.setup.clip_norm))
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return losses, tokens, stopped > 0

    def _require_finite(self, what: str, value: float, index: int) -> None:
        """Stop before an update that would ruin the adapter."""
        if not math.isfinite(value):
            lines = ", ".join(str(i + 1) for rows in self.rows_of(index) for i in rows)
            self.refuse_weights(
                index, f"the {what} is {value} in step {index + 1}, rows {lines} of the training split"
            )

    def refuse_weights(self, step: int, found: str) -> NoReturn:
        """Raise StageError for what was found with the weights of `step` steps; no checkpoint holds them."""
        if self.ranks.leads:
            self.checkpoints.drop(step)
        last = self.checkpoints.last_step
        kept = (
            "; there is no good checkpoint yet"
            if last is None
            else f", with --force or another --out; the last good checkpoint, of step {last}, is kept "
            f"in {self.folder}"
        )
        raise StageError(f"{found}: lower --learning-rate or set --clip-norm 1{kept}")

    def validate(self, stop: Callable[[], bool] = bool) -> Losses | None:
        """The losses over the validation rows' supervised tokens, without dropout; None when stopped."""
        self.model.eval()
        losses, stopped, batches = Losses(), False, self.valid_batches()
        with progress.bar("validate", len(batches), "batches") as bar:
            for batch in batches:
                stopped = self.ranks.sum_numbers([stop()])[0] > 0
                if stopped:
                    break
                losses += self._count(batch)
                bar.advance()
        self.model.train()
        return None if stopped else Losses.from_numbers(self.ranks.sum_numbers(astuple(losses)))

    def _differentiate(self, trunk: Trunk, rows: list[Encoded]) -> tuple[Any, mx.array, Batch]:
        batch = make_batch(rows, trunk.size)
        hidden = trunk.hidden(rows, mx.array(batch.inputs))
        (_, losses), gradient = self._gradient(trunk.prefix, hidden, batch)
        return gradient, losses, batch

    def _count(self, rows: list[Encoded]) -> Losses:
        losses = Losses()
        for trunk, part in self.divide(rows):
            batch = make_batch(part, trunk.size)
            hidden = trunk.hidden(part, mx.array(batch.inputs))
            losses += count_validation(self.split, trunk.prefix, hidden, batch)
        return losses


def draw_seed(seed: int, step: int, rank: int) -> int:
    """A seed for what is drawn in one step on one rank, from the run's seed."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def train_adapter(run: Run, trackers: Any = None) -> State:
    """Run all steps, from the last checkpoint if there is one, and leave the chosen adapter in the model."""
    setup, state = run.setup, share_state(run.checkpoints, run.model, run.optimizer, run.ranks)
    state = state.model_copy(update={"beside": state.beside or bool(progress.line_label())})
    log = RunLog(run.folder / "log.jsonl", state, trackers) if run.ranks.leads else None
    if state.step:
        progress.say(f"  goes on from the checkpoint of step {state.step}")
    begun, stopped = state.step, False
    with ExitStack() as stack:
        stop = stack.enter_context(deferred_interrupts(STOPPING))
        if not _has_ended(state, setup):
            run.prepare(state.step, stop.is_set)
        window = _Window(Losses.from_numbers(state.window), 0, time.perf_counter())
        bar = stack.enter_context(progress.bar("train", setup.iters, "steps", done=state.step))
        while True:
            best = False
            if not stopped and _is_due(state, setup):
                with window.paused(), bar.paused():
                    state = _validate(run, state, log, stop.is_set)
                stopped = _is_due(state, setup)  # it was cut short, and is done when the run goes on
                best = setup.choose_by != "last" and state.best_step == state.step
            ended = _has_ended(state, setup) and not _is_due(state, setup)
            if ended and window.losses.tokens:  # an early end: what came after the last line would be lost
                window = _log_window(run, log, state.step, window)
                state = state.model_copy(update={"window": ()})
            regular = state.step > begun and (state.step % setup.save_every == 0 or ended or stopped)
            if log and (regular or best):
                reached = {"seconds": log.seconds, "log_bytes": log.size, "ended": ended}
                state = state.model_copy(update=reached)
                run.checkpoints.save(state, run.model, run.optimizer)
            if ended:
                break
            if stopped:
                raise Interrupted(run.folder) if log else KeyboardInterrupt
            losses, tokens, stopped = run.step(state.step, stop=stop.is_set)
            if log:
                run.checkpoints.prune()
            window.add(losses, tokens)
            done = state.step + 1
            bar.advance(note=f"loss {window.losses.mean:.3f}", pauses=count_validations(done, setup))
            if done % REPORT_EVERY == 0 or done == setup.iters:
                window = _log_window(run, log, done, window)
            state = state.model_copy(update={"step": done, "window": astuple(window.losses)})
    if log:
        run.checkpoints.prune()
    if log and setup.choose_by != "last" and state.best_step is not None:
        run.checkpoints.load_step(run.model, state.best_step)
    return state


def count_validations(step: int, setup: TrainSetup) -> int:
    """How many validations are to come when `step` steps are done, that after this one among them."""
    last = setup.iters % setup.eval_every != 0
    return setup.iters // setup.eval_every - (step - 1) // setup.eval_every + last


def _is_due(state: State, setup: TrainSetup) -> bool:
    """Whether a validation is to be done now: before the first step, regularly, and at the end."""
    return state.validated != state.step and (state.step % setup.eval_every == 0 or state.step == setup.iters)


def _has_ended(state: State, setup: TrainSetup) -> bool:
    return state.step >= setup.iters or 0 < setup.patience <= state.waiting


def _validate(run: Run, state: State, log: RunLog | None, stop: Callable[[], bool]) -> State:
    """Validate, and remember whether this is the best so far by what the set-up chooses by.

    The state stays as it is when `stop` cuts it short. Raises StageError for a loss that is no number: of
    what the last update did nobody else takes notice.
    """
    losses = run.validate(stop)
    if losses is None:
        return state
    if not math.isfinite(losses.total):
        run.refuse_weights(
            state.step, f"the validation loss is {losses.mean} after {plural(state.step, 'step')}"
        )
    first = losses.mean if state.validated is None else state.first_loss
    state = state.model_copy(update={"validated": state.step, "valid_loss": losses.mean, "first_loss": first})
    better, exact = is_better(losses, state, run.setup.choose_by), losses.exact_share or 0.0
    if log:
        log.validated(state.step, losses)
    if not better:
        return state.model_copy(update={"waiting": state.waiting + 1})
    best = {"best_step": state.step, "best_loss": losses.mean, "best_calls": exact, "waiting": 0}
    return state.model_copy(update=best)


def is_better(losses: Losses, state: State, choose_by: str) -> bool:
    """Whether a validation is the best so far: by its exact calls and then its loss, or by its loss alone."""
    if state.best_step is None:
        return True
    if choose_by == "calls":
        return (losses.exact_share or 0.0, -losses.mean) > (state.best_calls, -state.best_loss)
    return losses.mean < state.best_loss


@dataclass
class _Window:
    """Losses and tokens since the last line of the log; the tokens and their time since the start at most."""

    losses: Losses
    tokens: int
    started: float

    def add(self, losses: Losses, tokens: int) -> None:
        self.losses += losses
        self.tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of the speed."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before

    @property
    def speed(self) -> float | None:
        """None where a run goes on with what an earlier part of it has computed, and nothing else."""
        return self.tokens / (time.perf_counter() - self.started) if self.tokens else None


def _log_window(run: Run, log: RunLog | None, step: int, window: _Window) -> _Window:
    """Write the losses since the last line of the log down; a new window."""
    if log:
        log.trained(step, window.losses, float(run.optimizer.learning_rate.item()), window.speed)
    return _Window(Losses(), 0, time.perf_counter())
