"""The same queries on several engines, side by side: where template, parser or stop tokens differ.

What a reply decides and calls is read from its score, where it was parsed with the tools of its query. A
difference in the prompt's length is the template's, one in the dialect, in who read the calls or in the calls
the parser's, one in the end of a reply the stop tokens'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any

import orjson
from tabulate import tabulate

from stages.core.artifact import flatten_json, require_artifact
from stages.core.errors import StageError
from stages.core.evaluation import read_evaluation
from stages.core.records import EvalSummary, Manifest, RawReply, Score
from stages.core.words import plural, show_controls

COLUMNS = ("decision", "calls", "dialect", "stop", "prompt", "text")
SHOWN = ("decision", "calls", "dialect", "stop", "prompt")  # in the table; what a reply says would fill it
WIDEST = 64  # characters of a call in the table
SAME = 12  # of them in front of the first one that differs
SERVERS = "the server's"  # dialect: nobody saw in which one the model wrote a call


@dataclass(frozen=True)
class Side:
    """One output of eval on one suite."""

    folder: Path
    summary: EvalSummary
    manifest: Manifest
    replies: dict[str, RawReply]
    scores: dict[str, Score]


@dataclass(frozen=True)
class Features:
    """What one reply shows of template, parser and stop tokens."""

    decision: str
    calls: str
    dialect: str
    stop: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """Outputs beside each other: as lines, and by suite how many queries differ in what."""

    lines: list[str]
    differences: dict[str, dict[str, int]]


def compare_outputs(folders: Sequence[Path]) -> Comparison:
    """Lay outputs of eval beside each other, suite by suite.

    Raises StageError when a folder is none, or when they have no suite in common.
    """
    found = [_read_sides(folder) for folder in folders]
    common = [suite for suite in found[0] if all(suite in sides for sides in found[1:])]
    if not common:
        raise StageError(f"{' and '.join(map(str, folders))} have no suite in common: evaluate the same ones")
    lines: list[str] = []
    differences = {}
    for suite in common:
        sides = [sides[suite] for sides in found]
        _require_comparable(suite, sides)
        table = {query: [describe_reply(side, query) for side in sides] for query in sides[0].replies}
        lines += _describe_suite(suite, sides, table)
        differences[suite] = {name: len(_differing(table, name)) for name in COLUMNS}
    return Comparison(lines, differences)


def describe_reply(side: Side, query: str) -> Features:
    """What a reply shows: its decision and calls read strictly, its dialect whatever it is."""
    reply, score = side.replies[query], side.scores[query]
    dialect = SERVERS if reply.calls_by == "server" else score.lenient.dialect
    return Features(
        decision="tool" if score.strict.calls else "direct",
        calls="; ".join(map(_write_call, score.strict.calls)) or "no call",
        dialect=dialect or "none",
        stop=reply.finish or "?",
        prompt="?" if reply.prompt_tokens is None else str(reply.prompt_tokens),
        text=reply.text,
    )


def _read_sides(folder: Path) -> dict[str, Side]:
    """The suites of an output, or the one suite whose folder it is."""
    places = [folder] if (folder / "summary.json").is_file() else sorted(folder.glob("*/"))
    sides = {}
    for place in places:
        if place.name.startswith(".") or not (place / "summary.json").is_file():
            continue
        manifest = require_artifact(place, "eval", "nox -s eval", whole=False)
        try:
            found = read_evaluation(place, manifest)
        except StageError as error:
            raise StageError(f"{error}: evaluate it again with --force") from None
        replies = {reply.id: reply for reply in found.replies}
        scores = {score.id: score for score in found.scores}
        sides[found.summary.suite] = Side(folder, found.summary, manifest, replies, scores)
    if not sides:
        raise StageError(f"{folder} holds no output of eval: give a folder that nox -s eval wrote")
    return sides


def _require_comparable(suite: str, sides: Sequence[Side]) -> None:
    for side in sides[1:]:
        if side.summary.scorer_version != sides[0].summary.scorer_version:
            raise StageError(
                f"{sides[0].folder} and {side.folder} were scored by different rules: evaluate both again, "
                "which scores their kept replies anew"
            )
        if side.summary.suite_fingerprint != sides[0].summary.suite_fingerprint:
            both = f"{sides[0].folder} and {side.folder}"
            if side.manifest.recipe.inputs.get("replies") == sides[0].manifest.recipe.inputs.get("replies"):
                raise StageError(
                    f"{both} answered the same queries of {suite}, whose accepted calls differ: evaluate "
                    "both again, which scores their kept replies anew"
                )
            raise StageError(
                f"{both} answered different queries of {suite}: evaluate the same version of the suite"
            )


def _write_call(call: Mapping[str, Any]) -> str:
    """A call as `name({"a": 1})`, its arguments in the order of their names."""
    arguments = orjson.dumps(call["arguments"], option=orjson.OPT_SORT_KEYS).decode()
    return f"{call['name']}({arguments})"


def _differing(table: Mapping[str, Sequence[Features]], name: str) -> list[str]:
    """The queries on which the engines differ in something."""
    return [query for query, row in table.items() if name in _differences(row)]


def _differences(row: Sequence[Features]) -> list[str]:
    """In what the replies to a query differ. What nobody counted differs from nothing; nor does the dialect
    that only a server saw, where the calls are the same."""
    unknown = {"?", SERVERS} if len({features.calls for features in row}) == 1 else {"?"}
    return [name for name in COLUMNS if len({getattr(features, name) for features in row} - unknown) > 1]


def _describe_suite(suite: str, sides: Sequence[Side], table: Mapping[str, Sequence[Features]]) -> list[str]:
    """The table of a suite: its engines, how often each thing differs, and the queries that differ."""
    letters = [chr(ord("A") + i) for i in range(len(sides))]
    lines = [f"{suite}: {plural(len(table), 'query')}"]
    lines += [f"  {letter}: {_name(side)}" for letter, side in zip(letters, sides, strict=True)]
    lines += _describe_settings(sides)
    counts = [f"{name} {len(_differing(table, name))}" for name in COLUMNS]
    lines.append(f"  queries that differ in: {', '.join(counts)}")
    found = {query: [name for name in SHOWN if name in _differences(row)] for query, row in table.items()}
    first = sorted((query for query, names in found.items() if names), key=lambda q: SHOWN.index(found[q][0]))
    if first:  # the queries that differ in what weighs most
        rows = [[query, ", ".join(found[query]), *_show(table[query], found[query])] for query in first]
        heads = ["query", "differs in", *letters]
        lines += tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True).splitlines()
    return lines


def _show(row: Sequence[Features], names: Sequence[str]) -> list[str]:
    """Of each reply what is named, in that order; no character of it is one of the table's."""
    shown = {name: [getattr(features, name) for features in row] for name in names}
    if "calls" in shown:
        shown["calls"] = _cut_calls(shown["calls"])
    cells = ["; ".join(values) for values in zip(*shown.values(), strict=True)]
    return [show_controls(cell).replace("|", "\\|") for cell in cells]


