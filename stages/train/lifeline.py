"""What ties the processes of a run together: none goes on when the one that started it is gone.

Whoever starts a process of the run holds one end of a pipe to it. When that end is closed, by a launcher
that was told to stop or was killed, the process saves its work and ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from stages.core.errors import INTERRUPTED_CODE
from stages.core.interrupts import stop_signals

SAVING = 60.0  # seconds that a process gets to save its work when it is told to stop
LAUNCHER = "FAIR_RETEST_LAUNCHER"  # the number of the pipe that closes when this process's launcher ends
STDIN = "0"  # where mlx.launch has it: a line there is as good as its end
MPI_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
Process = subprocess.Popen[bytes] | subprocess.Popen[str]


def shares_machine() -> bool:
    """Whether this rank was started by a `--ranks` here, so that all of the group are on this machine."""
    return os.environ.get(LAUNCHER, STDIN) != STDIN


def watch_launcher() -> None:
    """Stop when the process that started this one for a run is gone, however it ended, or says so.

    First politely; a rank that waits for another one hears no signal, and ends all the same. mpirun gives
    its stdin to rank 0 alone, which tells the others to stop.
    """
    if LAUNCHER not in os.environ:
        return
    if not shares_machine() and any(os.environ.get(name, "0") != "0" for name in MPI_VARIABLES):
        return

    def wait() -> None:
        with suppress(OSError):  # a terminal of ssh's that is gone
            os.read(int(os.environ[LAUNCHER]), 1)  # ends when the launcher's end of the pipe is closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SAVING)
        os._exit(INTERRUPTED_CODE)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def open_lifeline() -> Iterator[int]:
    """For LAUNCHER of what is started in the block: a pipe that closes when this process ends, however."""
    alive, closed_at_end = os.pipe()
    try:
        yield alive
    finally:
        os.close(alive)
        os.close(closed_at_end)


@contextmanager
def forward_signals(ranks: list[Process]) -> Iterator[threading.Event]:
    """What would stop this process stops the ranks, which save their work first; the event is set then."""
    with hear_signals(lambda number: signal_all(ranks, number)) as told:
        yield told


@contextmanager
def hear_signals(react: Callable[[int], None]) -> Iterator[threading.Event]:
    """Within the block what would stop this process calls `react` instead; the event is set then."""
    told = threading.Event()

    def hear(number: int, _frame: FrameType | None) -> None:
        told.set()
        react(number)

    before = {number: signal.signal(number, hear) for number in stop_signals()}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_all(ranks: list[Process], number: int) -> None:
    """Send a signal to those that still run."""
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def exit_code(code: int) -> int:
    """A process's return code as a shell has it: 128 and the number of the signal that ended it."""
    return code if code >= 0 else 128 - code
