"""Rows of a shop's assistant, with tools of its own, and what a conversion makes of them."""

from __future__ import annotations

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
