"""XML calls, `<tool_call><function=NAME><parameter=KEY>…`: the dialect of Qwen3-Coder and Qwen3.5.

A value is the text between its tags less one wrapping newline on each side, typed by the tool's
schema. It may hold the dialect's own tags: a `</parameter>` counts as the end only where the call
goes on behind it, and a nested example is stepped over by counting its tags.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.chat import ToolCall
from stages.core.dialects.json_calls import write_json
from stages.core.dialects.literals import NotLiteral, read_json
from stages.core.dialects.problems import Recovered, shorten
from stages.core.dialects.scanning import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_TAGS,
    Block,
    Reply,
    Source,
    close_block,
    read_reply,
    unwrap,
)
from stages.core.dialects.schema import TEXT, read_typed
from stages.core.dialects.toolbox import Toolbox, Tools, open_toolbox
from stages.core.exact import is_same

NAME = "qwen3_coder"
GAP = 2
FUNCTION_OPEN = "<function="
FUNCTION_START = "<function(?:=| name=)"
FUNCTION_CLOSE = "</function>"
PARAMETER_OPEN = "<parameter="
PARAMETER_CLOSE = "</parameter>"
QUOTES = ("'", '"')

_NAME = re.compile(r"\w[\w.\-]*+")
_OPENINGS = re.compile(f"{CALL_OPEN}|{FUNCTION_START}|{THINK_TAGS}")
_START = re.compile(FUNCTION_START)
_FUNCTION = re.compile(r"""<function(?:=([^<>\n]++)|\s+name=(["'])([^<>\n"']++)\2)>""")
_PARAMETER = re.compile(r"<parameter=([^<>\n]++)>")
# Only in a function whose own name is an attribute: in any other, such a tag is data.
_ATTRIBUTE = re.compile(r"""<parameter\s+name=(["'])([^<>\n"']++)\1[^<>\n]*+>""")
_ATTRIBUTE_CLOSE = re.compile(r"</parameter>(?=\s*+(?:<parameter\s|</function>|</tool_call>|\Z))")
_PROSE = re.compile(r"""(?:[^<"'{\[(`]|(?<=\w)'(?=\w))++(?=<function(?:=| name=))""")
_GOOD_CLOSE = re.compile(r"</parameter>(?=\s*+(?:<parameter=|</function>|</tool_call>|\Z))")
_TAG = re.compile(
    r"(?P<open><parameter=[^<>\n]++>)"
    r"|(?P<close></parameter>(?=\s*+(?:<parameter=|</function>|</tool_call>|\Z)))"
    r"|(?P<done></function>(?=\s*+(?:<tool_call>|</tool_call>|<function=|\Z)))"
    r"|(?P<end></tool_call>(?=[^\S\n]*+(?:\n|<tool_call>|<function=|\Z)))"
    r"|(?P<next><tool_call>|<function=)"
)
_QUOTED = "the name of a function or parameter in quotes"
_DRIFTED = re.compile(r"</parameter[^<>\s]{0,40}>?\s*+")
# Deeper nesting than any example in a value has; it bounds the work on a text of openings alone.
_MAX_NESTING = 8


class _BrokenError(ValueError):
    """The function cannot be read; the message says why, `pos` how far it was read."""

    def __init__(self, message: str, pos: int) -> None:
        super().__init__(message)
        self.pos = pos


@dataclass(frozen=True, slots=True)
class _Tags:
    """The tags of a text that may mean something, in order: `pairs` open or close a parameter, `ends`
    end a value that has no closing tag of its own."""

    pairs: list[tuple[int, str]]
    ends: list[tuple[int, str]]


def render(calls: Sequence[ToolCall], tools: Tools = None) -> str:
    """The calls as Qwen3-Coder's template writes them, a newline between.

    Text stands as it is, an object or array as JSON, any other value as Python's `str`. Raises
    ValueError for a call that would not be read back as it is: a value whose type the schema does
    not say, or whose text holds tags that cannot be told from the call's own.
    """
    blocks = []
    for call in calls:
        pieces = [f"{CALL_OPEN}\n{FUNCTION_OPEN}{call.name}>\n"]
        for key, value in call.arguments.items():
            pieces.append(f"{PARAMETER_OPEN}{key}>\n{_write_value(call, key, value)}\n{PARAMETER_CLOSE}\n")
        pieces.append(f"{FUNCTION_CLOSE}\n{CALL_CLOSE}")
        blocks.append("".join(pieces))
    known = open_toolbox(tools)
    text = "\n".join(blocks)
    if not all(_is_plain(call, known) for call in calls) and not _reads_back(text, calls, known):
        for block, call in zip(blocks, calls, strict=True):
            if not _reads_back(block, [call], known):
                raise ValueError(_describe_unwritable(block, call, known))
        raise ValueError(f"{NAME} cannot write these {len(calls)} calls together, their tags do not match")
    return text


def parse(text: str, tools: Tools = None) -> Reply:
    """Read a reply in this dialect; `tools` give the values their types."""
    return read_reply(Source(text, tools), _OPENINGS, read_block)


def _write_value(call: ToolCall, key: str, value: Any) -> str:
    try:
        written = write_json(value)
    except ValueError as error:
        raise ValueError(f"{NAME}: argument {key!r} of {call.name!r}: {error}") from None
    if isinstance(value, str):
        return value
    return written if isinstance(value, dict | list) else str(value)


def _is_plain(call: ToolCall, tools: Toolbox) -> bool:
    """Whether nothing in a call could be read otherwise: text under text, and no tag in it."""
    if _NAME.fullmatch(call.name) is None:
        return False
    for key, value in call.arguments.items():
        if not isinstance(value, str) or "<" in value or _NAME.fullmatch(key) is None:
            return False
        types = tools.find_types(call.name, key)
        if types and types != TEXT:
            return False
    return True


def _reads_back(text: str, calls: Sequence[ToolCall], tools: Toolbox) -> bool:
    read = parse(text, tools)
    return len(read.calls) == len(calls) and not read.content and all(map(_is_same, read.calls, calls))


def _describe_unwritable(block: str, call: ToolCall, tools: Toolbox) -> str:
    read = parse(block, tools).calls
    back = read[0].arguments if len(read) == 1 and read[0].name == call.name else {}
    wrong = [k for k, v in call.arguments.items() if not (k in back and is_same(back[k], v))]
    what = f"argument {wrong[0]!r} of {call.name!r}" if wrong else f"a call of {call.name!r}"
    return (
        f"{NAME} cannot write {what}, it would not be read back as it is: the tool's schema does not give "
        f"it this type, or its text holds the dialect's own tags"
    )


def _is_same(one: ToolCall, other: ToolCall) -> bool:
    return one.name == other.name and is_same(one.arguments, other.arguments)


def starts_function(text: str, start: int) -> bool:
    """Whether a function's tag opens at `start`."""
    return _START.match(text, start) is not None


def starts_behind_prose(text: str, start: int) -> bool:
    """Whether words alone stand between `start` and a function's tag."""
    return _PROSE.match(text, start) is not None


def read_block(source: Source, start: int) -> Block:
    """Read the block at `start`: a `<tool_call>`, or a `<function=` that came without one."""
    text, place = source.text, f"{NAME}, character {start}"
    wrapped = text.startswith(CALL_OPEN, start)
    pos = source.skip_space(start + len(CALL_OPEN)) if wrapped else start
    end = pos
    calls: list[ToolCall] = []
    problems: list[str] = []
    leftovers: list[str] = []
    if wrapped and (prose := _PROSE.match(text, pos)) is not None:
        problems.append(f"{place}: text behind {CALL_OPEN}: {shorten(prose[0])}")
        leftovers.append(prose[0])
        pos = prose.end()
    while (function := _FUNCTION.match(text, pos)) is not None:
        try:
            call, end, leftover = _read_function(source, function, problems)
        except _BrokenError as error:
            problems.append(f"{NAME}, character {pos}: {error}")
            source.budget -= error.pos - pos
            break
        calls.append(call)
        leftovers.append(leftover)
        pos = source.skip_space(end)
    if not calls:
        if len(problems) == len(leftovers):
            problems = [f"{place}: no {FUNCTION_OPEN}NAME> where one must be"]
        stop = source.end_of_block(start) if wrapped else start + len(FUNCTION_OPEN)
        return Block(stop, NAME, problems=problems)
    if not wrapped:
        problems.append(Recovered(place, f"no {CALL_OPEN}"))
    if wrapped:
        end, leftover, closed = close_block(source, pos, end)
        if leftover:
            problems.append(f"{place}: text before {CALL_CLOSE}: {shorten(leftover)}")
            leftovers.append(leftover)
        elif not closed:
            problems.append(Recovered(place, f"no {CALL_CLOSE}"))
    elif text.startswith(CALL_CLOSE, pos):
        end = pos + len(CALL_CLOSE)
    # Without its tags the block is not the template's, and the newlines before it are the model's own.
    return Block(end, NAME, calls, problems, "".join(leftovers), GAP if wrapped else 0)


def _read_function(source: Source, function: re.Match[str], problems: list[str]) -> tuple[ToolCall, int, str]:
    """Read a function to its end: the call, the position after it, and text that belongs nowhere."""
    text, schemas = source.text, source.tools.schemas
    name = _unquote(written := (function[1] or function[3]).strip(), schemas)
    place = f"{NAME}, {name} at character {function.start()}"
    if name != written:
        problems.append(Recovered(place, _QUOTED))
    arguments: dict[str, Any] = {}
    leftovers: list[str] = []
    pos = source.skip_space(function.end())
    if source.exhausted:
        raise _BrokenError(f"too many broken calls before {name!r}", pos)
    if text.startswith("{", pos):
        return _read_json_body(source, name, pos, place, problems)
    attributes = function[3] is not None and _ATTRIBUTE.match(text, pos) is not None
    if attributes:
        problems.append(Recovered(place, "the names of parameters as attributes"))
    while (parameter := (_ATTRIBUTE if attributes else _PARAMETER).match(text, pos)) is not None:
        written = parameter[2 if attributes else 1].strip()
        key = _unquote(written, schemas.get(name, {}).get("properties"))
        if key != written:
            problems.append(Recovered(place, _QUOTED))
        read = _read_attributed_value if attributes else _read_value
        raw, end, leftover = read(source, parameter.end())
        if end < 0:
            raise _BrokenError(f"parameter {key!r} of {name!r} is cut off", pos)
        if not text.startswith(PARAMETER_CLOSE, end - len(PARAMETER_CLOSE)):
            problems.append(f"{place}: no {PARAMETER_CLOSE} after parameter {key!r}")
        if key in arguments:
            problems.append(f"{place}: parameter {key!r} is given twice, the last one counts")
        leftovers.append(leftover)
        types = source.tools.find_types(name, key)
        arguments[key], problem = read_typed(raw, types) if types else (raw, "")
        if problem:
            problems.append(f"{place}: parameter {key!r}: {problem}")
        pos = source.skip_space(end)
    end = _close_function(source, name, pos, place, problems)
    return ToolCall(name, arguments), end, "".join(leftovers)


def _unquote(name: str, known: Any) -> str:
    """A name in a tag, without quotes around it where it is known without them and not with them."""
    if not (name.startswith(QUOTES) and name[0] == name[-1] and isinstance(known, Mapping)):
        return name
    bare = name[1:-1].strip()
    return bare if bare in known and name not in known else name


def _close_function(source: Source, name: str, pos: int, place: str, problems: list[str]) -> int:
    if source.text.startswith(FUNCTION_CLOSE, pos):
        return pos + len(FUNCTION_CLOSE)
    if not source.text.startswith(CALL_CLOSE, pos):
        found = shorten(source.text[pos : pos + 30])
        raise _BrokenError(
            f"{name!r} is cut off" if pos == len(source.text) else f"{found} inside {name!r}", pos
        )
    problems.append(Recovered(place, f"no {FUNCTION_CLOSE}"))
    return pos


def _read_json_body(
    source: Source, name: str, pos: int, place: str, problems: list[str]
) -> tuple[ToolCall, int, str]:
    """`<function=NAME>{…}</function>`: the arguments as one JSON object."""
    try:
        arguments, end = read_json(source.text, pos, strict=False)
    except NotLiteral as error:
        raise _BrokenError(f"invalid JSON in {name!r} ({error})", error.reached) from None
    return (
        ToolCall(name, arguments),
        _close_function(source, name, source.skip_space(end), place, problems),
        "",
    )


def _read_value(source: Source, begin: int) -> tuple[str, int, str]:
    """The value that begins at `begin`, the end of its closing tag, and text that belongs nowhere.

    The end is -1 when the text breaks off inside the value. Without a closing tag the value goes up
    to what ends it, and the end is there.
    """
    text = source.text
    close = source.find(PARAMETER_CLOSE, begin)
    if close != -1 and _GOOD_CLOSE.match(text, close) and text.find(PARAMETER_OPEN, begin, close) == -1:
        return unwrap(text[begin:close]), close + len(PARAMETER_CLOSE), ""
    tags = _index_tags(source)
    close = _find_balanced(tags.pairs, bisect_left(tags.pairs, (begin, "")))
    if close != -1:
        return unwrap(text[begin:close]), close + len(PARAMETER_CLOSE), ""
    first = bisect_left(tags.ends, (begin, ""))
    end, kind = tags.ends[first] if first < len(tags.ends) else (-1, "next")
    if kind == "next":
        return "", -1, ""
    if kind == "close":
        return unwrap(text[begin:end]), end + len(PARAMETER_CLOSE), ""
    return _read_unclosed_value(text, begin, end)


def _read_attributed_value(source: Source, begin: int) -> tuple[str, int, str]:
    """The value of `<parameter name="KEY">`, as `_read_value` gives it."""
    close = _ATTRIBUTE_CLOSE.search(source.text, begin)
    if close is None:
        source.budget -= len(source.text) - begin
        return "", -1, ""
    return unwrap(source.text[begin : close.start()]), close.end(), ""


def _read_unclosed_value(text: str, begin: int, end: int) -> tuple[str, int, str]:
    """A value up to the tag that ends it, less a misspelt closing tag."""
    tag = text.rfind("</parameter", begin, end)
    if tag == -1:
        return unwrap(text[begin:end]), end, ""
    drifted = _DRIFTED.match(text, tag, end)
    junk = text[drifted.end() if drifted else tag : end]
    return unwrap(text[begin:tag]), end, junk


def _index_tags(source: Source) -> _Tags:
    if source.tags is None:
        pairs, ends = [], []
        for match in _TAG.finditer(source.text):
            kind = match.lastgroup or ""
            tag = (match.start(), kind)
            if kind in ("open", "close"):
                pairs.append(tag)
            if kind not in ("open", "next") or _at_line_start(source.text, match.start()):
                ends.append(tag)
        source.tags = _Tags(pairs, ends)
    tags: _Tags = source.tags
    return tags


def _at_line_start(text: str, pos: int) -> bool:
    return text[max(0, pos - 80) : pos].rstrip(" \t").endswith("\n")


def _find_balanced(pairs: list[tuple[int, str]], first: int) -> int:
    """The closing tag that matches a value's own opening tag, nested pairs counted; -1 for none."""
    depth = 1
    for index in range(first, len(pairs)):
        start, kind = pairs[index]
        depth += 1 if kind == "open" else -1
        if depth == 0:
            return start
        if depth > _MAX_NESTING:
            break
    return -1
