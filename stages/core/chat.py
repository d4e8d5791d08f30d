"""Conversations in the OpenAI chat shape: the neutral form between two tool-call dialects.

A row on disk is `{"messages": [...], "tools": [...]}`. `arguments` are objects, never JSON
strings: a string is encoded a second time by several chat templates (Qwen2.5 among them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of one tool."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `calls` only in an assistant's turn, `tool` (the tool's name) only in a tool's."""

    role: Role
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    tool: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called; `parameters` is a JSON Schema of type object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def to_json(self) -> dict[str, Any]:
        """The OpenAI shape that every chat template expects in `tools`."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tool:
        """Read the OpenAI shape, or the bare function object inside it.

        Raises ValueError when there is no name, or parameters that are no object.
        """
        function = data.get("function", data)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("a tool needs a name")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise ValueError(f"the parameters of tool {function['name']} must be an object")
        return cls(
            name=function["name"],
            description=str(function.get("description") or ""),
            parameters=dict(function.get("parameters") or {"type": "object", "properties": {}}),
        )


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of one row and the tools that were offered in it."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The row that is written to disk. Call ids are `call_0`, `call_1`, … in order."""
        rows: list[dict[str, Any]] = []
        next_id, waiting = 0, []
        for message in self.messages:
            row: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.calls:
                ids = [f"call_{next_id + i}" for i in range(len(message.calls))]
                next_id += len(ids)
                waiting = list(ids)
                row["tool_calls"] = [
                    {
                        "id": call_id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call_id, call in zip(ids, message.calls, strict=True)
                ]
            if message.role == "tool":
                if message.tool:
                    row["name"] = message.tool
                if waiting:
                    row["tool_call_id"] = waiting.pop(0)
            rows.append(row)
        return {"messages": rows, "tools": [tool.to_json() for tool in self.tools]}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Conversation:
        """Read a neutral row. Raises ValueError with the reason when it is not one."""
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError("no messages")
        return cls(
            messages=tuple(_read_message(m) for m in messages),
            tools=tuple(Tool.from_json(t) for t in _list_of_objects(row, "tools")),
        )


def _read_message(data: Any) -> Message:
    if not isinstance(data, Mapping) or data.get("role") not in ROLES:
        raise ValueError(f"a message needs a role of {', '.join(ROLES)}")
    content = data.get("content")
    if content is not None and not isinstance(content, str):
        raise ValueError("content must be text")
    calls = []
    for call in _list_of_objects(data, "tool_calls"):
        function = call.get("function", call)
        if not isinstance(function, Mapping):
            raise ValueError("the function of a tool call must be an object")
        arguments = function.get("arguments")
        if not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
            raise ValueError("a tool call needs a name and arguments that are an object")
        calls.append(ToolCall(function["name"], arguments))
    name = data.get("name")
    if name is not None and not isinstance(name, str):
        raise ValueError("the name of a message must be text")
    return Message(data["role"], content or "", tuple(calls), name)


def _list_of_objects(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    items = data.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise ValueError(f"{key} must be a list of objects")
    return items
