"""The conversion card: what went in, what came out, what changed, what was refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from tabulate import tabulate

from stages.convert_data.converted import AS_CODE, HAD_LINE, HAD_NONE, HAD_OTHER
from stages.convert_data.counts import COMMON_TOOLS, SAMPLES, Sample, SplitCard, sort_counts, sort_noted
from stages.convert_data.duplicates import Duplicates, Repeats
from stages.convert_data.instructions import NOT_TAKEN
from stages.convert_data.tokens import TokenStats
from stages.core.prompts import RESULT_PREFIX
from stages.core.words import name_some, plural

Count = Callable[[SplitCard], dict[str, int]]

_SHOWN = 40  # rows of a table in card.md; card.json has them all

_ROWS = {"read": "rows", "converted": "converted", "rejected": "rejected"}
_NAMED = 5  # tools in a line for the terminal

_BEFORE = (HAD_NONE, HAD_LINE, HAD_OTHER)

_RESPONSES = {
    "template": (
        "as a turn of the role tool, which the target's own chat template writes",
        "the template decides what the model sees of a result in use, so training shows the same",
    ),
    "user": (
        f"as a user turn that begins with {RESULT_PREFIX!r}",
        "the preset or --tool-response asks for it: for a target whose template or tokenizer has no proper "
        "place for results",
    ),
}


@dataclass
class Card:
    """A whole conversion."""

    arm: str
    splits: dict[str, SplitCard]
    source: str = ""
    """What the data are called."""
    left_out: str = ""
    """What of the data was not read."""
    target: str = ""
    """The model that the rows are for."""
    tool_response: str = "template"
    tools: str = ""
    """Which tools the rows have, and where they come from."""
    code_mode: bool = False
    """Whether rows without tools of their own are taken for Code Mode's."""
    duplicates: Duplicates | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that `--dedup` left out, by split."""
    valid_share: float = 0.0
    """The share of train that was asked for as `valid`, 0 where the data have that split or do without."""
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
            + (f"{gone} removed, {s.converted - gone} written; " if (gone := self.dropped.get(name)) else "")
            + ", ".join(f"{dialect} {n}" for dialect, n in list(sort_counts(s.rows_by_dialect).items())[:8])
            + (f"; rejected.jsonl says why, most often: {s.commonest_reason()}" if s.rejected else "")
            for name, s in self.splits.items()
        ]
        if self.duplicates is not None and self.duplicates.any:
            found = ", ".join(describe_duplicates(self.duplicates))
            removed = "removed" if self.dropped else "kept, --dedup removes them"
            lines.append(f"duplicates and leaks ({removed}): {found}")
        if self.valid_share:
            lines.append(self.describe_share())
        if self.code_mode and (taken := self._describe_code_mode()):
            lines.append(taken)
        if undefined := sum((Counter(s.undefined) for s in self.splits.values()), Counter[str]()):
            named = name_some(list(sort_counts(undefined)), _NAMED)
            calls = plural(undefined.total(), "call")
            lines.append(f"{calls} of tools that no definition names: {named}")
        if missed := sum(s.changes.get(NOT_TAKEN, 0) for s in self.splits.values()):
            lines.append(
                f"WARNING: {NOT_TAKEN} ({plural(missed, 'row')}): they are no list in JSON; give the rows a "
                "column tools, or all of them --tools"
            )
        lines += self._describe_misfits()
        if alike := self._list_noted("lookalikes"):
            lines.append(f"turns without a call that look like one: {alike}")
        if controls := self._list_noted("controls"):
            lines.append(
                f"WARNING: rows with control tokens in their texts, which a tokenizer obeys: {controls}"
            )
        return tuple(lines)

    def _describe_misfits(self) -> list[str]:
        """What in calls and definitions is not as it should be."""
        misfits = Counter[str]()
        for split in self.splits.values():
            misfits.update({what: seen.count for what, seen in split.misfits.items()})
        faults = sum((Counter(s.faults) for s in self.splits.values()), Counter[str]())
        lines = []
        if misfits:
            named = name_some(list(sort_counts(misfits)), _NAMED)
            lines.append(f"{plural(misfits.total(), 'argument')} not as the tool's definition says: {named}")
        if faults:
            named = name_some(list(sort_counts(faults)), _NAMED, "; ")
            lines.append(f"definitions of rows that cannot be meant so: {named}")
        return lines

    def _describe_code_mode(self) -> str:
        """What was done to rows that are taken for Code Mode's beside reading its calls; empty for none."""
        splits = self.splits.values()
        calls = sum(n for s in splits for change, n in s.changes.items() if change.endswith(AS_CODE))
        texts = sum(rows.get(HAD_OTHER, 0) for s in splits for rows in s.systems.values())
        done = [f"{plural(calls, 'direct call')} {AS_CODE}'s code"] if calls else []
        done += [f"{plural(texts, 'system text')} replaced by Code Mode's"] if texts else []
        way_out = "where that is wrong, --tools FILE gives the tools, [] in it none"
        none_calls = any(s.systems for s in splits) and not any(s.calls_by_tool for s in splits)
        rows = sum(s.rows_by_owner.get(COMMON_TOOLS, 0) for s in splits) if none_calls else 0
        done += [f"{plural(rows, 'row')} without a call offered execute_code"] if rows else []
        warning = "WARNING: no row calls a tool, and all the same they are " if rows else ""
        return f"{warning}taken for Code Mode's: {', '.join(done)}; {way_out}" if done else ""

    def describe_share(self) -> str:
        """How many rows were set aside as `valid`, and how many should have been."""
        rows = {name: self.splits[name].converted for name in ("train", "valid") if name in self.splits}
        got, total = rows.get("valid", 0), sum(rows.values())
        return (
            f"valid was cut out of train: {got} of {plural(total, 'row')} ({got / max(total, 1):.1%}), "
            f"asked for {self.valid_share:.1%}; rows with the same question stay together; "
            "rows of both are numbered as in the source's train"
        )

    def _list_noted(self, what: str) -> str:
        """What is noted of all splits under a name, with how often and the first rows; empty without any."""
        found = [
            f"{noted} {seen.count} ({name} {', '.join(map(str, seen.lines))})"
            for name, split in self.splits.items()
            for noted, seen in sort_noted(getattr(split, what))
        ]
        return name_some(found, _NAMED)

    def systems(self) -> dict[str, dict[str, dict[str, int]]]:
        """By system text that the conversion wrote, and by split: rows by what they had before.

        There is one text in Code Mode, and one for rows with other tools that had none.
        """
        texts = dict.fromkeys(text for split in self.splits.values() for text in split.systems)
        return {
            text: {name: split.systems.get(text, {}) for name, split in self.splits.items()} for text in texts
        }

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
            "not_read": self.left_out,
            "arm": self.arm,
            "target": self.target,
            "tools": self.tools,
            "system_texts": [{"text": text, "rows_that_had": rows} for text, rows in self.systems().items()],
            "tool_response": {"setting": self.tool_response, "how": how, "why": why},
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "duplicates": _duplicates_json(self.duplicates),
            "dropped": self.dropped,
            "valid_share": self.valid_share,
            "tokens": self.tokens
            if isinstance(self.tokens, str)
            else {name: asdict(stats) for name, stats in self.tokens.items()},
            "samples": [asdict(sample) for sample in self.samples()],
        }


