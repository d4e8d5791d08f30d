"""Rows that say the same, within a split and across splits, found by their digests.

A conversion keeps 32 bytes a row (`pack`), in the order in which rows are written. Which of two rows
goes when duplicates are removed: the later one within a split; across splits the one that is trained
on. So the rows that measure stay as they are, their numbers remain comparable, and the largest split
pays. Between `valid` and `test` the row of `valid` goes, since the test is the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

PACKED = np.dtype([("row", "V16"), ("questions", "V16")])
"""One row: the digest of what it says, and the digest of its questions, zero where it has none."""

Digests = npt.NDArray[np.void]
Positions = npt.NDArray[np.intp]

_KEPT_FIRST = ("test", "valid")  # these splits keep a row that another one has too
_EXAMPLES = 5
_NO_QUESTION = bytes(16)


@dataclass(frozen=True)
class Pair:
    """A row and the row that it repeats, by split and 0-based position among the converted rows."""

    split: str
    position: int
    kept_split: str
    kept_position: int


@dataclass(frozen=True)
class Repeats:
    """What one split repeats of another, or of itself."""

    rows: int = 0
    """Rows that say the same as a row that is kept."""
    questions: int = 0
    """Other rows that only ask the same; within a split that is no fault and not counted."""
    examples: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Duplicates:
    """What was found; nothing is removed here."""

    within: dict[str, Repeats]
    """By split: rows that repeat an earlier one of the same split."""
    leaks: dict[tuple[str, str], Repeats]
    """By (split, kept split): rows of the first that the second has too."""
    drop: dict[str, Positions] = field(repr=False)
    """By split: the sorted positions that `--dedup` leaves out."""

    @property
    def any(self) -> bool:
        """Whether there is anything to report."""
        return any(len(positions) for positions in self.drop.values())


def pack(digests: Iterable[tuple[bytes, bytes]]) -> Digests:
    """The digests of rows (`Converted.digests`) as an array of `PACKED`, shape (rows,)."""
    return np.frombuffer(b"".join(row + questions for row, questions in digests), PACKED)


def find(digests: Mapping[str, Digests]) -> Duplicates:
    """The duplicates within each split and the leaks between splits.

    Takes an array of `PACKED` for every split. The order of a split's rows decides which one counts
    as the first; nothing is random.
    """
    within, leaks = {}, {}
    drop: dict[str, Positions] = {}
    kept: list[str] = []
    for split in sorted(digests, key=_keeping_order):
        gone = np.zeros(len(digests[split]), bool)
        within[split] = _find_within(split, digests[split], gone)
        for other in kept:
            leaks[split, other] = _find_leaks(split, digests[split], other, digests[other], gone)
        drop[split] = np.flatnonzero(gone)
        kept.append(split)
    return Duplicates(within, leaks, drop)


def _keeping_order(split: str) -> tuple[int, str]:
    return (_KEPT_FIRST.index(split) if split in _KEPT_FIRST else len(_KEPT_FIRST)), split


def _find_within(split: str, digests: Digests, gone: npt.NDArray[np.bool_]) -> Repeats:
    rows = digests["row"]
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    original = first[inverse]
    repeats = np.flatnonzero(original != np.arange(len(rows)))
    gone[repeats] = True
    examples = tuple(Pair(split, int(p), split, int(original[p])) for p in repeats[:_EXAMPLES])
    return Repeats(len(repeats), 0, examples)


def _find_leaks(
    split: str, digests: Digests, other: str, kept: Digests, gone: npt.NDArray[np.bool_]
) -> Repeats:
    """The rows of `split` that `other` has too, those that go within their split left out."""
    same_row = _find_first(digests["row"], kept["row"])
    same_question = _find_first(digests["questions"], kept["questions"])
    same_question[digests["questions"] == np.void(_NO_QUESTION)] = -1
    counted = ~gone
    rows = (same_row >= 0) & counted
    questions = (same_question >= 0) & counted & ~rows
    gone |= rows | questions
    original = np.where(rows, same_row, same_question)
    places = np.flatnonzero(rows | questions)[:_EXAMPLES]
    examples = tuple(Pair(split, int(p), other, int(original[p])) for p in places)
    return Repeats(int(rows.sum()), int(questions.sum()), examples)


def _find_first(needles: Digests, hay: Digests) -> npt.NDArray[np.intp]:
    """For each needle the position of its first equal in `hay`, -1 where it has none."""
    if not len(hay):
        return np.full(len(needles), -1, np.intp)
    values, first = np.unique(hay, return_index=True)
    place = np.minimum(np.searchsorted(values, needles), len(values) - 1)
    return np.where(values[place] == needles, first[place], -1)
