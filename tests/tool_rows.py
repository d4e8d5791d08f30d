"""Rows of a shop's assistant, with tools of its own, and what a conversion makes of them."""

from __future__ import annotations

import json
from typing import Any

import orjson

from stages.convert_data.converted import Converted
from stages.convert_data.offers import ConvertContext
from stages.convert_data.rows import convert_row
from stages.core.chat import Tool, ToolCall
from stages.core.chatml import Turn, join_chatml
from stages.core.fixes import FAIR
from stages.core.preset import load_preset

SETUP = load_preset("smol").model
SEARCH = Tool(
    "search",
    "Find products.",
    {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "what to look for"},
            "limit": {"type": "integer", "enum": [5, 10]},
            "zip": {"type": "string"},
        },
        "required": ["query"],
    },
)
OTHER = Tool("get_time")
TOOLS = [SEARCH.to_json(), OTHER.to_json()]
LINES = "\n".join(map(json.dumps, TOOLS))
QWEN = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
    "function signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function "
    "call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
"""What Qwen2.5 writes into the system text about the tools that stand in for `{}`."""
CALL = ToolCall("search", {"query": "tea <b>", "limit": 5, "zip": "02134"})
PLAIN = ConvertContext(SETUP, FAIR)


def chat(answer: str, system: str | None = None) -> dict[str, Any]:
    head = [] if system is None else [Turn("system", system)]
    return {"text": join_chatml([*head, Turn("user", "Tea?"), Turn("assistant", answer)])}


def convert(raw: Any, context: ConvertContext) -> Converted:
    converted = convert_row(raw, context)
    assert orjson.loads(converted.line) == converted.row
    return converted


def called(converted: Converted) -> list[ToolCall]:
    return [
        ToolCall(call["function"]["name"], call["function"]["arguments"])
        for message in converted.row["messages"]
        for call in message.get("tool_calls", ())
    ]
