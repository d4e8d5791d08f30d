"""What a chat template does with tools, calls and results, found out by rendering marked ones."""

from __future__ import annotations

from typing import Any, Literal

from jinja2 import TemplateError

from stages.core.chat import Conversation, Message, Tool, ToolCall
from stages.core.dialects import parse_any
from stages.core.tokenizer import Tokenizer

_PARAMETERS = {"type": "object", "properties": {"zz_key": {"type": "string"}}, "required": ["zz_key"]}
TOOL = Tool("zz_tool", "zz_description", _PARAMETERS)
CALL = ToolCall("zz_tool", {"zz_key": "zz_value"})
_EXCHANGE = (
    Message("system", "zz_system"),
    Message("user", "zz_question"),
    Message("assistant", "", (CALL,)),
    Message("tool", "zz_result", tool="zz_tool"),
    Message("assistant", "zz_answer"),
)
_LEGEND = {"tool definitions": "zz_description", "calls": "zz_value", "results": "zz_result"}

Fate = Literal["kept", "encoded twice", "lost", "refused"]


def render_messages(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    tools: tuple[Tool, ...] = (),
    template: str | None = None,
) -> str | None:
    """The text of messages, with the tokenizer's template or another; None where it refuses them."""
    offered = [tool.to_json() for tool in tools] or None
    try:
        return str(
            tokenizer.apply_chat_template(messages, tools=offered, tokenize=False, chat_template=template)
        )
    except (TemplateError, TypeError, ValueError):
        return None


def find_dropped(tokenizer: Tokenizer, template: str | None = None) -> list[str]:
    """Which of tool definitions, calls and results a template leaves out or refuses to write."""
    text = render_messages(tokenizer, Conversation(_EXCHANGE).to_row()["messages"], (TOOL,), template) or ""
    return [part for part, mark in _LEGEND.items() if mark not in text]


def find_dialect(tokenizer: Tokenizer) -> str | None:
    """The dialect in which the tokenizer's template writes a call, None where it writes none."""
    text = render_messages(tokenizer, Conversation(_EXCHANGE).to_row()["messages"]) or ""
    reply = parse_any(text.partition("zz_question")[2], [TOOL])
    return reply.dialect if reply.calls else None


def find_string_fate(tokenizer: Tokenizer) -> Fate:
    """What becomes of arguments that are given as a JSON string instead of an object."""
    messages = Conversation(_EXCHANGE).to_row()["messages"]
    messages[2]["tool_calls"][0]["function"]["arguments"] = '{"zz_key": "zz_value"}'
    text = render_messages(tokenizer, messages, (TOOL,))
    if text is None:
        return "refused"
    if "zz_value" not in text:
        return "lost"
    return "encoded twice" if r"\"zz_key\"" in text else "kept"
