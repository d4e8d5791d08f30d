"""Calls in spellings that the lenient reading alone takes, each with a problem that leaves them certain.

Tags that are nearly `<tool_call>` around JSON, and, in a fence or with its lines to itself, JSON of an
offered tool under other keys than `name` and `arguments`, or under the one key `tool_calls`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from stages.core.chat import ToolCall
from stages.core.dialects import fenced_json
from stages.core.dialects.json_calls import NotCall, read_call, walk_values
from stages.core.dialects.literals import NotLiteral
from stages.core.dialects.problems import Recovered
from stages.core.dialects.scanning import Block, Source

_TAG = r"(?i:tool[-_]?(?:call|use))\s*+>"
TAG_START = f"<{_TAG}"
_NAMES = ("function", "tool", "tool_name", "function_name", "action")
_ARGUMENTS = ("arguments", "parameters", "args", "params", "input", "action_input", "tool_input")
_WRAPPERS = ("tool_calls", "tool_call")  # of llama.cpp's generic format, and of an API's answers
_WRAPPED = rf"""\{{\s*+["'](?:{"|".join(_WRAPPERS)})["']\s*+:\s*+(?=[\[{{])"""
_OBJECT = rf"""(?:\[\s*+)?\{{\s*+["'](?:{"|".join(_NAMES)})["']\s*+:\s*+["']"""
BARE_START = rf"(?:^|(?<=</think>))[ \t]*+(?={_OBJECT}|{_WRAPPED})"

_OPEN, _CLOSE = re.compile(TAG_START), re.compile(f"</{_TAG}")
_NAME = r"""([^"'\\]*+)["']"""
_FENCE = re.compile(rf"```[ \t]*+(?:\w++)?\s*+(?={_OBJECT}{_NAME}|{_WRAPPED})")
_BARE = re.compile(rf"\s*+(?={_OBJECT}{_NAME}|{_WRAPPED})")


def starts_tag(text: str, start: int) -> bool:
    """Whether a tag that is nearly `<tool_call>` is at `start`."""
    return _OPEN.match(text, start) is not None


def read_tag(source: Source, start: int) -> Block | None:
    """Read JSON calls in a tag that is nearly `<tool_call>`, of whatever tools; None where there are none."""
    opening = _OPEN.match(source.text, start)
    if opening is None or source.exhausted:
        return None
    place = f"{fenced_json.NAME}, character {start}"
    problems: list[str] = [Recovered(place, "another spelling of <tool_call>")]
    calls, end = _read_calls(source, opening.end(), problems, place, read_any_keys)
    closing = _CLOSE.match(source.text, source.skip_space(end))
    if not calls:
        return None
    if closing is None:
        problems.append(Recovered(place, "no closing tag"))
    return Block(end if closing is None else closing.end(), fenced_json.NAME, calls, problems)


def read_other_keys(source: Source, start: int) -> Block | None:
    """Read the fence or the bare JSON at `start` as calls of offered tools under other keys, else None."""
    text, schemas = source.text, source.tools.schemas
    is_fence = text.startswith(fenced_json.FENCE, start)
    opening = (_FENCE if is_fence else _BARE).match(text, start)
    if opening is None or start < source.fence_end or source.exhausted:
        return None
    if not schemas or (opening[1] is not None and opening[1] not in schemas):
        return None
    if not is_fence and fenced_json.is_quoted(text, start):
        return None
    place = f"{fenced_json.NAME}, character {start}"
    problems: list[str] = []
    read = _read_other_keys if opening[1] is not None else read_any_keys
    calls, end = _read_calls(source, opening.end(), problems, place, read)
    offered = bool(calls) and all(call.name in schemas for call in calls)
    pos = source.skip_space(end)
    closed = is_fence and text.startswith(fenced_json.FENCE, pos)
    if not offered or not (closed or pos == len(text) or (not is_fence and fenced_json.ends_line(text, end))):
        source.budget -= end - start
        return None
    if is_fence:
        source.fence_end = end = pos + len(fenced_json.FENCE) if closed else end
    return Block(end, fenced_json.NAME, calls, problems)


def _read_calls(
    source: Source, pos: int, problems: list[str], place: str, read: Callable[[Any], tuple[ToolCall, str]]
) -> tuple[list[ToolCall], int]:
    """The calls in the JSON values from `pos` on and where they end; none where a value is no call."""
    end = pos
    calls: list[ToolCall] = []
    try:
        for written in walk_values(source.text, source.skip_space(pos)):
            value, end = _unwrap(written.value), written.end
            if value is not written.value:
                problems.append(Recovered(place, "calls under a key of their own"))
            found = [read(item) for item in (value if isinstance(value, list) else [value])]
            calls += [call for call, _ in found]
            mended = (written.forgiven, *(keys for _, keys in found))
            problems += [Recovered(place, what) for what in mended if what]
    except NotLiteral as error:
        source.budget -= error.reached - pos
        return [], pos
    except NotCall:
        source.budget -= end - pos
        return [], pos
    return calls, end


def _unwrap(value: Any) -> Any:
    """What an object holds under its one key, where that is one for calls."""
    if type(value) is dict and len(value) == 1:
        return next((value[key] for key in _WRAPPERS if key in value), value)
    return value


def read_any_keys(value: Any) -> tuple[ToolCall, str]:
    """The call under the usual keys or others. Raises NotCall."""
    try:
        return read_call(value, marked=False), ""
    except NotCall:
        return _read_other_keys(value)


def _read_other_keys(value: Any) -> tuple[ToolCall, str]:
    """The call that an object of two keys is, and what has to be forgiven. Raises NotCall."""
    if type(value) is not dict or len(value) != 2:  # a subclass has a key twice
        raise NotCall("not a name and arguments")
    names = [key for key in _NAMES if isinstance(value.get(key), str)]
    arguments = [key for key in _ARGUMENTS if key in value]
    if len(names) != 1 or len(arguments) != 1:
        raise NotCall("not a name and arguments")
    call = read_call({"name": value[names[0]], "arguments": value[arguments[0]]}, marked=False)
    return call, f"a call under the keys {names[0]} and {arguments[0]}"
