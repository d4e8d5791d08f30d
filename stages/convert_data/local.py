"""The pieces on all cores of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from stages.convert_data.pieces import Piece
from stages.convert_data.work import Task, Work
from stages.core.errors import StageError
from stages.core.interrupts import deferred_interrupts


class LostWorker(StageError):
    """A process died; the data are not to blame, and what is done stays."""


def run_locally(task: Task, pieces: Sequence[Piece], work: Work, workers: int) -> Iterator[int]:
    """Do the task with all pieces in so many processes and yield the rows of each as it is done.

    Whoever stops early gets what is begun finished, so that it need not be done again.
    """
    if min(workers, len(pieces)) <= 1:
        for piece in pieces:
            yield task(piece, work)
        return
    # Started anew and not forked: a fork copies locks that another thread may hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(pieces)), context, _start_worker) as pool:
        begun: list[Future[int]] = []
        try:
            _submit(pool, task, pieces, work, begun)
            for done in as_completed(begun):
                yield done.result()
        except BrokenProcessPool:
            raise LostWorker(
                "a worker was killed, for want of memory perhaps: lower --workers; the same command goes on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, task: Task, pieces: Sequence[Piece], work: Work, begun: list[Future[int]]
) -> None:
    """Hand all pieces to the pool, which starts its processes; a signal waits until they are there.

    They inherit that Ctrl-C is blocked, so that none of them is hit by it before it can ignore it.
    """
    with deferred_interrupts() as wanted:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            begun += [pool.submit(task, piece, work) for piece in pieces]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if wanted.is_set():
        signal.raise_signal(signal.SIGINT)


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    """Let the parent decide when to stop: a terminal's Ctrl-C reaches the whole group, a kill -9 only it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(parent: int) -> None:
    wait([parent])
    os._exit(1)
