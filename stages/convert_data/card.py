"""The conversion card: what went in, what came out, what changed, what was refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from tabulate import tabulate

from stages.convert_data.rows import Converted
from stages.core.words import plural


@dataclass
class SplitCard:
    """The counts of one split."""

    converted: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)
    dialects: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)
    patterns: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Rows read: every one is converted or rejected."""
        return self.converted + len(self.rejected)

    def accept(self, row: Converted) -> None:
        """Count a converted row."""
        self.converted += 1
        self.patterns[row.pattern] += 1
        self.dialects.update(row.dialects or ["none"])
        self.tools.update(row.tools)
        self.changes.update(row.changes)

    def reject(self, number: int, reason: str) -> None:
        """Count a rejected row by its 1-based line number."""
        self.rejected.append((number, reason))

    def merge(self, other: SplitCard) -> None:
        """Add the counts of rows that come behind these."""
        self.converted += other.converted
        self.rejected += other.rejected
        for mine, theirs in (
            (self.dialects, other.dialects),
            (self.tools, other.tools),
            (self.patterns, other.patterns),
            (self.changes, other.changes),
        ):
            mine.update(theirs)

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {
            "rows": self.rows,
            "converted": self.converted,
            "rejected": [{"line": line, "reason": reason} for line, reason in self.rejected],
            "turns_by_dialect": dict(self.dialects.most_common()),
            "calls_by_tool": dict(self.tools.most_common()),
            "role_patterns": dict(self.patterns.most_common()),
            "changes": dict(self.changes.most_common()),
        }


@dataclass
class Card:
    """The counts of a whole conversion."""

    source: str
    arm: str
    splits: dict[str, SplitCard]

    def summary(self) -> dict[str, Any]:
        """Rows in, converted and rejected per split."""
        return {
            name: {"rows": s.rows, "converted": s.converted, "rejected": len(s.rejected)}
            for name, s in self.splits.items()
        }

    def lines(self) -> tuple[str, ...]:
        """One line per split for the terminal."""
        return tuple(
            f"{name}: {plural(s.rows, 'row')} = {s.converted} converted + {len(s.rejected)} rejected; "
            + ", ".join(f"{dialect} {n}" for dialect, n in s.dialects.most_common())
            for name, s in self.splits.items()
        )


def write_card(card: Card, folder: Path) -> None:
    """Write `card.json` and `card.md`."""
    data = {
        "source": card.source,
        "arm": card.arm,
        "splits": {n: s.to_json() for n, s in card.splits.items()},
    }
    (folder / "card.json").write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")
    (folder / "card.md").write_text(_markdown(card), "utf-8")


def _markdown(card: Card) -> str:
    parts = [f"# Conversion of {card.source}, arm {card.arm}\n", _table("Rows", card, _rows)]
    parts += [
        _table("Assistant turns by the dialect they were written in", card, lambda s: s.dialects),
        _table("Calls by tool", card, lambda s: s.tools),
        _table("Rows by their order of roles", card, lambda s: s.patterns),
        _table("What changed", card, lambda s: s.changes),
        _table("Rejected rows by reason", card, lambda s: Counter(reason for _, reason in s.rejected)),
    ]
    return "\n".join(parts)


def _rows(split: SplitCard) -> Counter[str]:
    return Counter({"read": split.rows, "converted": split.converted, "rejected": len(split.rejected)})


def _table(title: str, card: Card, count: Any) -> str:
    counts = {name: count(split) for name, split in card.splits.items()}
    keys = list(dict.fromkeys(key for counter in counts.values() for key, _ in counter.most_common()))
    if not keys:
        return f"## {title}\n\nNone.\n"
    rows = [[key, *(counter[key] for counter in counts.values())] for key in keys]
    return f"## {title}\n\n{tabulate(rows, headers=['', *counts], tablefmt='github')}\n"
