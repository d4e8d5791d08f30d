"""Calls as Python writes them, `[f(a=1), g(b="x")]`: the dialect of Llama 4, LFM2, Olmo 3 and others.

Only literals are arguments, and nothing is evaluated. Between wrapping tokens the brackets may be
missing and JSON may stand instead. Without them a list counts where prose does not use one: not in
code, and not without arguments in the middle of a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stages.core.chat import ToolCall
from stages.core.dialects.json_calls import read_calls, write_json
from stages.core.dialects.literals import NotLiteral, read_arguments, read_json
from stages.core.dialects.problems import Recovered, shorten
from stages.core.dialects.scanning import THINK_TAGS, Block, Reply, Source, read_reply, skip_separator
from stages.core.dialects.toolbox import Tools

NAME = "pythonic"
WRAPPERS = {
    "<|python_start|>": ("<|python_end|>",),
    "<|tool_call_start|>": ("<|tool_call_end|>",),
    "<function_calls>": ("</function_calls>",),
    "<|python_tag|>": ("<|eom_id|>", "<|eot_id|>"),
}
# A bracket, a name, a parenthesis, and then a name with its value, a literal, or nothing.
LIST_START = (
    r"\[\s*+[^\W\d][\w.\-]*+\s*+\("
    r"(?=\s*+(?:[^\W\d]\w*+\s*+=(?!=)|[)\"'\[{(\d.+-]|(?:True|False|None|true|false|null)\b))"
)
WRAPPER_START = "|".join(map(re.escape, WRAPPERS))

_OPENINGS = re.compile(f"{WRAPPER_START}|{THINK_TAGS}|```|{LIST_START}")
_LIST = re.compile(LIST_START)
_NAMED_LIST = re.compile(r"\[\s*+[^\W\d][\w.\-]*+\s*+\(\s*+[^\W\d]\w*+\s*+=(?!=)")
_CALL = re.compile(r"([^\W\d][\w.\-]*+)\s*+\(")
_KEY = re.compile(r"[^\W\d]\w*+")
# What stands before a list that is part of an expression, a link or a piece of code.
_NOT_BEFORE = frozenset("`'\"=(,)]_")


def render(calls: Sequence[ToolCall], tools: Tools = None) -> str:
    """The calls as one list, without wrapping tokens, which differ from model to model.

    Raises ValueError for names that are not identifiers and for what JSON cannot say.
    """
    return f"[{', '.join(_write_call(call) for call in calls)}]" if calls else ""


def parse(text: str, tools: Tools = None) -> Reply:
    """Read a reply in this dialect."""
    return read_reply(Source(text, tools), _OPENINGS, read_block)


def _write_call(call: ToolCall) -> str:
    if _CALL.fullmatch(f"{call.name}(") is None or call.name != call.name.strip():
        raise ValueError(f"{NAME} cannot write a call of {call.name!r}: it is not a name")
    for key in call.arguments:
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"{NAME} cannot write argument {key!r} of {call.name!r}: it is not a name")
    try:
        write_json(call.arguments)
    except ValueError as error:
        raise ValueError(f"{NAME}: call of {call.name!r}: {error}") from None
    return f"{call.name}({', '.join(f'{k}={_write_literal(v)}' for k, v in call.arguments.items())})"


def _write_literal(value: Any) -> str:
    if isinstance(value, str):
        return write_json(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_write_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{write_json(k)}: {_write_literal(v)}' for k, v in value.items())}}}"
    return repr(value)


def read_block(source: Source, start: int) -> Block | None:
    """Read what opens at `start`: a wrapping token, a code fence (which is skipped) or a bare list."""
    text = source.text
    if text.startswith("```", start):
        skip_fence(source, start)
        return None
    if text.startswith("<", start):
        return _read_wrapped(source, start)
    if start < source.fence_end or source.exhausted or not _may_start(text, start):
        return None
    calls: list[ToolCall] = []
    try:
        end = _read_list(source, start, calls)
    except NotLiteral as error:
        source.budget -= error.reached - start
        return _report_broken(source, start, error)
    if text.startswith("(", end):  # the text of a link
        source.budget -= end - start
        return None
    if not any(call.arguments for call in calls) and not _stands_alone(source, start, end):
        return None
    return Block(end, NAME, calls, gap=0)


def read_calls_at(source: Source, pos: int) -> tuple[list[ToolCall], int]:
    """The calls at `pos`, a list or one after another without brackets, and where they end.

    Raises NotLiteral.
    """
    text, end = source.text, pos
    calls: list[ToolCall] = []
    while starts_list(text, pos) or (not text.startswith("[", pos) and _CALL.match(text, pos)):
        end = _read_list(source, pos, calls) if text.startswith("[", pos) else _read_call(source, pos, calls)
        pos = skip_separator(text, end)
    return calls, end


def skip_fence(source: Source, start: int) -> None:
    """Remember that the code fence at `start` shows text up to its end."""
    if start >= source.fence_end:
        close = source.find("```", start + 3)
        source.fence_end = len(source.text) if close == -1 else close + 3


def starts_list(text: str, start: int) -> bool:
    """Whether a list of calls may start at the bracket at `start`."""
    return _LIST.match(text, start) is not None


def _may_start(text: str, start: int) -> bool:
    before = text[max(0, start - 20) : start]
    last = before.rstrip(" \t")[-1:]
    if not last:
        return True
    # Chinese has no space before a list; names before an index are ASCII.
    is_name = before[-1].isascii() and before[-1].isalnum()
    return last not in "=(," and before[-1] not in _NOT_BEFORE and not is_name


def _stands_alone(source: Source, start: int, end: int) -> bool:
    """Whether nothing else is on the lines of a piece of text.

    Only the white space beside it is looked at: a line may hold many such pieces.
    """
    text, following = source.text, source.skip_space(end)
    if following < len(text) and "\n" not in text[end:following]:
        return False
    while start and text[start - 1].isspace() and text[start - 1] != "\n":
        start -= 1
    return not start or text[start - 1] == "\n"


def _report_broken(source: Source, start: int, error: NotLiteral) -> Block | None:
    """A broken list with a named argument was meant as a call; anything else is prose."""
    if _NAMED_LIST.match(source.text, start) is None:
        return None
    problem = f"{NAME}, character {start}: {error} at character {error.pos}"
    return Block(start + 1, NAME, problems=[problem])


def _read_wrapped(source: Source, start: int) -> Block | None:
    text = source.text
    opening = next(token for token in WRAPPERS if text.startswith(token, start))
    place = f"{NAME}, character {start}"
    pos = source.skip_space(start + len(opening))
    calls: list[ToolCall] = []
    problems: list[str] = []
    end = pos
    try:
        while not source.exhausted and (text.startswith(("[", "{"), pos) or _CALL.match(text, pos)):
            end = _read_item(source, pos, calls, problems, place)
            pos = skip_separator(text, end)
    except NotLiteral as error:
        problems.append(f"{place}: {error} at character {error.pos}")
        source.budget -= error.reached - pos
    closings = WRAPPERS[opening]
    if not calls:
        return Block(
            max(end, start + len(opening)), NAME, problems=problems or [f"{place}: no call in {opening}"]
        )
    for closing in closings:
        if text.startswith(closing, pos):
            return Block(pos + len(closing), NAME, calls, problems, gap=0)
    if pos < len(text) or len(closings) == 1:
        problems.append(Recovered(place, f"no {closings[0]}"))
    return Block(end, NAME, calls, problems, gap=0)


def _read_item(source: Source, pos: int, calls: list[ToolCall], problems: list[str], place: str) -> int:
    """Read a list, a call or JSON between wrapping tokens and return its end."""
    text = source.text
    if starts_list(text, pos):
        return _read_list(source, pos, calls)
    if not text.startswith(("[", "{"), pos):
        return _read_call(source, pos, calls)
    value, end = read_json(text, pos, strict=False)
    read, wrong = read_calls(value)
    calls += read
    problems += [f"{place}: {reason}: {shorten(text[pos:end])}" for reason in wrong]
    return end


def _read_list(source: Source, start: int, calls: list[ToolCall]) -> int:
    """Read a list of calls and return the position after its bracket. Raises NotLiteral."""
    text = source.text
    found: list[ToolCall] = []
    pos = source.skip_space(start + 1)
    while not text.startswith("]", pos):
        pos = source.skip_space(_read_call(source, pos, found))
        if text.startswith(",", pos):
            pos = source.skip_space(pos + 1)
        elif not text.startswith("]", pos):
            raise NotLiteral("expected , or ]", pos)
    calls += found
    return pos + 1


def _read_call(source: Source, pos: int, calls: list[ToolCall]) -> int:
    """Read `name(…)` and return the position after it. Positional arguments get the schema's names."""
    match = _CALL.match(source.text, pos)
    if match is None:
        raise NotLiteral("not a call", pos)
    positional, named, end = read_arguments(source.text, match.end())
    if positional:
        properties = source.tools.schemas.get(match[1], {}).get("properties")
        names = list(properties) if isinstance(properties, dict) else []
        if len(positional) > len(names) or set(names[: len(positional)]) & set(named):
            raise NotLiteral(f"no name for a positional argument of {match[1]}", pos)
        named = dict(zip(names, positional, strict=False)) | named
    calls.append(ToolCall(match[1], named))
    return end
