"""The signals that stop a command, SIGINT and SIGTERM: both are KeyboardInterrupt, now or after a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def catch_interrupts() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt, also where a shell started us with them ignored.

    Only the first one counts: a terminal signals the whole group and a parent often once more, and
    the second must not break what the first one cleans up.
    """
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def deferred_interrupts() -> Iterator[threading.Event]:
    """Within the block a signal to stop only sets the event: the block saves its work and raises itself."""
    wanted = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda _signal, _frame: wanted.set())
    try:
        yield wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
