"""What is counted of the rows of a split, and the rows that are shown of it.

Counting is bounded in memory whatever the data: counters with a limit of keys, the first few line
numbers of each reason, the first few samples. The counts of shards are merged into those of a split.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from stages.convert_data.converted import Converted, Kind
from stages.core.words import plural

SAMPLES = 5
LINES = 5  # line numbers that are kept of each reason
OTHERS = "(others)"

_MOST_KEYS = 10_000
_MOST_NOTED = 200
_MOST_KINDS = 2_000
_LONGEST = 1_600  # characters of a sample on each side

_OF_KIND = {
    "turns_by_dialect": "dialects",
    "calls_by_tool": "tools",
    **{name: name for name in ("changes", "untyped", "undefined", "unanswered", "unwritable", "faults")},
}
_NOTED = ("misfits", "lookalikes", "controls")  # of a kind, counted with the rows that have them
_COUNTERS = (*_OF_KIND, "shapes", "patterns", "rows_by_dialect", "rows_by_tool", "rows_by_owner")
OWN_TOOLS, COMMON_TOOLS = "its own", "the tools for rows without their own"
NO_CALL = "no call"

_PARTICULARS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")


@dataclass
class Noted:
    """How often something was met, and in which rows."""

    count: int = 0
    lines: list[int] = field(default_factory=list)
    """The first few line numbers."""
    example: str = ""
    """What it was in the first of them, where several such things count as one."""


@dataclass(frozen=True)
class Sample:
    """A row before and after, cut where it is long."""

    kind: str
    before: str
    after: str


@dataclass
class SplitCard:
    """The counts of one split, or of one shard of it."""

    converted: int = 0
    rejected: int = 0
    reasons: dict[str, Noted] = field(default_factory=dict)
    shapes: dict[str, int] = field(default_factory=dict)
    rows_by_dialect: dict[str, int] = field(default_factory=dict)
    """Rows by each dialect that they have a call in, NO_CALL for those without."""
    turns_by_dialect: dict[str, int] = field(default_factory=dict)
    """Assistant turns with calls."""
    rows_by_tool: dict[str, int] = field(default_factory=dict)
    """Rows by each tool that they call."""
    calls_by_tool: dict[str, int] = field(default_factory=dict)
    rows_by_owner: dict[str, int] = field(default_factory=dict)
    """Rows by whose tools they are offered: OWN_TOOLS or COMMON_TOOLS."""
    patterns: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    untyped: dict[str, int] = field(default_factory=dict)
    undefined: dict[str, int] = field(default_factory=dict)
    unanswered: dict[str, int] = field(default_factory=dict)
    """Calls without a result, by where they stand."""
    unwritable: dict[str, int] = field(default_factory=dict)
    misfits: dict[str, Noted] = field(default_factory=dict)
    """`tool.argument` of what in calls disagrees with their definitions, and why."""
    faults: dict[str, int] = field(default_factory=dict)
    """Rows by what in their own definitions cannot be meant."""
    lookalikes: dict[str, Noted] = field(default_factory=dict)
    """Turns without a call that look like one, by the format; no turn is in `reasons` as well."""
    controls: dict[str, Noted] = field(default_factory=dict)
    """Rows by the control tokens that their texts hold."""
    systems: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows by the system text that was written into them, and by what they had before."""
    samples: dict[str, Sample] = field(default_factory=dict)
    """The first row of each kind."""
    first_rows: list[Sample] = field(default_factory=list)
    """The first rows that differ, whatever their kind."""

    @property
    def rows(self) -> int:
        """Rows read: every one is converted or rejected."""
        return self.converted + self.rejected

    def accept(self, row: Converted, number: int) -> None:
        """Count a converted row by its 1-based line number."""
        self.count(row.kind, 1)
        self.note(row.kind, number)
        self.show(row)

    def note(self, kind: Kind, number: int) -> None:
        """Count what is told with the rows that have it."""
        for name in _NOTED:
            for what in getattr(kind, name):
                _note(getattr(self, name), what, Noted(1, [number]))

    def count(self, kind: Kind, rows: int) -> None:
        """Count so many converted rows of a kind."""
        self.converted += rows
        for counter, keys in _OF_KIND.items():
            _count(getattr(self, counter), getattr(kind, keys), rows)
        _count(self.shapes, (kind.shape,), rows)
        _count(self.patterns, (kind.pattern,), rows)
        _count(self.rows_by_dialect, dict.fromkeys(kind.dialects) or (NO_CALL,), rows)
        _count(self.rows_by_tool, dict.fromkeys(kind.tools), rows)
        if kind.has_own_tools is not None:
            _count(self.rows_by_owner, (OWN_TOOLS if kind.has_own_tools else COMMON_TOOLS,), rows)
        if kind.system:
            text, before = kind.system
            _count(self.systems.setdefault(text, {}), (before,), rows)

    def show(self, row: Converted) -> None:
        """Keep a row as a sample if it is among the first of its kind, or of all."""
        if len(self.samples) < SAMPLES or len(self.first_rows) < SAMPLES:
            self._keep_sample(row)

    def _keep_sample(self, row: Converted) -> None:
        kind = f"{row.kind.shape}, {' and '.join(dict.fromkeys(row.kind.dialects)) or NO_CALL}"
        if kind in self.samples and len(self.first_rows) >= SAMPLES:
            return
        sample = take_sample(kind, row)
        if len(self.samples) < SAMPLES:
            self.samples.setdefault(kind, sample)
        if len(self.first_rows) < SAMPLES and sample not in self.first_rows:
            self.first_rows.append(sample)

    def reject(self, number: int, reason: str) -> None:
        """Count a rejected row by its 1-based line number."""
        self.rejected += 1
        _note(self.reasons, _PARTICULARS.sub("…", reason), Noted(1, [number], reason))

    def merge(self, other: SplitCard) -> None:
        """Add the counts of rows that come behind these."""
        self.converted += other.converted
        self.rejected += other.rejected
        for name in ("reasons", *_NOTED):
            for what, seen in getattr(other, name).items():
                _note(getattr(self, name), what, seen)
        for name in _COUNTERS:
            counter = getattr(self, name)
            for key, count in getattr(other, name).items():
                _count(counter, (key,), count)
        for text, rows in other.systems.items():
            for before, count in rows.items():
                _count(self.systems.setdefault(text, {}), (before,), count)
        for kind, sample in other.samples.items():
            if len(self.samples) < SAMPLES:
                self.samples.setdefault(kind, sample)
        new = [sample for sample in other.first_rows if sample not in self.first_rows]
        self.first_rows = [*self.first_rows, *new][:SAMPLES]

    def commonest_reason(self) -> str:
        """The reason for which most rows were rejected, or that there is none."""
        if not self.reasons:
            return "it has none"
        return max(self.reasons.values(), key=lambda reason: reason.count).example

    def list_reasons(self, most: int = 3) -> str:
        """The commonest reasons, each with the rows that it rejected and the first of them."""
        found = [
            f"{seen.example} ({plural(seen.count, 'row')}, first {seen.lines[0]})"
            for _, seen in sort_noted(self.reasons)
        ]
        more = [f"and {plural(len(found) - most, 'more reason')}"] if found[most:] else []
        return "; ".join([*found[:most], *more]) or "it has none"

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {
            "rows": self.rows,
            "converted": self.converted,
            "rejected": self.rejected,
            "rejected_by_reason": [
                {"reason": general, **asdict(reason)} for general, reason in sort_noted(self.reasons)
            ],
            "rows_by_shape": sort_counts(self.shapes),
            "rows_by_dialect": sort_counts(self.rows_by_dialect),
            "turns_by_dialect": sort_counts(self.turns_by_dialect),
            "rows_by_tool": sort_counts(self.rows_by_tool),
            "calls_by_tool": sort_counts(self.calls_by_tool),
            "rows_by_whose_tools": sort_counts(self.rows_by_owner),
            "role_patterns": sort_counts(self.patterns),
            "changes": sort_counts(self.changes),
            "untyped_xml_values": sort_counts(self.untyped),
            "calls_of_undefined_tools": sort_counts(self.undefined),
            "calls_without_a_result": sort_counts(self.unanswered),
            "calls_the_target_cannot_say": sort_counts(self.unwritable),
            "arguments_that_disagree_with_their_definition": [
                {"what": misfit, "count": seen.count, "lines": seen.lines}
                for misfit, seen in sort_noted(self.misfits)
            ],
            "rows_by_fault_of_their_definitions": sort_counts(self.faults),
            "turns_that_look_like_a_call": {
                family: {"count": seen.count, "lines": seen.lines}
                for family, seen in sort_noted(self.lookalikes)
            },
            "rows_by_control_token_in_their_texts": {
                token: {"count": seen.count, "lines": seen.lines} for token, seen in sort_noted(self.controls)
            },
        }


