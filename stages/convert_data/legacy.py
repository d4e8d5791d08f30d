"""A row without the fix `json`: its text as it is."""

from __future__ import annotations

from typing import Any

import orjson
from xxhash import xxh3_128_digest

from stages.convert_data.converted import (
    HAD_LINE,
    HAD_NONE,
    HAD_OTHER,
    SYSTEM_ADDED,
    SYSTEM_REPLACED,
    Converted,
    name_pattern,
)
from stages.convert_data.digests import digest_questions
from stages.convert_data.draft import check_value, holds_results, is_text
from stages.convert_data.messages import SourceTurn
from stages.convert_data.offers import CALLABLE, ConvertContext, Offer, ToolsUnclear
from stages.convert_data.shapes import SourceRow
from stages.core.chat import ToolCall
from stages.core.definitions import read_definitions
from stages.core.dialects import parse_any


def keep_legacy(
    raw: Any, source: SourceRow, turns: list[SourceTurn], offer: Offer, context: ConvertContext
) -> Converted:
    """The text as it is; with the fix `tools` only the system turn and the tools are exchanged."""
    plain = source.shape in ("text", "messages")
    row = dict(raw) if plain else {"messages": [_keep_turn(turn) for turn in source.turns], "tools": []}
    if isinstance(row.get("tools"), str):  # how a column holds them, and no flaw of the text
        row["tools"] = list(read_definitions(source.tools).tools)
    if "tools" in context.fixes:
        row = _show_tools(raw, source, turns, offer)
    try:
        line = orjson.dumps(row) + b"\n"
    except TypeError as error:
        raise ValueError(f"text or a number that JSON cannot hold: {error}") from None
    if b"null" in line:  # as which a number that is not finite is written
        check_value(row, exact=True)
    said = orjson.dumps([[turn.role, turn.text, *map(_keep_call, turn.calls)] for turn in source.turns])
    from_text = is_text(raw, source)
    asked = [t.text for t in turns if t.role == "user" and not holds_results("user", t.text, from_text)]
    converted = Converted(
        line,
        source.shape,
        name_pattern(source.turns),
        (xxh3_128_digest(said), digest_questions(asked)),
        raw,
    )
    if "tools" in context.fixes:
        _note_system(converted, turns, offer, context)
    undecided = offer.code_mode and context.tools is None and "tools" in context.fixes
    for turn in source.turns:
        if turn.role != "assistant":
            continue
        reply = parse_any(turn.text, None if undecided else offer.box)
        calls = [*turn.calls, *reply.calls]
        if undecided and (foreign := [call.name for call in calls if call.name not in CALLABLE.schemas]):
            raise ToolsUnclear(f"{foreign[0]} is called, and nothing defines it")
        if calls:
            converted.dialects.append(str(reply.dialect or "messages"))
            # Out of a text that is kept as it is may come half of a surrogate pair.
            converted.tools += [call.name.encode("utf-8", "backslashreplace").decode() for call in calls]
    return converted


def _show_tools(raw: Any, source: SourceRow, turns: list[SourceTurn], offer: Offer) -> dict[str, Any]:
    if source.shape == "messages" and offer.system is not None and not isinstance(raw["messages"], str):
        kept = [dict(message) for message in raw["messages"] if message.get("role") != "system"]
    else:
        kept = [_keep_turn(turn) for turn in turns if turn.role != "system" or offer.system is None]
    system = offer.system
    if system is None and not any(message.get("role") == "system" for message in kept):
        system = offer.added_system
    head = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*head, *kept], "tools": list(offer.shown.tools)}


def _note_system(
    converted: Converted, turns: list[SourceTurn], offer: Offer, context: ConvertContext
) -> None:
    """Tell the card what became of the system turn."""
    own = [turn.text for turn in turns if turn.role == "system"]
    written = offer.added_system if offer.system is None else offer.system
    if written is None or own == [written] or (own and offer.system is None):
        return
    if not own:
        converted.changes.append(SYSTEM_ADDED)
        converted.system = written, HAD_NONE
    elif own == [context.setup.system]:
        converted.system = written, HAD_LINE
    else:
        converted.changes.append(SYSTEM_REPLACED)
        converted.system = written, HAD_OTHER


def _keep_turn(turn: SourceTurn) -> dict[str, Any]:
    """A turn with its text as it is, and with the calls that the source had as structure."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.calls:
        message["tool_calls"] = list(map(_keep_call, turn.calls))
    return message


def _keep_call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
