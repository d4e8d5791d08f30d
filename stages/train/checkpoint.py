"""Checkpoints from which a run goes on exactly as if it had never stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from pydantic import Field

from stages.core.artifact import hash_file
from stages.core.compute import Model, load_arrays
from stages.core.errors import StageError
from stages.core.records import Record, read_record, write_record
from stages.train.ranks import Ranks
from stages.train.saved import CHECKPOINTS, STATE, list_checkpoints

LEAST_KEPT = 2  # until the newest is known to be good
ADAPTER, OPTIMIZER = "adapters.safetensors", "optimizer.safetensors"  # files of a checkpoint beside its state
REMEDY = (  # those after it may name it as their best
    "remove its folder, and any after it, to go on from the checkpoint before, or the whole unfinished run "
    "to begin again"
)


class State(Record):
    """Where a run stood."""

    step: int = Field(0, description="optimizer steps done")
    seconds: float = Field(0.0, description="of training so far")
    log_bytes: int = Field(0, description="length of log.jsonl at that moment")
    window: tuple[float, ...] = Field((), description="sums of the losses since the last line of the log")
    best_step: int | None = Field(None, description="step of the best validation so far")
    best_loss: float = Field(0.0, description="its loss, nats")
    best_calls: float = Field(0.0, description="its share of exact calls")
    waiting: int = Field(0, description="validations since then")
    validated: int | None = Field(None, description="step of the last validation")
    valid_loss: float | None = Field(None, description="its loss, nats; None: not noted")
    first_loss: float | None = Field(None, description="that before the first step; None: not noted")
    beside: bool = Field(False, description="whether another training ran beside any part of it")
    ended: bool = Field(False, description="whether no step is left to do")
    digests: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of the checkpoint's other files; older ones do not say it"
    )


@dataclass
class Checkpoints:
    """The checkpoints of a run, in `folder/checkpoints/NNNNNNN`: the last, and those of their best steps.

    So the best adapter is always the one that a state names, whatever was killed in between.
    """

    folder: Path
    keep: int
    keeps_best: bool = False

    @property
    def _root(self) -> Path:
        return self.folder / CHECKPOINTS

    def _place(self, step: int) -> Path:
        return self._root / f"{step:07d}"

    @property
    def last_step(self) -> int | None:
        """The step of the checkpoint to go on from; None without one that has any work in it."""
        finished = self._finished()
        return (int(finished[-1].name) or None) if finished else None

    def save(self, state: State, model: Model, optimizer: Any) -> None:
        """Write adapter and optimizer; a checkpoint appears whole or not at all, also when power fails.

        What these weights are worth shows in the next step, so the one before stays until `prune`. Of a step
        that has its checkpoint, only the state may be another: it was validated since.
        """
        final = self._place(state.step)
        if (final / STATE).is_file():
            digests = _read_state(final).digests
            write_record(final / STATE, state.model_copy(update={"digests": digests}))
        else:
            self._write(final, state, model, optimizer)
        self._keep_last(max(self.keep, LEAST_KEPT))

    def _write(self, final: Path, state: State, model: Model, optimizer: Any) -> None:
        partial = self._root / f".{final.name}.partial"
        for left in self._root.glob(".*.partial"):  # it may be what filled the disk
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        save_adapter(model, partial / ADAPTER)
        save_arrays(partial / OPTIMIZER, get_state(optimizer))
        digests = {name: hash_file(partial / name).hex() for name in (ADAPTER, OPTIMIZER)}
        write_record(partial / STATE, state.model_copy(update={"digests": digests}))
        for path in (*partial.iterdir(), partial):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        _sync(self._root)

    def prune(self) -> None:
        """Remove what is too many, when a loss with the weights of the last one has shown that it is good."""
        self._keep_last(self.keep)

    def drop(self, step: int) -> None:
        """Remove the checkpoint of a step, if there is one, so that none goes on from it."""
        self._remove(self._place(step))

    def resume(self, model: Model, optimizer: Any) -> State | None:
        """Load the last checkpoint into model and optimizer; None when there is none.

        Raises StageError for one that cannot be read, has changed since, or is of another model or optimizer.
        """
        finished = self._finished()
        if not finished:
            return None
        last = finished[-1]
        state = _read_state(last)
        load_adapter(model, last / ADAPTER, state.digests.get(ADAPTER))
        saved = last / OPTIMIZER
        if saved.exists() or not state.ended:  # it goes when a run that has ended is put in place
            set_state(optimizer, _load_fitting(saved, get_state(optimizer), state.digests.get(OPTIMIZER)))
        return state.model_copy(update={"digests": {}})  # which the next checkpoint does not have

    def load_step(self, model: Model, step: int) -> None:
        """Put the adapter of a step into the model."""
        folder = self._place(step)
        load_adapter(model, folder / ADAPTER, _read_state(folder).digests.get(ADAPTER))

    def drop_optimizers(self) -> None:
        """After the run: the adapters stay, what only a resume needs goes."""
        for folder in self._finished():
            (folder / OPTIMIZER).unlink(missing_ok=True)

    def _keep_last(self, count: int) -> None:
        """Remove all but the last checkpoints, their best, and what a kill left half written or removed."""
        kept = self._finished()[-count:]
        if self.keeps_best:
            best = [_read_state(folder).best_step for folder in kept]
            kept += [self._place(step) for step in best if step is not None]
        for other in self._root.glob("*"):
            if other not in kept:
                self._remove(other)

    @staticmethod
    def _remove(folder: Path) -> None:
        """The state first: what a kill leaves of the rest is no checkpoint."""
        (folder / STATE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _finished(self) -> list[Path]:
        return list_checkpoints(self.folder)


def share_state(checkpoints: Checkpoints, model: Model, optimizer: Any, ranks: Ranks) -> State:
    """Where the run goes on, the same on every rank; rank 0 alone reads the checkpoint."""
    state = (checkpoints.resume(model, optimizer) if ranks.leads else None) or State()
    if ranks.size == 1:
        return state
    model.update(tree_unflatten(list(_from_leader(ranks, model.trainable_parameters()).items())))
    set_state(optimizer, ranks.from_leader(get_state(optimizer)))
    best, last = (-1 if step is None else step for step in (state.best_step, state.validated))
    step, best_step, loss, calls, waiting, validated = ranks.numbers_from_leader(
        [state.step, best, state.best_loss, state.best_calls, state.waiting, last]
    )
    return state.model_copy(
        update={
            "step": int(step),
            "best_step": None if best_step < 0 else int(best_step),
            "best_loss": loss,
            "best_calls": calls,
            "waiting": int(waiting),
            "validated": None if validated < 0 else int(validated),
        }
    )


def _from_leader(ranks: Ranks, tree: Any) -> dict[str, mx.array]:
    flat: Any = tree_flatten(tree)
    return ranks.from_leader(dict(flat))


def get_state(optimizer: Any) -> dict[str, mx.array]:
    """The arrays that decide how a run goes on beside its adapter; what it draws depends on the step."""
    flat: Any = tree_flatten(optimizer.state)
    return dict(flat)


def set_state(optimizer: Any, arrays: dict[str, mx.array]) -> None:
    """Put back what `get_state` gave."""
    optimizer.state = tree_unflatten(list(arrays.items()))


def save_adapter(model: Model, path: Path) -> None:
    """The trained parameters in mlx-lm's adapter format. Raises StageError where the disk is full."""
    save_arrays(path, _adapter_of(model))


