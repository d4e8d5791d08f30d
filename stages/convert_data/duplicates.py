"""Rows that say the same, within a split and across splits, found by their digests.

A conversion keeps 32 bytes a row, in the order in which rows are written. Which of two rows
goes when duplicates are removed: the later one within a split; across splits the one that is trained
on. So the rows that measure stay as they are, their numbers remain comparable, and the largest split
pays. Between `valid` and `test` the row of `valid` goes, since the test is the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stages.convert_data.digests import NO_DIGEST

PACKED = np.dtype([("row", "V16"), ("questions", "V16")])
"""One row: the digest of what it says, and the digest of its questions, NO_DIGEST where it has none."""

Digests = npt.NDArray[np.void]
Positions = npt.NDArray[np.intp]
Numbers = npt.NDArray[np.uint64]

_KEPT_FIRST = ("test", "valid")  # these splits keep a row that another one has too
_EXAMPLES = 5


@dataclass(frozen=True)
class Pair:
    """A row and the row that it repeats, by split and number in the source."""

    split: str
    line: int
    kept_split: str
    kept_line: int


@dataclass(frozen=True)
class Repeats:
    """What one split repeats of another, or of itself."""

    rows: int = 0
    """Rows that say the same as a row that is kept."""
    questions: int = 0
    """Other rows that only ask the same; within a split that is no fault and not counted."""
    examples: tuple[Pair, ...] = ()


@dataclass(frozen=True, eq=False)
class Twins:
    """The rows of one split that another row makes superfluous, in order, each with that other row.

    All arrays have the shape (superfluous rows,); positions count converted rows from 0.
    """

    positions: Positions
    kept_splits: list[str]
    """What `kept_split` points into."""
    kept_split: npt.NDArray[np.uint8]
    kept_positions: Positions
    same_row: npt.NDArray[np.bool_]
    """Whether the rows say the same; else they only ask the same."""


@dataclass(frozen=True)
class Duplicates:
    """What was found; nothing is removed here."""

    within: dict[str, Repeats]
    """By split: rows that repeat an earlier one of the same split."""
    leaks: dict[tuple[str, str], Repeats]
    """By (split, kept split): rows of the first that the second has too."""
    twins: dict[str, Twins] = field(repr=False)
    """By split: what `--dedup` leaves out."""

    @property
    def any(self) -> bool:
        """Whether there is anything to report."""
        return any(len(twins.positions) for twins in self.twins.values())


def pack(digests: Iterable[tuple[bytes, bytes]]) -> Digests:
    """The digests of rows (`Converted.digests`) as an array of `PACKED`, shape (rows,)."""
    return np.frombuffer(b"".join(row + questions for row, questions in digests), PACKED)


def find(digests: Mapping[str, Digests], numbers: Mapping[str, Numbers]) -> Duplicates:
    """The duplicates within each split and the leaks between splits.

    Takes an array of `PACKED` for every split, and the numbers of its rows in the source, both of shape
    (rows,). The order of a split's rows decides which one counts as the first; nothing is random.
    """
    searches: list[_Search] = []
    for split in sorted(digests, key=_keeping_order):
        search = _Search(split, digests[split], numbers[split])
        search.look_within()
        for other in searches:
            search.look_into(other)
        searches.append(search)
    return Duplicates(
        {search.split: search.within for search in searches},
        {(search.split, other): leak for search in searches for other, leak in search.leaks.items()},
        {search.split: search.twins() for search in searches},
    )


def _keeping_order(split: str) -> tuple[int, str]:
    return (_KEPT_FIRST.index(split) if split in _KEPT_FIRST else len(_KEPT_FIRST)), split


class _Search:
    """The search for the rows of one split in itself and in the splits before it."""

    def __init__(self, split: str, digests: Digests, numbers: Numbers) -> None:
        self.split, self.digests, self.numbers = split, digests, numbers
        self.within = Repeats()
        self.leaks: dict[str, Repeats] = {}
        self._places: list[Positions] = []
        self._kept: list[Positions] = []
        self._same: list[npt.NDArray[np.bool_]] = []
        self._gone = np.zeros(len(digests), bool)

    def look_within(self) -> None:
        """Find the rows that repeat an earlier one of this split."""
        rows = self.digests["row"]
        _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        original = first[inverse]
        repeats = np.flatnonzero(original != np.arange(len(rows)))
        self.within = self._note(self, repeats, original[repeats], np.ones(len(repeats), bool))

    def look_into(self, other: _Search) -> None:
        """Find the rows that `other` has too, those left out that go within their split."""
        same_row = _find_first(self.digests["row"], other.digests["row"])
        same_question = _find_first(self.digests["questions"], other.digests["questions"])
        same_question[self.digests["questions"] == np.void(NO_DIGEST)] = -1
        found = np.flatnonzero(((same_row >= 0) | (same_question >= 0)) & ~self._gone)
        is_row = same_row[found] >= 0
        kept = np.where(is_row, same_row[found], same_question[found])
        self.leaks[other.split] = self._note(other, found, kept, is_row)

    def _note(
        self, other: _Search, found: Positions, kept: Positions, same_row: npt.NDArray[np.bool_]
    ) -> Repeats:
        self._gone[found] = True
        self._places.append(found)
        self._kept.append(kept)
        self._same.append(same_row)
        pairs = zip(self.numbers[found[:_EXAMPLES]], other.numbers[kept[:_EXAMPLES]], strict=True)
        examples = tuple(Pair(self.split, int(line), other.split, int(twin)) for line, twin in pairs)
        rows = int(same_row.sum())
        return Repeats(rows, len(found) - rows, examples)

    def twins(self) -> Twins:
        """All that was found, in the order of this split's rows."""
        positions = np.concatenate(self._places)
        order = np.argsort(positions)
        source = np.repeat(np.arange(len(self._places), dtype=np.uint8), [len(each) for each in self._places])
        return Twins(
            positions[order],
            [self.split, *self.leaks],
            source[order],
            np.concatenate(self._kept)[order],
            np.concatenate(self._same)[order],
        )


def _find_first(needles: Digests, hay: Digests) -> npt.NDArray[np.intp]:
    """For each needle the position of its first equal in `hay`, -1 where it has none."""
    if not len(hay):
        return np.full(len(needles), -1, np.intp)
    values, first = np.unique(hay, return_index=True)
    place = np.minimum(np.searchsorted(values, needles), len(values) - 1)
    return np.where(values[place] == needles, first[place], -1)
