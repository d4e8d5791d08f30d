"""The conversion card: what went in, what came out, what changed, what was refused.

Counting is bounded in memory whatever the data: counters with a limit of keys, the first few line
numbers of each reason, the first few samples. Cards of shards are merged into the card of a split.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from tabulate import tabulate

from stages.convert_data.duplicates import Duplicates, Repeats
from stages.convert_data.rows import Converted, Kind
from stages.convert_data.tokens import TokenStats
from stages.core.prompts import RESULT_PREFIX
from stages.core.words import plural

SAMPLES = 5
LINES = 5  # line numbers that are kept of each reason
OTHERS = "(others)"

_MOST_KEYS = 10_000
_MOST_REASONS = 200
_MOST_KINDS = 2_000
_LONGEST = 1_600  # characters of a sample on each side
_SHOWN = 40  # rows of a table in card.md; card.json has them all

# In the order of a `Kind`.
_COUNTERS = ("shapes", "dialects", "tools", "patterns", "changes", "untyped", "undefined", "unwritable")

_PARTICULARS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")

_RESPONSES = {
    "template": (
        "as a turn of the role tool, which the target's own chat template writes",
        "the template decides what the model sees of a result in use, so training shows the same",
    ),
    "user": (
        f"as a user turn that begins with {RESULT_PREFIX!r}",
        "the preset asks for it: for a target whose template or tokenizer has no proper place for results",
    ),
}


@dataclass
class Reason:
    """Why rows were rejected: reasons that differ in numbers and quotations alone are one."""

    count: int = 0
    lines: list[int] = field(default_factory=list)
    """The first few line numbers."""
    example: str = ""
    """The reason of the first of them in full."""


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
    reasons: dict[str, Reason] = field(default_factory=dict)
    shapes: dict[str, int] = field(default_factory=dict)
    dialects: dict[str, int] = field(default_factory=dict)
    tools: dict[str, int] = field(default_factory=dict)
    patterns: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    untyped: dict[str, int] = field(default_factory=dict)
    undefined: dict[str, int] = field(default_factory=dict)
    unwritable: dict[str, int] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)
    """The first row of each kind."""
    first_rows: list[Sample] = field(default_factory=list)
    """The first rows that differ, whatever their kind."""

    @property
    def rows(self) -> int:
        """Rows read: every one is converted or rejected."""
        return self.converted + self.rejected

    def accept(self, row: Converted) -> None:
        """Count a converted row."""
        self.count(row.kind, 1)
        self.show(row)

    def count(self, kind: Kind, rows: int) -> None:
        """Count so many converted rows of a kind."""
        self.converted += rows
        for name, keys in zip(_COUNTERS, kind, strict=True):
            _count(getattr(self, name), keys, rows)

    def show(self, row: Converted) -> None:
        """Keep a row as a sample if it is among the first of its kind, or of all."""
        if len(self.samples) < SAMPLES or len(self.first_rows) < SAMPLES:
            self._keep_sample(row)

    def _keep_sample(self, row: Converted) -> None:
        kind = f"{row.shape}, {' and '.join(dict.fromkeys(row.dialects)) or 'no call'}"
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
        self._add_reason(_PARTICULARS.sub("…", reason), Reason(1, [number], reason))

    def _add_reason(self, general: str, more: Reason) -> None:
        if general not in self.reasons and len(self.reasons) >= _MOST_REASONS:
            general = OTHERS
        known = self.reasons.setdefault(general, Reason())
        if not known.lines or more.lines[0] < known.lines[0]:
            known.example = more.example
        known.count += more.count
        known.lines = heapq.nsmallest(LINES, (*known.lines, *more.lines))

    def merge(self, other: SplitCard) -> None:
        """Add the counts of rows that come behind these."""
        self.converted += other.converted
        self.rejected += other.rejected
        for general, reason in other.reasons.items():
            self._add_reason(general, reason)
        for name in _COUNTERS:
            mine = getattr(self, name)
            for key, count in getattr(other, name).items():
                _count(mine, (key,), count)
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

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {
            "rows": self.rows,
            "converted": self.converted,
            "rejected": self.rejected,
            "rejected_by_reason": [
                {"reason": general, **asdict(reason)} for general, reason in _most(self.reasons.items())
            ],
            "rows_by_shape": _sorted(self.shapes),
            "turns_by_dialect": _sorted(self.dialects),
            "calls_by_tool": _sorted(self.tools),
            "role_patterns": _sorted(self.patterns),
            "changes": _sorted(self.changes),
            "untyped_xml_values": _sorted(self.untyped),
            "calls_of_undefined_tools": _sorted(self.undefined),
            "calls_the_target_cannot_say": _sorted(self.unwritable),
        }


class Tally:
    """The counting of many rows for a card: those of the same kind are counted together.

    `settle` ends it. The card is then the one that `accept` makes of the same rows.
    """

    def __init__(self, card: SplitCard, most_kinds: int = _MOST_KINDS) -> None:
        self._card, self._most_kinds = card, most_kinds
        self._rows: dict[Kind, int] = {}

    def accept(self, row: Converted) -> None:
        """Count a converted row."""
        kind = row.kind
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


def _count(counter: dict[str, int], keys: Iterable[str], count: int = 1) -> None:
    for key in keys:
        if key in counter:
            counter[key] += count
        elif len(counter) < _MOST_KEYS:
            counter[key] = count
        else:
            counter[OTHERS] = counter.get(OTHERS, 0) + count


def _sorted(counter: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: -item[1]))


def _most(reasons: Iterable[tuple[str, Reason]]) -> list[tuple[str, Reason]]:
    return sorted(reasons, key=lambda item: -item[1].count)


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


@dataclass
class Card:
    """A whole conversion."""

    arm: str
    splits: dict[str, SplitCard]
    source: str = ""
    """What the data are called."""
    target: str = ""
    """The model that the rows are for."""
    tool_response: str = "template"
    tools: str = ""
    """Which tools the rows have, and where they come from."""
    duplicates: Duplicates | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that `--dedup` left out, by split."""
    tokens: dict[str, TokenStats] | str = ""
    """By split; a text says why there are none."""

    def summary(self) -> dict[str, Any]:
        """Rows in, converted and rejected per split."""
        return {
            name: {"rows": s.rows, "converted": s.converted, "rejected": s.rejected}
            | ({"dropped": self.dropped[name]} if self.dropped.get(name) else {})
            for name, s in self.splits.items()
        }

    def lines(self) -> tuple[str, ...]:
        """One line per split for the terminal, and one about duplicates if there are any."""
        lines = [
            f"{name}: {plural(s.rows, 'row')} = {s.converted} converted + {s.rejected} rejected; "
            + ", ".join(f"{dialect} {n}" for dialect, n in list(_sorted(s.dialects).items())[:8])
            for name, s in self.splits.items()
        ]
        if self.duplicates is not None and self.duplicates.any:
            found = ", ".join(describe_duplicates(self.duplicates))
            removed = "removed" if self.dropped else "kept, --dedup removes them"
            lines.append(f"duplicates and leaks ({removed}): {found}")
        return tuple(lines)

    def samples(self) -> list[Sample]:
        """Five rows before and after, of as many kinds as there are."""
        kinds: dict[str, Sample] = {}
        for split in self.splits.values():
            for kind, sample in split.samples.items():
                kinds.setdefault(kind, sample)
        shown = list(kinds.values())
        first = [sample for split in self.splits.values() for sample in split.first_rows]
        shown += [sample for sample in first if sample not in shown]
        return shown[:SAMPLES]

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON."""
        how, why = _RESPONSES[self.tool_response]
        return {
            "source": self.source,
            "arm": self.arm,
            "target": self.target,
            "tools": self.tools,
            "tool_response": {"setting": self.tool_response, "how": how, "why": why},
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "duplicates": _duplicates_json(self.duplicates),
            "dropped": self.dropped,
            "tokens": self.tokens
            if isinstance(self.tokens, str)
            else {name: asdict(stats) for name, stats in self.tokens.items()},
            "samples": [asdict(sample) for sample in self.samples()],
        }


def describe_duplicates(found: Duplicates) -> list[str]:
    """What was found, one phrase for each split and pair of splits."""
    words = [f"{r.rows} rows repeated within {split}" for split, r in found.within.items() if r.rows]
    for (split, other), r in found.leaks.items():
        if r.rows:
            words.append(f"{r.rows} rows of {split} also in {other}")
        if r.questions:
            words.append(f"{r.questions} more rows of {split} with a question of {other}")
    return words


def _duplicates_json(found: Duplicates | None) -> Any:
    if found is None:
        return None
    return {
        "within": {split: asdict(repeats) for split, repeats in found.within.items()},
        "leaks": [
            {"split": split, "also_in": other, **asdict(repeats)}
            for (split, other), repeats in found.leaks.items()
        ],
    }


def write_card(card: Card, folder: Path) -> None:
    """Write `card.json` and `card.md`."""
    data = orjson.dumps(card.to_json(), option=orjson.OPT_INDENT_2)
    (folder / "card.json").write_bytes(data + b"\n")
    (folder / "card.md").write_text(_write_markdown(card), "utf-8")


def _write_markdown(card: Card) -> str:
    how, why = _RESPONSES[card.tool_response]
    target = f" for {card.target}" if card.target else ""
    parts = [
        f"# Conversion of {card.source}{target}, arm {card.arm}\n",
        _table("Rows", card, _count_rows),
        _table("Rows by their shape", card, lambda s: s.shapes),
        _table("Assistant turns by the dialect they were written in", card, lambda s: s.dialects),
        _table("Calls by tool", card, lambda s: s.tools),
        f"## Tools\n\n{card.tools or 'None.'}\n",
        _table("Calls of tools that no definition names", card, lambda s: s.undefined, always=False),
        _table(
            "Calls that the target's dialect cannot say clearly", card, lambda s: s.unwritable, always=False
        ),
        _table("XML values that stay text because no schema says their type", card, lambda s: s.untyped),
        f"## Tool results\n\nWritten {how}: {why}.\n",
        _table("Rows by their order of roles", card, lambda s: s.patterns),
        _table("What changed", card, lambda s: s.changes),
        _write_reasons(card),
        _write_duplicates(card),
        _write_tokens(card),
        _write_samples(card),
    ]
    return "\n".join(part for part in parts if part)


def _count_rows(split: SplitCard) -> dict[str, int]:
    return {"read": split.rows, "converted": split.converted, "rejected": split.rejected}


def _table(title: str, card: Card, count: Any, *, always: bool = True) -> str:
    counts: dict[str, dict[str, int]] = {name: _sorted(count(split)) for name, split in card.splits.items()}
    keys = list(dict.fromkeys(key for counter in counts.values() for key in counter))
    if not keys:
        return f"## {title}\n\nNone.\n" if always else ""
    rows = [[_escape(key), *(c.get(key, 0) for c in counts.values())] for key in keys[:_SHOWN]]
    more = f"\n{len(keys) - _SHOWN} more are in card.json.\n" if len(keys) > _SHOWN else ""
    return f"## {title}\n\n{_grid(['', *counts], rows)}\n{more}"


def _grid(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with its numbers to the right; a text is never taken for a number."""
    aligned = tuple("right" if isinstance(cell, int) else "left" for cell in rows[0])
    text: str = tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=aligned)
    return text


