"""Blocks of rows, worked on by a few threads with NumPy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import threadpoolctl

from stages.core.blas import count_cpus

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

THREADS = "OPENBLAS_NUM_THREADS"  # bounds the threads of NumPy's blocks like those of BLAS itself
BLOCK = 1 << 18  # numbers that are worked on together where memory's speed counts, 1 MiB

SHORT = 32  # rows that are not worth a thread of their own
LONG = 512  # rows that are worth four: a block of a matrix product packs the whole other matrix

_T = TypeVar("_T")
_R = TypeVar("_R")


def views(*arrays: Any) -> Any:
    """MLX arrays as NumPy arrays over the same memory."""
    import mlx.core as mx

    mx.eval(*arrays)
    return tuple(np.array(a, copy=False) for a in arrays)


def cut(length: int, size: int) -> list[slice]:
    """Slices of about equal length, at most `size`, that cover `length`.

    Their number is a multiple of four, or of two where they would be short: few cores then end together.
    """
    parts = 4 if length >= LONG else 2 if length >= 2 * SHORT else 1
    count = -(-length // (max(size, 1) * parts)) * parts
    edges = [length * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(edges) if start < end]


def run_blocks(work: Callable[[_T], _R], blocks: Iterable[_T]) -> list[_R]:
    """The results of `work` on every block, in the blocks' order, by as many threads as there are cores.

    A training that diverges is reported by its loss, in one line, and not by NumPy's warnings.
    """

    def quietly(block: _T) -> _R:
        with np.errstate(over="ignore", invalid="ignore"):
            return work(block)

    blocks = list(blocks)
    return [quietly(blocks[0])] if len(blocks) == 1 else list(_threads().map(quietly, blocks))


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that share the work; NumPy's own BLAS gets one thread, or each would start more."""
    for library in threadpoolctl.ThreadpoolController().lib_controllers:
        if "numpy.libs" in library.filepath:
            library.set_num_threads(1)
    return ThreadPoolExecutor(count_cores(), thread_name_prefix="blocks")


def count_cores() -> int:
    """The cores that this process may use, or the number of threads that OPENBLAS_NUM_THREADS allows."""
    if os.environ.get(THREADS, "").isdigit():
        return max(int(os.environ[THREADS]), 1)
    return count_cpus()
