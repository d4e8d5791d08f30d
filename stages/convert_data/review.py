"""The review of inferred tools: on what they rest, and what a reader should look at before believing them."""

from __future__ import annotations

from pathlib import Path

from stages.convert_data.inference import MOST_ARGUMENTS, MOST_TOOLS, Calls, Census
from stages.core.words import plural

_RARE = 3  # an argument seen in fewer calls than this is doubtful, where the tool has many more


def write_review(census: Census, path: Path) -> None:
    """Write `tools_review.md`: on what the inferred tools rest, and what about them is doubtful."""
    total = sum(calls.count for calls in census.calls.values())
    ordered = sorted(census.calls.items(), key=lambda item: (-item[1].count, item[0]))
    parts = [
        "# Review of the inferred tools\n",
        f"{plural(total, 'call')} of {plural(len(census.calls), 'tool')}, in {census.calling} of "
        f"{plural(census.rows, 'row')}, come "
        "without a definition. What `tools.json` says of them is inferred. Correct it where this review "
        "or your knowledge says so, and convert again with `--tools tools.json`.\n",
    ]
    if census.rejected:
        parts.append(f"Left out: {plural(census.rejected, 'row')} that the conversion rejects.\n")
    if census.more_tools:
        parts.append(f"{census.more_tools} more calls are of tools beyond the first {MOST_TOOLS} names.\n")
    doubts = [f"- {doubt}" for doubt in list_doubts(census)]
    parts += ["## Doubts\n", "\n".join(doubts or ["None."]) + "\n"]
    parts += [_describe(name, calls) for name, calls in ordered]
    path.write_text("\n".join(parts), "utf-8")


def _describe(name: str, calls: Calls) -> str:
    dialects = ", ".join(f"{dialect} {count}" for dialect, count in calls.dialects.items())
    lines = [f"## {name}\n", f"{plural(calls.count, 'call')} ({dialects}).\n"]
    if not calls.arguments:
        return "\n".join([*lines, "No arguments.\n"])
    lines += ["| argument | in calls | types | such as |", "|---|---|---|---|"]
    for key, values in calls.arguments.items():
        kinds = dict(values.types) | ({"untyped XML": values.untyped} if values.untyped else {})
        named = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        shown = ", ".join(f"`{sample.replace('`', chr(39))}`" for sample in values.samples)
        cells = (key, f"{values.count} of {calls.count}", named, shown)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def list_doubts(census: Census) -> list[str]:
    """What a reader should look at before the inferred tools are believed, in words."""
    doubts = []
    spellings: dict[str, list[str]] = {}
    for name, calls in census.calls.items():
        spellings.setdefault(_fold(name), []).append(name)
        if calls.count == 1 and len(census.calls) > 1:
            doubts.append(f"`{name}` is called once: a tool, or a slip?")
        if calls.dialects.keys() == {"fenced_json"}:
            doubts.append(f"`{name}` was only seen as JSON without call tags: perhaps an answer and no call")
        doubts += [f"`{name}.{key}` {doubt}" for key, doubt in _doubt_arguments(calls)]
    doubts += [
        f"{' and '.join(f'`{name}`' for name in names)} differ only in spelling"
        for names in spellings.values()
        if len(names) > 1
    ]
    return doubts


def _doubt_arguments(calls: Calls) -> list[tuple[str, str]]:
    doubts = []
    spellings: dict[str, str] = {}
    for key, values in calls.arguments.items():
        kinds = {kind for kind in values.types if kind != "null"}
        if len(kinds - ({"integer"} if "number" in kinds else set())) > 1:
            shown = ", ".join(f"{kind} {count}" for kind, count in values.types.items())
            doubts.append((key, f"has values of several types ({shown})"))
        if values.count < _RARE and calls.count >= 10 * _RARE:
            doubts.append((key, f"is in {values.count} of {calls.count} calls"))
        if values.types.keys() == {"null"}:
            doubts.append((key, "is always null, so its type is not known"))
        looks = [kind for kind in values.looks if kind != "string"]
        if looks and values.looks.keys() <= {*looks, "null"} and not values.types:
            named = " or ".join(looks)
            doubts.append((key, f"comes as untyped XML and always looks like {named}: it is taken for text"))
        if (other := spellings.setdefault(_fold(key), key)) != key:
            doubts.append((key, f"differs only in spelling from `{other}`"))
        if values.is_map:
            doubts.append((key, "is an object with keys without end: a map rather than a record"))
    if len(calls.arguments) >= MOST_ARGUMENTS:
        doubts.append(("…", f"has {MOST_ARGUMENTS} arguments or more, the others are left out"))
    return doubts


def _fold(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
