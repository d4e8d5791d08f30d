"""Calls written as JSON objects: `{"name": …, "arguments": {…}}`, alone or in an array."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.core.chat import ToolCall
from stages.core.dialects.literals import LOOSE, Doubled, NotLiteral, read_json, read_literal
from stages.core.dialects.scanning import skip_separator

_ESCAPE = re.compile(r"""\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|('))?""")
_TRAILING_COMMA = re.compile(r"""("[^"\\]*+(?:\\.[^"\\]*+)*+")|,(?=\s*+[}\]])""", re.DOTALL)
_START = re.compile(r"\[|\{\s*+[\"'}rRuU]")
_WRAPPING_KEYS = frozenset(("function", "id", "type", "index"))
_CALL_KEYS = frozenset(("name", "arguments", "parameters", "id", "type", "index"))


class NotCall(ValueError):
    """The value is not a call; the message says why."""


class Written(NamedTuple):
    """A JSON value in a text."""

    value: Any
    start: int
    end: int
    forgiven: str
    """What had to be forgiven for it to be JSON; empty where it was."""


def walk_values(text: str, pos: int) -> Iterator[Written]:
    """The JSON objects and lists one after the other from `pos` on, with commas between or without.

    Raises NotLiteral where one cannot be read.
    """
    while text.startswith(("{", "["), pos):
        value, end, forgiven = read_value(text, pos)
        yield Written(value, pos, end, forgiven)
        pos = skip_separator(text, end)


def read_value(text: str, pos: int) -> tuple[Any, int, str]:
    """The JSON value at `pos`, its end, and what had to be forgiven (empty when it was JSON).

    Raises NotLiteral, with the strict reader's message, when no reading helps.
    """
    if _START.match(text, pos) is None:
        raise NotLiteral("Expecting a key in double quotes", pos + 1)
    try:
        return (*read_json(text, pos), "")
    except NotLiteral as error:
        strict = error
    if str(strict).startswith("Invalid control character"):
        try:
            return (*read_json(text, pos, strict=False), "raw control characters in a string")
        except NotLiteral as error:
            strict.reached = max(strict.reached, error.reached)
    try:
        value, end = read_literal(text, pos)
    except NotLiteral as error:
        strict.reached = max(strict.reached, error.reached)
        raise strict from None
    if not isinstance(value, dict | list):
        raise strict
    value, forgiven = _mend_json(text[pos:end]) or (value, "Python, not JSON")
    return value, end, forgiven


def _mend_json(text: str) -> tuple[Any, str] | None:
    """The value and the mistake of JSON with trailing commas, raw line breaks and escapes of other languages.

    Python would read its strings otherwise: `\\/` is a stroke in JSON alone.
    """
    escaped = _ESCAPE.sub(lambda match: match[0] if match[1] else match[2] or "\\\\", text)
    mended = _TRAILING_COMMA.sub(lambda match: match[1] or "", escaped)
    try:
        value = LOOSE.decode(mended)
    except (ValueError, RecursionError):
        return None  # Python's quotes or names
    what = "an escape that JSON does not know" if escaped != text else "a trailing comma"
    return value, what


def read_call(value: Any, *, marked: bool = True) -> ToolCall:
    """The call that a JSON value is.

    `parameters` stands for `arguments` (Llama), the OpenAI wrapping is taken off, arguments that are
    a JSON string are decoded once, missing ones are {}. Where no tag marks the value as a call, it
    needs arguments, no foreign keys, and must not be the definition of a tool. Raises NotCall.
    """
    if not isinstance(value, Mapping):
        raise NotCall("not an object")
    outer = value
    if isinstance(value.get("function"), Mapping):
        value = value["function"]
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise NotCall("no name")
    key = "arguments" if "arguments" in value else "parameters"
    if not marked and (key not in value or list_foreign_keys(outer)):
        raise NotCall("not only a name and arguments")
    if key == "parameters" and ("description" in value or _is_schema(value.get(key))):
        raise NotCall("the definition of a tool")
    if key not in value and any(isinstance(other, dict) for other in value.values()):
        raise NotCall("no arguments, but an object under another key")
    return ToolCall(name, _read_arguments(value.get(key)))


def read_calls(value: Any, *, marked: bool = True) -> tuple[list[ToolCall], list[str]]:
    """The calls in a JSON value or an array of them, and why the others are none."""
    calls, wrong = [], []
    for item in value if isinstance(value, list) else (value,):
        try:
            calls.append(read_call(item, marked=marked))
        except NotCall as error:
            wrong.append(str(error))
    return calls, wrong


def list_foreign_keys(value: Any) -> list[str]:
    """The keys of calls that a call does not have, and that are lost with it."""
    foreign: list[str] = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            continue
        function = item.get("function")
        if isinstance(function, dict):
            foreign += [str(key) for key in item if key not in _WRAPPING_KEYS]
        else:
            function = item
        foreign += [each.key for each in (item, function) if isinstance(each, Doubled)][:1]
        foreign += [str(key) for key in function if key not in _CALL_KEYS]
        if "arguments" in function and "parameters" in function:
            foreign.append("parameters")
    return foreign


def _is_schema(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") == "object" and "properties" in value


def _read_arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        text = value.strip() or "{}"
        try:
            value, end = read_json(text, 0, strict=False)
        except NotLiteral as error:
            raise NotCall(f"arguments are a string that is not JSON ({error})") from None
        if end != len(text):
            raise NotCall("arguments are a string with more than one value")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NotCall("arguments are not an object")
    return value


def write_json(value: Any) -> str:
    """The text that a chat template's `tojson` writes: no ASCII escapes, `, ` and `: ` between.

    A lone surrogate, which no file can hold, is escaped. Raises ValueError for what JSON cannot say:
    NaN and infinities, keys that are not strings, other types.
    """
    _check_json(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ValueError("the value is nested too deeply") from None
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _check_json(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise ValueError("JSON cannot write a key that is not text")
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"JSON cannot write {item}")
        elif item is not None and not isinstance(item, str | int | float):
            raise ValueError(f"JSON cannot write a {type(item).__name__}")


def write_call(call: ToolCall) -> str:
    """The call as Qwen's templates write it. Raises ValueError for what JSON cannot say."""
    try:
        return f'{{"name": {write_json(call.name)}, "arguments": {write_json(call.arguments)}}}'
    except ValueError as error:
        raise ValueError(f"call of {call.name!r}: {error}") from None