def describe_duplicates(found: Duplicates) -> list[str]:
    """What was found, one phrase for each split and pair of splits."""
    words = [
        f"{plural(r.rows, 'row')} repeated within {split}" for split, r in found.within.items() if r.rows
    ]
    for (split, other), r in found.leaks.items():
        if r.rows:
            words.append(f"{plural(r.rows, 'row')} of {split} also in {other}")
        if r.questions:
            words.append(f"{plural(r.questions, 'more row')} of {split} with a question of {other}")
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
        _table_rows(card),
        f"V{card.describe_share()[1:]}.\n" if card.valid_share else "",
        f"Not read: {card.left_out}.\n" if card.left_out else "",
        _table("Rows by their shape", card, lambda s: s.shapes),
        _table("Rows by the dialect of their calls", card, lambda s: s.rows_by_dialect),
        _table("Assistant turns with calls by dialect", card, lambda s: s.turns_by_dialect),
        _table("Rows by the tools they call", card, lambda s: s.rows_by_tool),
        _table("Calls by tool", card, lambda s: s.calls_by_tool),
        f"## Tools\n\n{card.tools or 'None.'}\n",
        _table("Rows by whose tools they have", card, lambda s: s.rows_by_owner, always=False),
        _table("Calls of tools that no definition names", card, lambda s: s.undefined, always=False),
        _table("Calls without a result", card, lambda s: s.unanswered, always=False),
        _table(
            "Calls that the target's dialect cannot say clearly", card, lambda s: s.unwritable, always=False
        ),
        _write_misfits(card),
        _table("Rows by what in their own tools cannot be meant", card, lambda s: s.faults, always=False),
        _table("XML values that stay text because no schema says their type", card, lambda s: s.untyped),
        _write_systems(card),
        f"## Tool results\n\nWritten {how}: {why}.\n",
        _table("Rows by their order of roles", card, lambda s: s.patterns),
        _table("What changed", card, lambda s: s.changes),
        _write_lookalikes(card),
        _write_controls(card),
        _write_reasons(card),
        _write_duplicates(card),
        _write_tokens(card),
        _write_samples(card),
    ]
    return "\n".join(part for part in parts if part)