def _cut_calls(calls: Sequence[str]) -> list[str]:
    """Calls that fit into the table, else around the first place in which they differ."""
    alike = sum(1 for _ in takewhile(lambda chars: len(set(chars)) == 1, zip(*calls, strict=False)))
    start = alike - SAME if max(map(len, calls)) > WIDEST else 0
    cut = []
    for call in calls:
        head = call[: call.find("(") + 1]
        text = call if start <= len(head) else f"{head}…{call[start:]}"
        cut.append(text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…")
    return cut


NO_CAUSE = {"suite", "suite_version"}  # the same by now, or without a bearing on the replies


def _describe_settings(sides: Sequence[Side]) -> list[str]:
    """The settings in which the outputs differ, which may be why their replies do."""
    told = [flatten_json(side.manifest.recipe.settings) for side in sides]
    names = sorted({name for settings in told for name in settings} - NO_CAUSE)
    rows = {name: [_say(settings.get(name)) for settings in told] for name in names}
    words = [f"{name} {' / '.join(row)}" for name, row in rows.items() if len(set(row)) > 1]
    if len({side.manifest.recipe.inputs.get("replies") for side in sides}) > 1:
        words.append("other prompts, or another version of what asks them")
    return [f"  set up otherwise: {', '.join(words)}"] if words else []


def _say(value: Any) -> str:
    """A setting in a few words; one that is not told is the usual one."""
    words = ["usual"] if value is None else value if isinstance(value, list) else str(value).split()
    return shorten(" ".join(map(str, words)) or "none", 60, placeholder="…")


def _name(side: Side) -> str:
    facts = side.manifest.facts
    where = facts.get("url") or facts.get("file") or ""
    engine = f"{side.summary.engine} {where}".strip()
    right = sum(score.strict.decision for score in side.scores.values())
    return f"{side.folder}, {engine}, {right}/{len(side.replies)} decided right"
