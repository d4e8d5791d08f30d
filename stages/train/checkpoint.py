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

KEEP = 2  # checkpoints that stay on disk


class State(Record):
    """Where a run stood."""

    step: int = Field(description="optimizer steps done")
    seconds: float = Field(description="of training so far")
    log_bytes: int = Field(description="length of log.jsonl at that moment")
    best_loss: float | None = Field(description="lowest validation loss so far, nats")


@dataclass
class Checkpoints:
    """The checkpoints of a run, in `folder/checkpoints/NNNNNNN`."""

    folder: Path

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
        arrays = dict(tree_flatten(optimizer.state)) | {"random": _read_random_key()}
        mx.save_safetensors(str(partial / "optimizer.safetensors"), arrays)
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
            arrays = load_arrays(saved)
            _set_random_key(arrays.pop("random"))
            optimizer.state = tree_unflatten(list(arrays.items()))
        return read_record(last / "state.json", State)

    def drop_optimizers(self) -> None:
        """After the run: the adapters stay, what only a resume needs goes."""
        for folder in self._finished():
            (folder / "optimizer.safetensors").unlink(missing_ok=True)

    def _keep_last(self) -> None:
        """Remove all but the last checkpoints, and what a killed run had begun to write or to remove."""
        kept = self._finished()[-KEEP:]
        for other in self._root.iterdir():
            if other not in kept:
                shutil.rmtree(other)

    def _finished(self) -> list[Path]:
        return sorted(p for p in self._root.glob("[0-9]*") if (p / "state.json").is_file())


def _read_random_key() -> mx.array:
    state: Any = mx.random.state
    key: mx.array = state[0]
    return key


def _set_random_key(key: mx.array) -> None:
    """MLX's key is the two 32-bit halves of a seed, and its state can only be set by a seed."""
    high, low = np.array(key).tolist()
    mx.random.seed(high << 32 | low)


def save_adapter(model: Model, path: Path) -> None:
    """The trained parameters in mlx-lm's adapter format."""
    mx.save_safetensors(str(path), dict(tree_flatten(model.trainable_parameters())))