def load_adapter(model: Model, path: Path, digest: str | None = None) -> None:
    """Put a saved adapter into the model. Raises StageError where a name, a shape or a file is wrong."""
    model.load_weights(list(_load_fitting(path, _adapter_of(model), digest).items()), strict=False)


def save_arrays(path: Path, arrays: dict[str, mx.array]) -> None:
    """Write a safetensors file. Raises StageError where that cannot be done, as on a full disk."""
    try:
        mx.save_safetensors(str(path), arrays)
    except (RuntimeError, ValueError) as error:
        raise StageError(
            f"cannot write {path} ({_one_line(error)}): free some space; what was saved before is kept, "
            "the same command goes on"
        ) from None


def _adapter_of(model: Model) -> dict[str, mx.array]:
    flat: Any = tree_flatten(model.trainable_parameters())
    return dict(flat)


def _read_state(folder: Path) -> State:
    try:
        return read_record(folder / STATE, State)
    except StageError as error:
        raise StageError(f"{error}: {REMEDY}") from None


def _load_fitting(path: Path, own: Mapping[str, mx.array], digest: str | None) -> dict[str, mx.array]:
    """Saved arrays that have the names and shapes of our own: MLX would leave out what does not fit.

    A bit that flipped on the disk makes another number, which only the file's `digest` tells.
    """
    if digest is not None and path.is_file() and hash_file(path).hex() != digest:
        raise StageError(f"cannot read {path} (it is not as it was written): {REMEDY}")
    try:
        saved = load_arrays(path)
        mx.eval(saved)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise StageError(f"cannot read {path} ({_one_line(error)}): {REMEDY}") from None
    if {name: a.shape for name, a in saved.items()} != {name: a.shape for name, a in own.items()}:
        raise StageError(
            f"{path} is not what this run trains, as after a change of mlx-lm: go on with the versions that "
            "began, or remove the whole unfinished run to begin again"
        )
    return saved


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or into a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