def _table_rows(card: Card) -> str:
    rows: list[list[object]] = [
        [said, *(getattr(split, count) for split in card.splits.values())] for said, count in _ROWS.items()
    ]
    if any(card.dropped.values()):
        gone = [card.dropped.get(name, 0) for name in card.splits]
        kept = [split.converted - less for split, less in zip(card.splits.values(), gone, strict=True)]
        rows += [["removed by --dedup", *gone], ["written", *kept]]
    return f"## Rows\n\n{_grid(['', *card.splits], rows)}\n"


def _table(title: str, card: Card, count: Count, *, always: bool = True) -> str:
    counts = {name: sort_counts(count(split)) for name, split in card.splits.items()}
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


def _write_systems(card: Card) -> str:
    parts = ["## System texts that were written\n"]
    for text, rows in card.systems().items():
        counts = [[f"rows that had {b}", *(split.get(b, 0) for split in rows.values())] for b in _BEFORE]
        parts.append(f"{_grid(['', *rows], counts)}\n\n{_fence(text)}\n")
    if len(parts) == 1:
        parts.append("None: every row keeps what it had.\n")
    return "\n".join(parts)


def _write_misfits(card: Card) -> str:
    rows = [
        [name, _escape(misfit), seen.count, ", ".join(map(str, seen.lines))]
        for name, split in card.splits.items()
        for misfit, seen in sort_noted(split.misfits)
    ]
    if not rows:
        return ""
    more = f"\n{len(rows) - _SHOWN} more are in card.json.\n" if len(rows) > _SHOWN else ""
    table = _grid(["split", "argument", "calls", "first lines"], rows[:_SHOWN])
    return f"## Arguments that are not as their tool's definition says\n\n{table}\n{more}"


def _write_lookalikes(card: Card) -> str:
    why = "Kept as words: such marks stand in code, or no offered tool is named behind them."
    return _table_noted(card, "Turns without a call that look like one", "lookalikes", "format", "turns", why)


def _write_controls(card: Card) -> str:
    why = (
        "Kept as they are. The tokenizer of a model that has such a token reads it as that token and not as "
        "text, wherever it stands: in a question or a result it may end the turn and begin another. Training "
        "refuses a row in which the assistant's own end of a turn stands among its words."
    )
    return _table_noted(card, "Control tokens within texts", "controls", "token", "rows", why)


def _table_noted(card: Card, title: str, noted: str, what: str, of: str, why: str) -> str:
    rows = [
        [name, _escape(each), seen.count, ", ".join(map(str, seen.lines))]
        for name, split in card.splits.items()
        for each, seen in sort_noted(getattr(split, noted))
    ]
    if not rows:
        return ""
    table = _grid(["split", what, of, "first rows"], rows[:_SHOWN])
    return f"## {title}\n\n{table}\n\n{why}\n"


def _write_reasons(card: Card) -> str:
    rows = [
        [name, reason.count, ", ".join(map(str, reason.lines)), _escape(reason.example[:200])]
        for name, split in card.splits.items()
        for _, reason in sort_noted(split.reasons)
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
        "Removed: " + ", ".join(f"{plural(n, 'row')} of {split}" for split, n in card.dropped.items() if n)
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