class Tally:
    """The counting of many rows for a card: those of the same kind are counted together.

    `settle` ends it. The card is then the one that `accept` makes of the same rows.
    """

    def __init__(self, card: SplitCard, most_kinds: int = _MOST_KINDS) -> None:
        self._card, self._most_kinds = card, most_kinds
        self._rows: dict[Kind, int] = {}

    def accept(self, row: Converted, number: int) -> None:
        """Count a converted row by its 1-based line number."""
        kind = row.kind
        if kind.misfits or kind.lookalikes or kind.controls:
            self._card.note(kind, number)
        known = self._rows.get(kind)
        if known is None or len(self._card.first_rows) < SAMPLES:
            self._card.show(row)
        if known is None and len(self._rows) >= self._most_kinds:
            self.settle()
        self._rows[kind] = (known or 0) + 1

    def settle(self) -> None:
        """Tell the card what was counted."""
        for kind, rows in self._rows.items():
            self._card.count(kind, rows)
        self._rows.clear()


def _note(noted: dict[str, Noted], what: str, more: Noted) -> None:
    if what not in noted and len(noted) >= _MOST_NOTED:
        what = OTHERS
    known = noted.setdefault(what, Noted())
    if not known.lines or more.lines[0] < known.lines[0]:
        known.example = more.example
    known.count += more.count
    known.lines = heapq.nsmallest(LINES, {*known.lines, *more.lines})


