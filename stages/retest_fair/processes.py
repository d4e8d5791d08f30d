"""Stages as processes of their own, one at a time or a few side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import progress
from stages.core.cli import TO_MAKE
from stages.core.errors import INTERRUPTED_CODE, StageError, StageFailed
from stages.core.platform import SHARE_VARIABLE, available_memory_gb

STOP_SECONDS = 60.0  # an interrupted stage may save its work for so long
LOOK_EVERY = 0.1  # seconds between looks at processes that run side by side


@dataclass(frozen=True)
class Call:
    """One stage with its command line; `label` stands before its lines where others run beside it."""

    stage: str
    arguments: Sequence[str]
    label: str = ""


def run_stages(calls: Sequence[Call], *, last: bool = False) -> None:
    """Run stages side by side, each to its end. When one fails the others save their work and stop.

    Ctrl-C reaches all of them; they get time to save their work. With --json only the last stage of a
    retest, the report, has stdout. Raises StageFailed for what a stage has explained itself.
    """
    with _started(calls, stdout=None if last else progress.stream()) as processes:
        while (codes := [process.poll() for process in processes]).count(None):
            if any(codes):
                break
            time.sleep(LOOK_EVERY)
    for call, code in zip(calls, codes, strict=True):
        _heed_code(call.stage, code)


def ask_stage(stage: str, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of a stage that is to make nothing: 0, 2 or TO_MAKE; for 2 the line that says why."""
    with _started([Call(stage, arguments)], stdout=progress.stream(), stderr=subprocess.PIPE) as (process,):
        _, said = process.communicate()
    code, lines = process.returncode, said.splitlines()
    if code == INTERRUPTED_CODE:
        raise KeyboardInterrupt
    line = lines.pop() if code == 2 and lines else ""
    for other in lines:
        print(other, file=sys.stderr)
    if code not in (0, 2, TO_MAKE):
        raise StageError(f"{stage} ended with exit code {code} when it was asked what there is to do")
    return code, line.removeprefix(f"{stage}: ")


@contextmanager
def _started(calls: Sequence[Call], **streams: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes; those that still run at the end of the block are interrupted."""
    processes: list[subprocess.Popen[str]] = []
    # None of them can see what the others are going to take.
    share = {SHARE_VARIABLE: str(available_memory_gb() / len(calls))} if len(calls) > 1 else {}
    try:
        for call in calls:
            command = [stage_python(call.stage), "-m", f"stages.{call.stage}", *call.arguments]
            environment = os.environ | {progress.LABEL_VARIABLE: call.label} | share
            process = subprocess.Popen(command, env=environment, text=True, errors="replace", **streams)
            processes.append(process)
        yield processes
    finally:
        _interrupt([process for process in processes if process.poll() is None])


def _interrupt(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _heed_code(stage: str, code: int | None) -> None:
    """Raise what the exit code of a stage says; None is one that was stopped because of another."""
    if code == INTERRUPTED_CODE:
        raise KeyboardInterrupt
    if code == 2:
        progress.say(f"retest_fair: stopped at {stage}; what was finished before it is kept")
        raise StageFailed(stage)
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):  # of a rank, which its launcher has told
        raise StageError(
            f"{stage} was killed, as by a system that runs out of memory; what was finished before it is "
            "kept, the same command goes on, and takes less memory with --jobs 1"
        )
    if code:
        raise StageError(f"{stage} ended with exit code {code}; what was finished before it is kept")


def stage_python(stage: str) -> str:
    """The interpreter of a stage's own environment, beside the one that runs here; else this one.

    With `nox -P 3.12` all have the same ending: `retest_fair-3-12` and `train-3-12`.
    """
    here = Path(sys.prefix)
    own = here.with_name(stage + here.name.removeprefix("retest_fair")) / "bin" / "python"
    return str(own) if here.name.startswith("retest_fair") and own.exists() else sys.executable
