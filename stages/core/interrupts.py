"""The signals that stop a command, all KeyboardInterrupt: now, or after a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
def deferred_interrupts() -> Iterator[threading.Event]:
    """Within the block a signal to stop only sets the event: the block saves its work and raises itself."""
    wanted = threading.Event()
    before = {number: signal.getsignal(number) for number in stop_signals()}
    for number in before:
        signal.signal(number, lambda _signal, _frame: wanted.set())
    try:
        yield wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
