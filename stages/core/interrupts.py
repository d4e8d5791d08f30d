"""The signals that stop a command, all KeyboardInterrupt: now, or after a block."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from stages.core import progress


def stop_signals() -> list[signal.Signals]:
    """What tells this process to stop: SIGINT, SIGTERM, and a terminal that is closed, but for nohup."""
    closed = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *closed]


def catch_interrupts() -> None:
    """Let `stop_signals` raise KeyboardInterrupt, also where a shell started us with SIGINT ignored.

    Only the first one counts: a terminal signals the whole group and a parent often once more, and
    the second must not break what the first one cleans up.
    """
    for number in stop_signals():
        signal.signal(number, _interrupt)


@contextmanager
def deferred_interrupts(answer: str = "") -> Iterator[threading.Event]:
    """Within the block a signal to stop only sets the event: the block saves its work and raises itself.

    The `answer`, if any, is what the user reads meanwhile, once.
    """
    wanted = threading.Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if answer and not wanted.is_set():
            with suppress(OSError):  # there may be no such stream
                # Not `say`, which the signal may have interrupted.
                os.write(progress.stream().fileno(), f"{progress.line_mark()}  {answer}\n".encode())
        wanted.set()

    before = {number: signal.getsignal(number) for number in stop_signals()}
    for number in before:
        signal.signal(number, note)
    try:
        yield wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in stop_signals():
        signal.signal(number, _pass)  # SIG_IGN would print a traceback for one that is already on its way
    raise KeyboardInterrupt


def _pass(_signal: int, _frame: FrameType | None) -> None:
    pass
