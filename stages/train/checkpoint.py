"""Checkpoints from which a run goes on exactly as if it had never stopped."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from pydantic import Field

from stages.core.compute import Model, load_arrays
from stages.core.records import Record, read_record, write_record
from stages.train.ranks import Ranks


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


@dataclass
class Checkpoints:
    """The checkpoints of a run, in `folder/checkpoints/NNNNNNN`, and the best adapter, in `folder/best`."""

    folder: Path
    keep: int

    @property
    def _root(self) -> Path:
        return self.folder / "checkpoints"

    def save(self, state: State, model: Model, optimizer: Any) -> None:
        """Write adapter, optimizer and random state; a checkpoint appears whole or not at all."""
        name = f"{state.step:07d}"
        partial, final = self._root / f".{name}.partial", self._root / name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_adapter(model, partial / "adapters.safetensors")
        mx.save_safetensors(str(partial / "optimizer.safetensors"), get_state(optimizer))
        write_record(partial / "state.json", state)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        self._keep_last()

    def resume(self, model: Model, optimizer: Any) -> State | None:
        """Load the last checkpoint into model, optimizer and random state; None when there is none."""
        finished = self._finished()
        if not finished:
            return None
        last = finished[-1]
        model.load_weights(str(last / "adapters.safetensors"), strict=False)
        saved = last / "optimizer.safetensors"
        if saved.exists():  # gone when a run was killed after its last step
            set_state(optimizer, load_arrays(saved))
        return read_record(last / "state.json", State)

    def save_best(self, model: Model) -> None:
        """Keep the model's adapter as the best one so far."""
        best = self.folder / "best"
        best.mkdir(exist_ok=True)
        partial = best / ".partial.safetensors"
        save_adapter(model, partial)
        partial.replace(best / "adapters.safetensors")

    def load_best(self, model: Model) -> None:
        """Put the best adapter into the model."""
        model.load_weights(str(self.folder / "best" / "adapters.safetensors"), strict=False)

    def drop_optimizers(self) -> None:
        """After the run: the adapters stay, what only a resume needs goes."""
        for folder in self._finished():
            (folder / "optimizer.safetensors").unlink(missing_ok=True)

    def _keep_last(self) -> None:
        """Remove all but the last checkpoints, and what a killed run had begun to write or to remove."""
        kept = self._finished()[-self.keep :]
        for other in self._root.iterdir():
            if other not in kept:
                shutil.rmtree(other)

    def _finished(self) -> list[Path]:
        return sorted(p for p in self._root.glob("[0-9]*") if (p / "state.json").is_file())


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
    """The arrays that decide how a run goes on beside its adapter: the optimizer's and the random key."""
    flat: Any = tree_flatten(optimizer.state)
    state: Any = mx.random.state
    return dict(flat) | {"random": state[0]}


def set_state(optimizer: Any, arrays: dict[str, mx.array]) -> None:
    """Put back what `get_state` gave."""
    _set_random_key(arrays["random"])
    optimizer.state = tree_unflatten([(name, a) for name, a in arrays.items() if name != "random"])


def _set_random_key(key: mx.array) -> None:
    """MLX's key is the two 32-bit halves of a seed, and its state can only be set by a seed."""
    high, low = np.array(key).tolist()
    mx.random.seed(high << 32 | low)


def save_adapter(model: Model, path: Path) -> None:
    """The trained parameters in mlx-lm's adapter format."""
    mx.save_safetensors(str(path), dict(tree_flatten(model.trainable_parameters())))