def _count(counter: dict[str, int], keys: Iterable[str], count: int = 1) -> None:
    for key in keys:
        if key in counter:
            counter[key] += count
        elif len(counter) < _MOST_KEYS:
            counter[key] = count
        else:
            counter[OTHERS] = counter.get(OTHERS, 0) + count


def sort_counts(counter: Mapping[str, int]) -> dict[str, int]:
    """The counts, the highest first."""
    return dict(sorted(counter.items(), key=lambda item: -item[1]))


def sort_noted(noted: Mapping[str, Noted]) -> list[tuple[str, Noted]]:
    """What was noted, the commonest first."""
    return sorted(noted.items(), key=lambda item: -item[1].count)


def take_sample(kind: str, row: Converted) -> Sample:
    """The row as it came and as it is now, as readable text."""
    source = row.source
    plain = isinstance(source, Mapping) and set(source) == {"text"} and isinstance(source["text"], str)
    return Sample(
        kind, _cut(source["text"] if plain else _show(source)), _cut(_show(row.row.get("messages", row.row)))
    )


def _show(value: Any) -> str:
    try:
        return orjson.dumps(
            value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=repr
        ).decode()
    except TypeError:  # half of a surrogate pair, or nested deeper than orjson writes
        return _describe(value)


def _describe(value: Any) -> str:
    try:
        return repr(value).encode("utf-8", "backslashreplace").decode()
    except RecursionError:
        return "(nested too deeply to be shown)"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text) - _LONGEST} more characters)"
