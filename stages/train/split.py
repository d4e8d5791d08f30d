"""The model cut into what stays frozen and what is trained.

Below the first layer that has LoRA nothing changes during a run, so the hidden states that come
out there are the same for a row in every epoch: they are computed once and kept. A prefix that rows
share is computed once for the run below the cut, and once per batch above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import ConcatenateKVCache

from stages.core import cpu
from stages.core.compute import Model, total_memory_gb
from stages.core.platform import GB, accelerator
from stages.core.render import Encoded
from stages.train.prefixes import shared_prefix
from stages.train.rows import make_batch

KEEP_SHARE = 0.15  # of the memory, for the hidden states that are kept


def kept_bytes(state: int, groups: Sequence[Sequence[Encoded]]) -> int:
    """What the hidden states of all rows take, `state` bytes each; 0 where that is more than may be kept.

    It is a share of what there is, not of what is free, so that it stays the same.
    """
    whole = sum(len(row.tokens) for rows in groups for row in rows)
    needed = state * (whole - sum(len(shared_prefix(rows)) * len(rows) for rows in groups))
    return needed if needed <= KEEP_SHARE * total_memory_gb() * GB else 0


class PrefixCache(ConcatenateKVCache):  # type: ignore[misc]
    """One layer's keys and values of the prefix, (1, heads, P, width), laid under later rows.

    Where the attention looks for a prefix (`apart`), it gets it once instead of with every row.
    """

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self._apart = apart
        self.prefix: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keep what the first call brings; put it before what a later call brings."""
        if self.keys is None:
            kept: tuple[mx.array, mx.array] = super().update_and_fetch(keys, values)
            return kept
        if self._apart:
            self.prefix = self.keys, self.values
            return keys, values
        return cpu.lay_under(self.keys, keys), cpu.lay_under(self.values, values)


class SplitModel:
    """A model as `trunk` (embedding and frozen layers) and `top` (trained layers)."""

    def __init__(self, model: Model, trained_layers: int, *, checkpoint: bool = False) -> None:
        self.model, self._checkpoint = model, checkpoint
        cut = len(model.layers) - trained_layers
        self._below, self._above = model.layers[:cut], model.layers[cut:]
        self._make_cache = partial(PrefixCache, apart=cpu.sees_prefixes(model))

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return int(self.model.model.norm.weight.size)

    @property
    def dtype(self) -> mx.Dtype:
        """The type that the model computes in."""
        dtype: mx.Dtype = self.model.model.norm.weight.dtype
        return dtype

    def trunk_cache(self) -> list[PrefixCache]:
        """Fresh prefix caches for the layers below the cut."""
        return [self._make_cache() for _ in self._below]

    def trunk(self, tokens: mx.array, caches: Sequence[PrefixCache] | None) -> mx.array:
        """Hidden states (B, T, width) at the cut for token ids (B, T) behind what the caches hold."""
        hidden: mx.array = self.model.model.embed_tokens(tokens)
        for layer, cache in zip(self._below, caches or self.trunk_cache(), strict=True):
            hidden = layer(hidden, create_attention_mask(hidden, cache), cache=cache)
        return hidden

    def top(self, prefix: mx.array | None, hidden: mx.array) -> mx.array:
        """Final hidden states (B, T, width), before the norm, from those at the cut.

        The prefix (1, P, width) goes through each layer as one row, just before the rows that see it.
        """
        for layer in self._above:
            if self._checkpoint:
                *before, hidden = self._checkpointed(layer)(*([] if prefix is None else [prefix]), hidden)
                prefix = before[0] if before else None
            else:
                prefix, hidden = self._run(layer, prefix, hidden)
        return hidden

    def _run(
        self, layer: Model, prefix: mx.array | None, hidden: mx.array
    ) -> tuple[mx.array | None, mx.array]:
        cache = self._make_cache()
        if prefix is not None:
            prefix = layer(prefix, create_attention_mask(prefix, cache), cache=cache)
        return prefix, layer(hidden, create_attention_mask(hidden, cache), cache=cache)

    def _checkpointed(self, layer: Model) -> Callable[..., Sequence[mx.array]]:
        """`_run` of a prefix, if any, and states that keeps only its inputs and computes the rest again."""
        flat: Any = tree_flatten(layer.trainable_parameters())
        trained = dict(flat)

        def run(*arrays: mx.array) -> tuple[mx.array, ...]:
            layer.update(tree_unflatten(list(zip(trained, arrays, strict=False))))
            *prefix, hidden = arrays[len(trained) :]
            before, after = self._run(layer, prefix[0] if prefix else None, hidden)
            return (after,) if before is None else (before, after)

        plain = self.dtype == mx.float32 and accelerator() == "cpu"
        return partial((cpu.recompute if plain else mx.checkpoint)(run), *trained.values())

    @property
    def head(self) -> Any:
        """The module that makes logits of normed states: a linear one, or the tied embedding."""
        return getattr(self.model, "lm_head", None) or self.model.model.embed_tokens

    def supervised(self, prefix: mx.array | None, hidden: mx.array, where: mx.array) -> mx.array:
        """Normed final states (M, width) at flat positions `where` (M,) of (B, T), from states at the cut."""
        out = self.top(prefix, hidden)
        normed: mx.array = self.model.model.norm(out.reshape(-1, out.shape[-1])[where])
        return normed


