"""JSON inside `<tool_call>` tags: the dialect of Qwen2.5, Qwen3 and Hermes.

The end of the JSON decides where a call ends, so a `</tool_call>` inside a string is data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stages.core.chat import ToolCall
from stages.core.dialects.json_calls import list_foreign_keys, read_calls, read_value, write_call
from stages.core.dialects.literals import NotLiteral
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
)
from stages.core.dialects.toolbox import Tools

NAME = "hermes"
_OPENINGS = re.compile(f"{CALL_OPEN}|{THINK_TAGS}")
_FENCE = re.compile(r"```(?:json)?\s*+(?=[{\[])")
_COMMA = re.compile(r"[,;]\s*+(?=[{\[])")


def render(calls: Sequence[ToolCall], tools: Tools = None) -> str:
    """The calls as Qwen2.5's and Qwen3's templates write them, one block a call, a newline between.

    Raises ValueError for what JSON cannot say.
    """
    return "\n".join(f"{CALL_OPEN}\n{write_call(call)}\n{CALL_CLOSE}" for call in calls)


def parse(text: str, tools: Tools = None) -> Reply:
    """Read a reply in this dialect."""
    return read_reply(Source(text, tools), _OPENINGS, read_block)


def read_block(source: Source, start: int) -> Block:
    """Read the block whose `<tool_call>` is at `start`: one object, several, or an array of them."""
    text, place = source.text, f"{NAME}, character {start}"
    calls: list[ToolCall] = []
    problems: list[str] = []
    leftovers: list[str] = []
    end = pos = source.skip_space(start + len(CALL_OPEN))
    fence = _FENCE.match(text, pos)
    if fence is not None:
        pos = fence.end()
    while text.startswith(("{", "["), pos) and not source.exhausted:
        try:
            value, end, forgiven = read_value(text, pos)
        except NotLiteral as error:
            problems.append(f"{place}: invalid JSON ({error} at character {error.pos})")
            source.budget -= error.reached - pos
            break
        if forgiven:
            problems.append(Recovered(place, forgiven))
        read, wrong = read_calls(value)
        calls += read
        if wrong:
            leftovers.append(text[pos:end])
            problems += [f"{place}: {reason}: {shorten(text[pos:end])}" for reason in wrong]
        elif keys := list_foreign_keys(value):
            problems.append(f"{place}: left out of the call: {shorten(', '.join(keys))}")
        pos = skip_comma(text, source.skip_space(end))
    if not calls:
        problems = problems or [f"{place}: no JSON object in {CALL_OPEN}"]
        return Block(source.end_of_block(start), NAME, problems=problems)
    if fence is not None:
        problems.append(Recovered(place, f"a code fence inside {CALL_OPEN}"))
        if text.startswith("```", pos):
            end, pos = pos + 3, source.skip_space(pos + 3)
    end, leftover, closed = close_block(source, pos, end)
    if leftover:
        problems.append(f"{place}: text before {CALL_CLOSE}: {shorten(leftover)}")
    elif not closed:
        problems.append(Recovered(place, f"no {CALL_CLOSE}"))
    return Block(end, NAME, calls, problems, "".join(leftovers) + leftover)


def starts_json(text: str, pos: int) -> bool:
    """Whether JSON is at `pos`, in a code fence or without."""
    return text.startswith(("{", "["), pos) or _FENCE.match(text, pos) is not None


def skip_comma(text: str, pos: int) -> int:
    """Step over a comma between two objects."""
    comma = _COMMA.match(text, pos)
    return comma.end() if comma is not None else pos
