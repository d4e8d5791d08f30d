"""The stages of a fair retest. Each sub-package is one stage, `core` is what they share."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

from stages.core.errors import INTERRUPTED, INTERRUPTED_CODE


def _leave(_signal: int, _frame: FrameType | None) -> None:
    label = os.environ.get("FAIR_RETEST_LABEL")  # of `core.progress`, which takes long to load
    os.write(2, f"{label + ' | ' if label else ''}{_NAME}: {INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED_CODE)  # nothing is begun, and unwinding half an import prints its traceback


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In one line that a package is missing; whatever else was raised as Python shows it."""
    lost = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if not lost or lost.partition(".")[0] == __name__:
        sys.__excepthook__(kind, error, trace)
        return
    print(
        f"{_NAME}: the package {lost.partition('.')[0]} is not installed for {sys.executable}: run "
        f"nox -s {_NAME}, or install the group {_NAME} of pyproject.toml there",
        file=sys.stderr,
    )
    sys.exit(2)


if sys.argv[:1] == ["-m"]:  # so only while `python -m stages.NAME` looks for its module
    _NAME = next((word[7:] for word in sys.orig_argv if word.startswith("stages.")), "stages")
    sys.excepthook = _explain
    # Until the stage has its own handlers: loading its packages takes long enough to press Ctrl-C.
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # kept back by core.blas
