"""Several processes that train one model together, each on its share of every batch.

A process belongs to a group when it was started with MLX's own variables (MLX_RANK and what the
backend needs), by `--ranks`, by `mlx.launch` or by mpirun. Rank 0 alone reads and writes the run's
folder and talks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from stages.train.launch import VARIABLES
from stages.train.lifeline import shares_machine

T = TypeVar("T")


class LostRank(Exception):
    """Another process of the group is gone, or was never found; the message is for the user."""


@dataclass(frozen=True)
class Ranks:
    """This process's place in the group; alone it is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    group: Any = None
    here: int = 1
    """How many of them share this machine's memory."""

    @classmethod
    def join(cls) -> Ranks:
        """Connect to the group that this process was started in. Raises LostRank where that fails."""
        if not any(name in os.environ for name in VARIABLES):
            return cls()
        try:
            group = mx.distributed.init(strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise LostRank(
                f"cannot reach the other processes of this run ({reason}): see that all hosts are up, that "
                "their addresses are right, and that no other run uses the same ports"
            ) from None
        return cls(group.rank(), group.size(), group, here=group.size() if shares_machine() else 1)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> list[T]:
        """This process's part of a batch."""
        return list(rows[self.rank :: self.size])

    def sum_tree(self, tree: Any) -> Any:
        """The sum of a tree of float32 arrays over all ranks, in one message."""
        if self.size == 1:
            return tree
        flat: Any = tree_flatten(tree)
        joined = self._sum(mx.concatenate([array.reshape(-1).astype(mx.float32) for _, array in flat]))
        parts = mx.split(joined, np.cumsum([array.size for _, array in flat])[:-1].tolist())
        return tree_unflatten(
            [
                (name, part.reshape(array.shape).astype(array.dtype))
                for (name, array), part in zip(flat, parts, strict=True)
            ]
        )

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all ranks; integers below 2**24 stay exact."""
        if self.size == 1:
            return list(numbers)
        return [float(x) for x in np.array(self._sum(mx.array(list(numbers), mx.float32)))]

    def numbers_from_leader(self, numbers: Sequence[float]) -> list[float]:
        """Rank 0's numbers, to the last bit: each goes as four 16-bit parts."""
        parts = np.array(list(numbers), np.float64).view(np.uint16)
        sent = self.sum_numbers(parts.tolist() if self.leads else [0.0] * len(parts))
        return [float(x) for x in np.array(sent, np.uint16).view(np.float64)]

    def from_leader(self, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        """Rank 0's values of arrays that all ranks hold in the same shapes, maybe in another order."""
        if self.size == 1:
            return arrays
        own = {name: array if self.leads else mx.zeros_like(array) for name, array in arrays.items()}
        return {name: self._sum(own[name]) for name in sorted(own)}

    def _sum(self, array: mx.array) -> mx.array:
        total: mx.array = mx.distributed.all_sum(array, group=self.group)
        try:
            mx.eval(total)
        except RuntimeError:  # the backend's own: a connection that is gone
            raise LostRank(
                "another process of this run has ended; finished work is kept, the same command goes on"
            ) from None
        return total
