"""Waiting for what other processes do: for the event itself, with a limit for what hangs alone.

No test is about time: a machine that does other work as well is several times slower.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HANGS = 600.0  # seconds after which something will never happen
LOOK_EVERY = 0.005  # seconds


def wait_until(
    happened: Callable[[], object], what: str, process: subprocess.Popen[str] | None = None
) -> None:
    """Return as soon as it has happened; fail where the process that is to do it has ended without it."""
    give_up = time.monotonic() + HANGS
    while True:
        ended = process is not None and process.poll() is not None  # first: it may end just after it did it
        if happened():
            return
        assert not ended, (what, process and process.communicate())
        assert time.monotonic() < give_up, what
        time.sleep(LOOK_EVERY)


def wait_for(path: Path, process: subprocess.Popen[str] | None = None) -> None:
    """Return as soon as there is a file or folder of this name."""
    wait_until(path.exists, f"{path} never appeared", process)


def wait_for_line(process: subprocess.Popen[str], part: str) -> None:
    """Return as soon as a line with this part is read from the process's stdout."""
    assert process.stdout is not None
    with limit_time(process):
        while part not in (line := process.stdout.readline()):
            assert line, (f"it ended without {part!r}", process.communicate())


@contextmanager
def limit_time(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the process where the block hangs: a read of what it writes would else wait for ever."""
    timer = threading.Timer(HANGS, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The process's exit code, and the rest of what it wrote to stdout and stderr."""
    out, error = process.communicate(timeout=HANGS)
    return process.returncode, out, error
