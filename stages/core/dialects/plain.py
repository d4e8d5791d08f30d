"""The commonest replies, read by one expression a call: prose without any mark, then tagged calls to the end.

In such a text nothing else could open a block, so there is nothing to weigh. What is read here is
read as the general way reads it, in a fraction of the time; a test holds the two together. Whatever
is not of this form, or has a problem, is left to the general way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from stages.core.chat import ToolCall
from stages.core.dialects import bare_python, hermes, qwen3_coder
from stages.core.dialects.json_calls import NotCall, list_foreign_keys, read_call
from stages.core.dialects.literals import NotLiteral, find_doubled, read_json
from stages.core.dialects.scanning import CALL_CLOSE, CALL_OPEN, Reply, drop_gap, unwrap
from stages.core.dialects.schema import TEXT, read_typed
from stages.core.dialects.toolbox import Toolbox

Call = tuple[str, dict[str, Any]]
"""A tool's name and its arguments."""

_KEY = r"[^<>\n]++"
_VALUE = r"[^<]*+(?:<(?!/parameter>|parameter=)[^<]*+)*+"  # no tag of a parameter in it
_PARAMETER = rf"<parameter=({_KEY})>({_VALUE})</parameter>\s*+"
_PAIR = re.compile(_PARAMETER)
_XML = re.compile(
    rf"{CALL_OPEN}\s*+<function=({_KEY})>\s*+{_PARAMETER}"
    rf"((?:<parameter={_KEY}>{_VALUE}</parameter>\s*+)*+)</function>\s*+{CALL_CLOSE}\s*+"
)
_BODY = r"([^<]*+(?:<(?!/?tool_call>)[^<]*+)*+)"
_JSON = re.compile(rf"{CALL_OPEN}\s*+(?=\{{){_BODY}{CALL_CLOSE}\s*+")
_PYTHON = re.compile(rf"{CALL_OPEN}(?!\s*+[<{{\[`]){_BODY}(?<=\n){CALL_CLOSE}\s*+")


def read_plain(text: str, box: Toolbox) -> Reply | None:
    """The reply if the text is of the commonest form, else None."""
    if (found := find_calls(text, box)) is None:
        return None
    prose, calls, dialect = found
    return Reply(prose, [ToolCall(name, arguments) for name, arguments in calls], dialect)


def find_calls(text: str, box: Toolbox) -> tuple[str, list[Call], str] | None:
    """The prose, the calls and their dialect if the text is of the commonest form, else None."""
    start = text.find("<")
    prose = text[:start] if start else ""
    if start == -1 or (prose and ("[" in prose or "{" in prose or "```" in prose)):
        return None
    for dialect, gap, pattern, read in _FORMS:
        if (block := pattern.match(text, start)) is not None:
            calls = _read_calls(text, block, read, box)
            return (drop_gap(prose, gap) if prose else "", calls, dialect) if calls else None
    return None


def _read_calls(text: str, block: re.Match[str], read: _Read, box: Toolbox) -> list[Call]:
    """The calls from a block on; none where anything but blocks of the same form follows."""
    calls: list[Call] = []
    following: re.Match[str] | None = block
    while following is not None and (call := read(following, box)) is not None:
        calls.append(call)
        end = following.end()
        if end == len(text):
            return calls
        following = block.re.match(text, end)
    return []


def _read_xml(block: re.Match[str], box: Toolbox) -> Call | None:
    arguments: dict[str, Any] = {}
    name, first, raw, others = block.groups()
    name = name.strip()
    if name.startswith(qwen3_coder.QUOTES):
        return None
    for written, value in ((first, raw), *_PAIR.findall(others)) if others else ((first, raw),):
        key = written.strip()
        if key in arguments or key.startswith(qwen3_coder.QUOTES):
            return None
        arguments[key] = value = unwrap(value)
        types = box.find_types(name, key)
        if types is not TEXT and types and types != TEXT:
            arguments[key], problem = read_typed(value, types)
            if problem or find_doubled(arguments[key]):
                return None
    return name, arguments


def _read_json(block: re.Match[str], box: Toolbox) -> Call | None:
    body = block[1]
    try:
        value, end = read_json(body, 0)
        call = read_call(value)
    except (NotLiteral, NotCall):
        return None
    lost = list_foreign_keys(value) or find_doubled(call.arguments)
    return (call.name, call.arguments) if not body[end:].strip() and not lost else None


def _read_python(block: re.Match[str], box: Toolbox) -> Call | None:
    """Code whose closing tag, on a line of its own, cannot be in a string."""
    if (box and bare_python.TOOL not in box.schemas) or '"""' in block[1] or "'''" in block[1]:
        return None
    code = unwrap(block[1])
    if not bare_python.does_something(code):
        return None
    return bare_python.TOOL, {bare_python.ARGUMENT: code}


_Read = Callable[[re.Match[str], Toolbox], Call | None]
_FORMS: tuple[tuple[str, int, re.Pattern[str], _Read], ...] = (
    (qwen3_coder.NAME, qwen3_coder.GAP, _XML, _read_xml),
    (hermes.NAME, 1, _JSON, _read_json),
    (bare_python.NAME, 1, _PYTHON, _read_python),
)
