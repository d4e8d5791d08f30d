"""A row without the fix `json`: its text as it is, where the fair arm has that row too."""

from __future__ import annotations

from typing import Any

import orjson

from stages.convert_data.converted import (
    HAD_OTHER,
    SYSTEM_REPLACED,
    Converted,
    Kind,
    SystemText,
    name_pattern,
)
from stages.convert_data.draft import check_value, replace_system
from stages.convert_data.messages import SourceTurn, load_list, read_role
from stages.convert_data.offers import ConvertContext, Offer, ToolsUnclear
from stages.convert_data.parts import holds_calls, is_json_result
from stages.convert_data.shapes import SourceRow
from stages.core.chat import ToolCall
from stages.core.definitions import read_definitions
from stages.core.dialects import parse_any
from stages.core.tools import is_code_mode_call


def keep_legacy(
    raw: Any,
    source: SourceRow,
    turns: list[SourceTurn],
    offer: Offer,
    context: ConvertContext,
    fair: Converted,
) -> Converted:
    """The text as it is; with the fix `tools` only the system turn and the tools are exchanged.

    `fair` is what the fair arm makes of the row: by it rows are the same or not, and turns look like calls.
    """
    with_tools = "tools" in context.fixes
    row, changes = _show_tools(raw, source, turns, offer) if with_tools else _keep_row(raw, source)
    try:
        line = orjson.dumps(row) + b"\n"
    except TypeError as error:
        raise ValueError(f"text or a number that JSON cannot hold: {error}") from None
    if b"null" in line:  # as which a number that is not finite is written
        check_value(row)
    dialects, tools = _find_calls(source, offer, context)
    change, system = _replace_system(turns, offer, context) if with_tools else ("", ())
    kind = Kind(
        source.shape,
        name_pattern([turn.role for turn in source.turns]),
        tuple(dialects),
        tuple(tools),
        (*changes, change) if change else changes,
        has_own_tools=offer.is_own if with_tools else None,
        lookalikes=fair.kind.lookalikes,
        controls=fair.kind.controls,
        system=system,
    )
    return Converted(line, fair.digests, raw, kind)


def _find_calls(source: SourceRow, offer: Offer, context: ConvertContext) -> tuple[list[str], list[str]]:
    """The dialect of each turn with calls, and the tool of each call. Raises ToolsUnclear."""
    undecided = offer.code_mode and context.tools is None and "tools" in context.fixes
    dialects, tools = list[str](), list[str]()
    for turn in source.turns:
        if turn.role != "assistant":
            continue
        reply = parse_any(turn.text, None if undecided else offer.box)
        calls = [*turn.calls, *reply.calls]
        if undecided and (foreign := [call.name for call in calls if not is_code_mode_call(call)]):
            raise ToolsUnclear(f"{foreign[0]} is called, and nothing defines it")
        if calls:
            dialects.append(str(reply.dialect or "messages"))
            # Out of a text that is kept as it is may come half of a surrogate pair.
            tools += [call.name.encode("utf-8", "backslashreplace").decode() for call in calls]
    return dialects, tools


def _keep_row(raw: Any, source: SourceRow) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The row as it is, and what changed; how a column holds its lists is no flaw: here they are lists."""
    changes: tuple[str, ...] = ()
    if source.shape == "text":
        row = dict(raw)
    elif (messages := _own_messages(raw, source)) is not None:
        row = {**raw, "messages": messages}
    else:
        row = {"messages": [_keep_turn(turn) for turn in source.turns], "tools": source.tools or []}
        changes = source.changes
    if not isinstance(row.get("tools", []), list | None):
        row["tools"] = list(read_definitions(row["tools"]).tools)
    return row, changes


def _own_messages(raw: Any, source: SourceRow) -> list[Any] | None:
    """The messages as the row has them, None where they are not in the shape that templates read."""
    if source.shape != "messages":
        return None
    given = load_list(raw["messages"], "messages is")
    return list(given) if all(map(_is_usual, given)) else None


def _is_usual(message: Any) -> bool:
    """Whether a message says its role and its content under the keys that chat templates read."""
    content = message.get("content")
    if holds_calls(content) or is_json_result(content):
        return False
    elsewhere = message.get("value") is not None or message.get("text") is not None
    return message.get("role") is not None and (content is not None or not elsewhere)


def _show_tools(
    raw: Any, source: SourceRow, turns: list[SourceTurn], offer: Offer
) -> tuple[dict[str, Any], tuple[str, ...]]:
    own = _own_messages(raw, source) if offer.system is not None else None
    if own is not None:
        kept = [dict(message) for place, message in enumerate(own) if not _is_system(message, place)]
    else:
        kept = [_keep_turn(turn) for turn in turns if turn.role != "system" or offer.system is None]
    system = offer.system
    if system is None and not any(message.get("role") == "system" for message in kept):
        system = offer.added_system
    head = [] if system is None else [{"role": "system", "content": system}]
    row = {"messages": [*head, *kept], "tools": list(offer.shown.tools)}
    return row, source.changes if own is None else ()


def _is_system(message: Any, place: int) -> bool:
    return read_role(message["role"], place) == "system"


def _replace_system(turns: list[SourceTurn], offer: Offer, context: ConvertContext) -> tuple[str, SystemText]:
    """What the card says about the system turn, as `replace_system` does."""
    own = [turn.text for turn in turns if turn.role == "system"]
    written = offer.added_system if offer.system is None else offer.system
    if written is None or (own and offer.system is None):
        return "", ()
    if len(own) > 1:
        return SYSTEM_REPLACED, (written, HAD_OTHER)
    return replace_system(own[0] if own else None, written, context.setup.system)


def _keep_turn(turn: SourceTurn) -> dict[str, Any]:
    """A turn with its text as it is, and with the calls that the source had as structure."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.calls:
        message["tool_calls"] = list(map(_keep_call, turn.calls))
    return message


def _keep_call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
