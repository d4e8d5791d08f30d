"""What a run writes down while it goes on: `log.jsonl`, and what the trackers are told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import orjson

from stages.core import progress
from stages.core.compute import device_peak_gb
from stages.core.platform import peak_memory_gb
from stages.core.records import LossPoint
from stages.core.words import plural
from stages.train.checkpoint import State
from stages.train.loss import Losses


class RunLog:
    """`log.jsonl`: what a stopped run wrote after its last checkpoint is cut off first.

    Of a file that has become shorter meanwhile the whole lines stay, and what is gone is said.
    """

    def __init__(self, path: Path, state: State, trackers: Any = None) -> None:
        self._path, self._before, self._started = path, state.seconds, time.perf_counter()
        self._trackers = trackers
        _cut_back(path, state)

    @property
    def seconds(self) -> float:
        """Training time so far, earlier parts of a resumed run included."""
        return round(self._before + time.perf_counter() - self._started, 3)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._path.stat().st_size

    def trained(self, step: int, losses: Losses, rate: float, speed: float | None) -> None:
        """A line of the training loss since the last one; `speed` is in tokens of the rows a second."""
        point = LossPoint(
            step=step,
            kind="train",
            loss=round(losses.mean, 5),
            call_loss=_rounded(losses.call_mean),
            learning_rate=rate,
            tokens_per_second=_rounded(speed, 1),
            memory_gb=_peak_gb(),
            seconds=self.seconds,
        )
        self._write(point)
        if self._trackers is not None:
            self._trackers.on_train_loss_report(_named(point, "train_loss"))

    def validated(self, step: int, losses: Losses) -> None:
        """A line of the validation loss."""
        point = LossPoint(
            step=step,
            kind="valid",
            loss=round(losses.mean, 5),
            call_loss=_rounded(losses.call_mean),
            exact_calls=_rounded(losses.exact_share, 4),
            memory_gb=_peak_gb(),
            seconds=self.seconds,
        )
        exact = f", {losses.exact_calls} of {losses.calls} calls exact" if losses.calls else ""
        progress.say(f"  step {step}: validation loss {losses.mean:.4f}{exact}")
        self._write(point)
        if self._trackers is not None:
            self._trackers.on_val_loss_report(_named(point, "val_loss"))

    def _write(self, point: LossPoint) -> None:
        with self._path.open("ab") as file:
            file.write(orjson.dumps(point.model_dump()) + b"\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint on the disk says how long the log is


def _cut_back(path: Path, state: State) -> None:
    path.touch()
    with path.open("r+b") as file:
        kept = file.read(state.log_bytes)
        if len(kept) < state.log_bytes:  # longer, the file would be filled up with zero bytes
            kept = kept[: kept.rfind(b"\n") + 1]
            progress.say(
                f"  WARNING: {path} has lost losses of the {plural(state.step, 'step')} so far: those after "
                f"line {len(kept.splitlines())} are not in it, and in no picture of a report"
            )
        file.truncate(len(kept))


def _peak_gb() -> float:
    return max(peak_memory_gb(), device_peak_gb())


def _named(point: LossPoint, loss: str) -> dict[str, Any]:
    """The point in the words of mlx-lm's callbacks."""
    values = {k: v for k, v in point.model_dump().items() if v is not None and k not in ("kind", "step")}
    return {"iteration": point.step, loss: values.pop("loss"), **values}


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else round(value, digits)