def _escape(text: str) -> str:
    """A text that stays in its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _write_reasons(card: Card) -> str:
    rows = [
        [name, reason.count, ", ".join(map(str, reason.lines)), _escape(reason.example[:200])]
        for name, split in card.splits.items()
        for _, reason in _most(split.reasons.items())
    ]
    if not rows:
        return "## Rejected rows by reason\n\nNone.\n"
    table = _grid(["split", "rows", "first lines", "such as"], rows[:_SHOWN])
    return f"## Rejected rows by reason\n\n{table}\n\nAll of them are in rejected.jsonl.\n"


def _write_duplicates(card: Card) -> str:
    title = "## Duplicates and leaks\n\n"
    if card.duplicates is None:
        return f"{title}Not looked for.\n"
    words = describe_duplicates(card.duplicates)
    if not words:
        return f"{title}None: no row twice, no row or question in two splits.\n"
    removed = (
        "Removed: " + ", ".join(f"{n} rows of {split}" for split, n in card.dropped.items() if n)
        if card.dropped
        else "Kept; `--dedup` removes the later row within a split, and across splits the one in training"
    )
    pairs = [*card.duplicates.within.values(), *card.duplicates.leaks.values()]
    examples = "\n".join(f"- {line}" for repeats in pairs for line in _list_pairs(repeats))
    listed = "\n".join(f"- {word}" for word in words)
    return (
        f"{title}{listed}\n\n{removed}. Some of them, by the number of the row in the source:\n\n{examples}\n"
    )


def _list_pairs(repeats: Repeats) -> list[str]:
    return [f"{pair.split} {pair.line} = {pair.kept_split} {pair.kept_line}" for pair in repeats.examples]


def _write_tokens(card: Card) -> str:
    title = f"## Tokens of a row{f' for {card.target}' if card.target else ''}\n\n"
    if isinstance(card.tokens, str) or not card.tokens:
        return f"{title}Not available: {card.tokens or 'not counted'}.\n"
    rows = [
        [name, s.rows, s.measured, round(s.mean), s.p50, s.p95, s.longest, f"{s.over} ({s.over_share:.1%})"]
        for name, s in card.tokens.items()
    ]
    limit = next((s.limit for s in card.tokens.values()), 0)
    headers = ["split", "rows", "measured", "mean", "median", "p95", "longest", f"over {limit}"]
    refused = sum(s.refused for s in card.tokens.values())
    more = f"\nThe chat template refuses {refused} of the measured rows.\n" if refused else ""
    return f"{title}{_grid(headers, rows)}\n{more}"


def _write_samples(card: Card) -> str:
    parts = [
        f"### {number}. {one.kind}\n\nBefore:\n\n{_fence(one.before)}\n\nAfter:\n\n{_fence(one.after)}\n"
        for number, one in enumerate(card.samples(), 1)
    ]
    return "\n".join(["## Samples\n", *(parts or ["None.\n"])])


def _fence(text: str) -> str:
    """A text in a fence that it cannot close."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    mark = "`" * (longest + 1)
    return f"{mark}text\n{text}\n{mark}"
