"""The system prompt and the tools: one home, so that training and evaluation cannot differ."""

from __future__ import annotations

from typing import Any

from stages.core.chat import Message, Tool
from stages.core.fixes import FixSet
from stages.core.preset import ModelSetup
from stages.core.tools import EXECUTE_CODE, code_mode_instructions


def system_message(setup: ModelSetup, fixes: FixSet) -> Message:
    """The system turn: the preset's line, and the Code Mode instructions with the fix `tools`."""
    text = f"{setup.system}\n{code_mode_instructions()}" if "tools" in fixes else setup.system
    return Message("system", text)


def offered_tools(fixes: FixSet) -> tuple[Tool, ...]:
    """The tools offered in a prompt: Code Mode's one tool with the fix `tools`, else none."""
    return (EXECUTE_CODE,) if "tools" in fixes else ()


def prompt_parts(setup: ModelSetup, fixes: FixSet) -> dict[str, Any]:
    """All that decides a prompt beside the question, for fingerprints."""
    return query_row("", setup, fixes)


def query_row(query: str, setup: ModelSetup, fixes: FixSet) -> dict[str, Any]:
    """The neutral row of a question, as it is put to the model."""
    return {
        "messages": [
            {"role": "system", "content": system_message(setup, fixes).content},
            {"role": "user", "content": query},
        ],
        "tools": [tool.to_json() for tool in offered_tools(fixes)],
    }
