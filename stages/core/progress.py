"""What a user sees while work goes on: lines, bars, and one log file per run."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import orjson
import psutil
from tqdm import tqdm

from stages.core.words import show_controls

LOG_VARIABLE = "FAIR_RETEST_LOG"  # set for the stages of one retest, so that they share its log
LABEL_VARIABLE = "FAIR_RETEST_LABEL"  # stands before the lines of a stage that has another beside it
EARLY = 0.1  # share of the work before which no estimate is shown
LINE_EVERY = 15.0  # seconds between progress lines where there is no terminal
SHAPE = (
    "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"  # our own estimate is in its note
)
MEMORY_EVERY = 2.0  # seconds between memory samples

_on_stderr = False


def talk_on_stderr(chosen: bool) -> None:
    """Send lines and bars to stderr, when stdout is for JSON alone."""
    global _on_stderr
    _on_stderr = chosen


def stream() -> TextIO:
    """The stream of lines and bars."""
    return sys.stderr if _on_stderr else sys.stdout


def line_label() -> str:
    """What every line begins with, or nothing for a stage that has the terminal for itself."""
    return os.environ.get(LABEL_VARIABLE, "")


def line_mark() -> str:
    """The label and what divides it from the line."""
    return f"{line_label()} | " if line_label() else ""


def say(text: str) -> None:
    """Print one line above any bar. What a server or a file put into it does not steer the terminal."""
    # With its end in one piece: another process may write to the same place.
    tqdm.write(f"{line_mark()}{show_controls(text)}\n", file=stream(), end="")
    stream().flush()


class Bar:
    """A progress bar on a terminal, and a line now and then anywhere else, or beside another stage."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self._live = stream().isatty() and not line_label()
        self._next_line = time.monotonic() + LINE_EVERY
        self._tqdm = tqdm(
            total=total,
            initial=done,
            desc=f"  {label}",
            unit=unit,
            file=stream(),
            disable=not self._live,
            leave=False,
            bar_format=SHAPE,
        )
        self._label, self._total, self._done, self._unit = label, total, done, unit
        self._first, self._started, self._pause = done, time.monotonic(), 0.0

    def begin(self) -> None:
        """Say how much there is to do, where no bar shows it."""
        if not self._live:
            say(f"  {self._label} {self._done}/{self._total} {self._unit}")

    def advance(self, by: int = 1, note: str = "", pauses: int = 0) -> None:
        """Count `by` more units; `note` is shown behind the bar, `pauses` are still to come."""
        self._done += by
        shown = f"{self._describe_rest(pauses)} {note}".strip()
        if self._live:
            self._tqdm.set_postfix_str(shown, refresh=False)
            self._tqdm.update(by)
        elif time.monotonic() >= self._next_line and self._first < self._done < self._total:
            divided = ", " if shown != note else " "
            say(f"  {self._label} {self._done}/{self._total} {self._unit}{divided}{shown}".rstrip())
            self._next_line = time.monotonic() + LINE_EVERY

    def _describe_rest(self, pauses: int) -> str:
        """The time that the rest and so many pauses will take; nothing while too little is done to tell."""
        done, rest = self._done - self._first, self._total - self._done
        # The first of a batch to end says nothing about the others.
        if done == 0 or rest == 0 or done < EARLY * (done + rest):
            return ""
        left = rest / done * (time.monotonic() - self._started) + pauses * self._pause
        return f"{left:.0f} s left"

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of what a unit takes; a pause to come takes as long as the last."""
        before = time.monotonic()
        yield
        self._pause = time.monotonic() - before
        self._started += self._pause
        if self._live:
            self._tqdm.start_t += self._pause

    def close(self) -> None:
        """Take the bar away."""
        self._tqdm.close()


@contextmanager
def bar(label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
    """A bar for the block."""
    shown = Bar(label, total, unit, done)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def run_log(stage: str, folder: Path, **about: Any) -> Iterator[dict[str, Any]]:
    """Log the stage's start, its memory over time (`rss_gb`, and what MLX holds) and its end.

    The file is the one that FAIR_RETEST_LOG names, else a new one below `folder`. What the block
    puts into the mapping is logged with the end.
    """
    path = Path(os.environ.get(LOG_VARIABLE) or new_log_file(folder, stage))
    path.parent.mkdir(parents=True, exist_ok=True)
    stop, notes, started = threading.Event(), {"ok": False}, time.perf_counter()
    sampler = threading.Thread(target=_sample_memory, args=(path, stage, stop), daemon=True)
    write_log(path, stage, "start", **about)
    sampler.start()
    try:
        yield notes
        notes["ok"] = True
    finally:
        stop.set()
        sampler.join()
        write_log(path, stage, "end", seconds=round(time.perf_counter() - started, 3), **notes)


def new_log_file(folder: Path, name: str) -> Path:
    """A log file named after the moment and the command."""
    return folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}.jsonl"


def write_log(path: Path, stage: str, event: str, **facts: Any) -> None:
    """Append one event as a JSON line; what runs beside another stage is told apart by its label."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "stage": stage,
        "event": event,
        **({"beside": line_label().strip()} if line_label() else {}),
        **facts,
    }
    with path.open("ab") as file:
        file.write(orjson.dumps(line, default=str) + b"\n")


def _sample_memory(path: Path, stage: str, stop: threading.Event) -> None:
    process = psutil.Process()
    while True:
        try:
            write_log(
                path, stage, "memory", rss_gb=round(process.memory_info().rss / 1e9, 3), **_mlx_memory()
            )
        except OSError:
            return  # a full disk: the work itself will say so
        if stop.wait(MEMORY_EVERY):
            return


def _mlx_memory() -> dict[str, float]:
    """What MLX holds, once the stage has imported it: on a GPU that is not in the resident memory."""
    held = getattr(sys.modules.get("mlx.core"), "get_active_memory", None)
    return {"mlx_gb": round(held() / 1e9, 3)} if held else {}
