"""Contents that are no text: parts with calls and results in them, as Anthropic's messages have, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

CALLS_IN_PARTS = "parts with a call or a result made turns"
PART_REPEATED = "call in a part that repeats a tool call dropped"
RESULT_WRITTEN = "tool result in JSON written as compact text"

_CALL, _RESULT, _THOUGHT = "tool_use", "tool_result", "thinking"
_KNOWN = {
    _CALL: frozenset(("type", "id", "name", "input")),
    _RESULT: frozenset(("type", "tool_use_id", "content")),
    _THOUGHT: frozenset(("type", "thinking", "signature")),
}
_NOTHING: tuple[Any, ...] = (None, "", False, [], {})


def holds_calls(content: Any) -> bool:
    """Whether a content is in parts, and one of them is a call, a result or a thought."""
    return type(content) is list and any(_type_of(part) in _KNOWN for part in content)


def open_parts(
    message: Mapping[str, Any], role: str, key: str, changes: dict[str, None]
) -> Iterator[dict[str, Any]]:
    """A message whose content, under `key`, is such parts, as messages in OpenAI's shape.

    An assistant's is one message; what a user's holds are the results, each a message of its own, and the
    text between them. Raises ValueError for a part in the wrong role, and for calls that stand elsewhere
    too and are no list there.
    """
    changes[CALLS_IN_PARTS] = None
    if role == "assistant":
        yield _join_answer(message, key, changes)
        return
    texts: list[Any] = []
    for part in message[key]:
        if _type_of(part) != _RESULT:
            _require(part, role)
            texts.append(part)
            continue
        if texts:
            yield {**message, key: texts}
            texts = []
        _note_unkept(part, changes)
        result = {"tool_call_id": part.get("tool_use_id"), "content": part.get("content", "")}
        yield {"role": "tool", **result}
    if texts:
        yield {**message, key: texts}


def _join_answer(message: Mapping[str, Any], key: str, changes: dict[str, None]) -> dict[str, Any]:
    given = message.get("tool_calls")
    ids = {call["id"] for call in given if _has_id(call)} if isinstance(given, list) else set[str]()
    texts, calls, thoughts = list[Any](), list[Any](), list[str]()
    for part in message[key]:
        kind = _type_of(part)
        if kind == _CALL:
            if _has_id(part) and part["id"] in ids:
                changes[PART_REPEATED] = None
                continue
            _note_unkept(part, changes)
            calls.append({"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")})
        elif kind == _THOUGHT:
            _note_unkept(part, changes)
            thoughts.append(str(part.get(_THOUGHT) or ""))
        else:
            _require(part, "assistant")
            if calls:
                changes["prose behind a call moved before it"] = None
            texts.append(part)
    opened = {**message, key: texts}
    if calls:
        if not isinstance(given, list) and given not in _NOTHING:
            raise ValueError("calls in its parts, and tool_calls beside them that are no list")
        opened["tool_calls"] = [*(given or ()), *calls]
    if thoughts:
        opened["reasoning_content"] = "\n\n".join(thoughts)
    return opened


def _has_id(call: Any) -> bool:
    return isinstance(call, Mapping) and isinstance(call.get("id"), str) and call["id"] != ""


def _require(part: Any, role: str) -> None:
    if (kind := _type_of(part)) in _KNOWN:
        raise ValueError(f"a part of type {kind!r} in a turn of the {role}")


def _type_of(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind if isinstance(kind, str) else None


def _note_unkept(part: Mapping[str, Any], changes: dict[str, None]) -> None:
    for key, value in part.items():
        if key not in _KNOWN[part["type"]] and value not in _NOTHING:
            changes[f"{str(key)[:40]} of a part not kept"] = None


def is_json_result(content: Any) -> bool:
    """Whether the content of a tool's turn is a JSON value, and not the parts of a text."""
    if isinstance(content, list):
        return bool(content) and not all(isinstance(part, str) or _type_of(part) for part in content)
    return isinstance(content, dict | int | float)


def write_result(content: Any) -> str:
    """A result as compact JSON. Raises ValueError for what JSON cannot hold."""
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:  # a date, a number that is not finite, too deep
        raise ValueError(f"a tool result that JSON cannot hold: {error}") from None
