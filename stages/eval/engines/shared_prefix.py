"""The prefix that all prompts of a batch begin with, kept once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache


class SharedPrefix:
    """One layer's keys and values (1, heads, P, width) of the prefix: where each prompt of a batch starts."""

    def __init__(self, keys: mx.array, values: mx.array) -> None:
        self.arrays = keys, values

    @property
    def nbytes(self) -> int:
        """Nothing that a prompt adds."""
        return 0

    @staticmethod
    def merge(starts: Sequence[SharedPrefix]) -> PrefixedCache:
        """The cache of several prompts, as mlx-lm asks for it."""
        return PrefixedCache(starts[0].arrays, len(starts))


class PrefixedCache(BatchKVCache):  # type: ignore[misc]
    """One layer's keys and values of what follows the prefix, for the prompts of a batch.

    The attention finds the prefix in `prefix` (see `stages.core.cpu.attention`), so a prompt that
    comes or goes moves what is its own and nothing else. Positions count from the prefix's start.
    """

    def __init__(self, prefix: tuple[mx.array, mx.array], prompts: int) -> None:
        super().__init__([0] * prompts)
        self.prefix = prefix
        self.offset += prefix[0].shape[2]

    def __deepcopy__(self, memo: dict[int, Any]) -> PrefixedCache:
        """A cache of its own with the same prefix."""
        other = PrefixedCache(self.prefix, 0)
        other.state = copy.deepcopy(self.state, memo)
        return other
