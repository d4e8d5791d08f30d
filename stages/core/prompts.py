"""The system prompt and the tools: one home, so that training and evaluation cannot differ.

Without tools of its own a data set, or a suite, is one of Code Mode: the one tool `execute_code`, and
instructions about the functions that its code may call. With tools of its own it has these, and the
system text is the preset's line alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.core.chat import Message, Tool
from stages.core.definitions import Definition
from stages.core.fixes import FixSet
from stages.core.preset import ModelSetup
from stages.core.query import Query
from stages.core.tools import EXECUTE_CODE, code_mode_instructions

RESULT_PREFIX = "Tool result:\n"  # of a user turn, where the preset wants results as such

OwnTools = Sequence[Tool] | None
"""Tools instead of those of Code Mode; None: Code Mode."""


def system_message(setup: ModelSetup, fixes: FixSet, tools: OwnTools = None) -> Message:
    """The system turn: the preset's line; in Code Mode, with the fix `tools`, its instructions too.

    An empty line leaves a turn without text where there are no instructions: no prompt has it then.
    """
    code_mode = "tools" in fixes and tools is None
    parts = [setup.system, code_mode_instructions() if code_mode else ""]
    return Message("system", "\n".join(filter(None, parts)))


def offered_tools(fixes: FixSet, tools: OwnTools = None) -> tuple[Tool, ...]:
    """The tools offered in a prompt: with the fix `tools` those given or Code Mode's, else none."""
    if "tools" not in fixes:
        return ()
    return (EXECUTE_CODE,) if tools is None else tuple(tools)


def prompt_parts(setup: ModelSetup, fixes: FixSet, tools: OwnTools = None) -> dict[str, Any]:
    """All that decides a prompt beside the question, for fingerprints."""
    return query_row("", setup, fixes, tools)


def query_row(query: str, setup: ModelSetup, fixes: FixSet, tools: OwnTools = None) -> dict[str, Any]:
    """The neutral row of a question, as it is put to the model."""
    shown = None if tools is None else [tool.to_json() for tool in tools]
    return turns_row([{"role": "user", "content": query}], shown, setup, fixes)


def case_row(query: Query, setup: ModelSetup, fixes: FixSet) -> dict[str, Any]:
    """The neutral row of a suite's query, with its own tools and given turns, as a conversion writes one."""
    return turns_row(query.turns, query.tools, setup, fixes)


def turns_row(
    turns: Sequence[Mapping[str, Any]], tools: Sequence[Definition] | None, setup: ModelSetup, fixes: FixSet
) -> dict[str, Any]:
    """The neutral row of some turns before the model's; they keep a system text of their own.

    `tools` are definitions in OpenAI shape, None for Code Mode.
    """
    messages = [as_user_turn(turn) if _is_user_turn(turn, setup) else dict(turn) for turn in turns]
    if messages[0]["role"] != "system":
        own: OwnTools = None if tools is None else ()
        if system := system_message(setup, fixes, own).content:
            messages.insert(0, {"role": "system", "content": system})
    if tools is None:
        tools = [tool.to_json() for tool in offered_tools(fixes)]
    return {"messages": messages, "tools": list(tools) if "tools" in fixes else []}


def as_user_turn(result: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's turn as a user's, for a preset with `tool_response = "user"`."""
    return {"role": "user", "content": RESULT_PREFIX + result["content"]}


def _is_user_turn(turn: Mapping[str, Any], setup: ModelSetup) -> bool:
    return turn["role"] == "tool" and setup.tool_response == "user"
