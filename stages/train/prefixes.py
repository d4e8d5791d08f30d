"""Which rows are computed behind a common beginning: those for which that saves most.

Rows of one experiment mostly begin with the same system turn and tools. Some data have several of them,
or a few rows with others of their own: one beginning for all would then be a few tokens long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from stages.core.render import Encoded
from stages.train.rows import Ints

PART = 20  # positions that take as long as what another part of a batch costs beside its own (docs/LOG.md)
WORTH = 0.2  # of a batch's positions, that several beginnings have to save


def shared_prefix(rows: Sequence[Encoded]) -> list[int]:
    """The tokens that all rows begin with, ending before anything supervised is predicted."""
    prefix = rows[0].tokens[: min(map(_head_length, rows))]
    for row in rows[1:]:
        if row.tokens[: len(prefix)] != prefix:
            prefix = prefix[: next(i for i, token in enumerate(prefix) if row.tokens[i] != token)]
    return prefix


def group_rows(rows: Sequence[Encoded], batch_size: int) -> list[list[Encoded]]:
    """The rows in groups, the largest first, each to be computed behind what its rows begin with.

    A batch of rows that are drawn at random is computed in a part for every group that it has rows of. The
    groups are those by which the fewest positions are computed, as far as one can see from the leaves of the
    tree of all beginnings to its root; one group, unless several save much.
    """
    heads = [np.array(row.tokens[: _head_length(row)], np.int32) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: heads[index].tobytes())
    alike = [_common_length(heads[a], heads[b]) for a, b in pairwise(order)]
    cost = _Cost(len(rows), min(batch_size, len(rows)))
    division = _divide(cost, [len(heads[index]) for index in order], alike)
    one = cost.behind(min(alike, default=0), len(rows))
    computed = cost.batch_size * sum(len(row.tokens) for row in rows) / len(rows) + one
    if one - division.positions < WORTH * computed:
        return [list(rows)]
    groups = [sorted(order[place] for span in group for place in span) for group in division.groups]
    return [[rows[i] for i in group] for group in sorted(groups, key=lambda group: (-len(group), group[0]))]


def _head_length(row: Encoded) -> int:
    """How much a row can share: behind it the first supervised token is not yet predicted."""
    return max(row.supervised.index(True) - 1, 0)


def _common_length(a: Ints, b: Ints) -> int:
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


@dataclass(frozen=True)
class _Cost:
    """What groups cost a batch of `batch_size` out of `count` rows: positions, less those of whole rows."""

    count: int
    batch_size: int

    def saved(self, length: int, rows: int) -> float:
        """What so many rows save behind so many tokens that are computed anyway."""
        return self.batch_size * rows / self.count * length

    def behind(self, length: int, rows: int) -> float:
        """What a group costs: its beginning is computed once if the batch has a row of it at all."""
        present = 1 - _absent(rows, self.count, self.batch_size)
        return present * (length + PART) - self.saved(length, rows)


@lru_cache(maxsize=1 << 16)
def _absent(rows: int, count: int, batch_size: int) -> float:
    """The probability that a batch out of `count` rows has none of so many."""
    left = count - rows
    return math.prod(max(left - i, 0) / (count - i) for i in range(batch_size))


@dataclass(frozen=True)
class _Division:
    """Places in the sorted order, the groups that they are divided into, and what those cost."""

    span: range
    groups: list[list[range]]
    positions: float


def _divide(cost: _Cost, lengths: Sequence[int], alike: Sequence[int]) -> _Division:
    """The groups of sorted beginnings of these lengths, of which neighbours have so many tokens in common."""
    open_nodes: list[tuple[int, list[_Division]]] = []  # ever longer beginnings, and what begins so
    for place, shared in enumerate([*alike, -1]):
        span = range(place, place + 1)
        division = _Division(span, [[span]], cost.behind(lengths[place], 1))
        while open_nodes and open_nodes[-1][0] > shared:
            length, parts = open_nodes.pop()
            division = _join(cost, length, [*parts, division])
        if not open_nodes or open_nodes[-1][0] < shared:
            open_nodes.append((shared, []))
        open_nodes[-1][1].append(division)
    return open_nodes[0][1][0]


def _join(cost: _Cost, length: int, parts: list[_Division]) -> _Division:
    """The best of: one group behind `length` tokens, the parts as they are, and one group of the weak ones.

    These are the parts that save less than they would in a group which is there anyway.
    """
    strong = [part for part in parts if part.positions < -cost.saved(length, len(part.span))]
    weak = [part for part in parts if part.positions >= -cost.saved(length, len(part.span))]
    one, mixed, apart = (
        _gather(cost, length, own, rest) for own, rest in (([], parts), (strong, weak), (parts, []))
    )
    return min(one, mixed, apart, key=lambda division: division.positions)


def _gather(cost: _Cost, length: int, own: list[_Division], rest: list[_Division]) -> _Division:
    """Parts that stay as they are, and a group of the rest behind `length` tokens."""
    places = sorted([*own, *rest], key=lambda part: part.span.start)
    span = range(places[0].span.start, places[-1].span.stop)
    groups, positions = [group for part in own for group in part.groups], sum(part.positions for part in own)
    if rest:
        groups.append([part.span for part in rest] if own else [span])
        positions += cost.behind(length, sum(len(part.span) for part in rest))
    return _Division(span, groups, positions)