class Trunk:
    """The hidden states at the cut: of a prefix (1, P, width), and of the rows behind it, each computed once.

    The last bits of a row's states depend on the rows that are computed with it. Each row of the run
    therefore has its fixed company, whatever batch asks for it first: a resumed run gets the same bits.
    """

    def __init__(self, split: SplitModel, rows: Sequence[Encoded], company: int, *, keeps: bool) -> None:
        prefix = shared_prefix(rows)
        self._split, self._cache = split, split.trunk_cache() if prefix else None
        self.rows, self.size = rows, len(prefix)
        self.prefix: mx.array | None = None
        if prefix:
            self.prefix = split.trunk(mx.array([prefix]), self._cache)
            mx.eval(self.prefix)
        ordered = sorted(rows, key=lambda row: len(row.tokens))
        groups = [ordered[i : i + company] for i in range(0, len(ordered), company)]
        self._company = {id(row): members for members in groups for row in members} if keeps else {}
        self._kept: dict[int, mx.array] = {}

    def find_missing(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Of the rows whose states are kept, the first of each company that is yet to be computed."""
        missing: dict[int, Encoded] = {}
        for row in rows:
            if id(row) in self._company and id(row) not in self._kept:
                missing.setdefault(id(self._company[id(row)]), row)
        return list(missing.values())

    def prepare(self, row: Encoded) -> None:
        """Compute and keep the states of the row and its company."""
        self._states(row)

    def hidden(self, rows: Sequence[Encoded], inputs: mx.array) -> mx.array:
        """Hidden states (B, T, width) at the cut for the rows behind `inputs` (B, T)."""
        if not all(id(row) in self._company for row in rows):
            hidden = self._split.trunk(inputs, self._cache)
            mx.eval(hidden)
            return hidden
        length, parts = inputs.shape[1], [self._states(row) for row in rows]
        return mx.stack([mx.pad(part, [(0, length - part.shape[0]), (0, 0)]) for part in parts])

    def _states(self, row: Encoded) -> mx.array:
        if id(row) not in self._kept:
            members = self._company[id(row)]
            states = self._split.trunk(mx.array(make_batch(members, self.size).inputs), self._cache)
            for index, member in enumerate(members):
                self._kept[id(member)] = mx.contiguous(states[index, : len(member.tokens) - self.size])
            mx.eval([self._kept[id(member)] for member in members])
        return self._kept[id(row)]


def make_trunks(split: SplitModel, groups: Sequence[Sequence[Encoded]], company: int) -> list[Trunk]:
    """A trunk for every group of rows; none keeps states where those of all rows take too much memory."""
    keeps = kept_bytes(split.width * split.dtype.size, groups) > 0
    return [Trunk(split, rows, company, keeps=keeps) for rows in groups]
