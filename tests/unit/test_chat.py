"""Conversations in the OpenAI shape: read back as written, and never anything but a ValueError."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.chat import ROLES, Conversation, Message, Tool, ToolCall

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAME = TEXT.filter(bool)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.builds(ToolCall, NAME, st.dictionaries(TEXT, JSON, max_size=3)), max_size=3)
MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), TEXT),
    st.builds(Message, st.just("assistant"), TEXT, CALLS.map(tuple)),
    st.builds(Message, st.just("tool"), TEXT, tool=st.none() | NAME),
)
TOOLS = st.builds(Tool, NAME, TEXT, st.dictionaries(TEXT, JSON, min_size=1, max_size=2))
CONVERSATIONS = st.builds(
    Conversation,
    st.lists(MESSAGES, min_size=1, max_size=6).map(tuple),
    st.lists(TOOLS, max_size=2).map(tuple),
)
# Rows that are nearly right: the keys that are read, with anything behind them.
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "messages": JSON
        | st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(ROLES) | JSON},
                optional={
                    "content": JSON,
                    "name": JSON,
                    "tool_calls": JSON
                    | st.lists(
                        JSON
                        | st.fixed_dictionaries(
                            {}, optional={"function": JSON, "name": JSON, "arguments": JSON}
                        ),
                        max_size=2,
                    ),
                },
            ),
            max_size=3,
        ),
        "tools": JSON
        | st.lists(JSON | st.fixed_dictionaries({"name": TEXT}, optional={"parameters": JSON}), max_size=2),
    },
)


@given(CONVERSATIONS)
def test_a_row_is_read_back_through_json(conversation: Conversation) -> None:
    row = orjson.loads(orjson.dumps(conversation.to_row()))
    assert Conversation.from_row(row) == conversation


@given(CONVERSATIONS)
def test_call_ids_are_unique_and_results_name_earlier_ones(conversation: Conversation) -> None:
    given_ids: list[str] = []
    answered: list[str] = []
    for message in conversation.to_row()["messages"]:
        given_ids += [call["id"] for call in message.get("tool_calls", [])]
        if "tool_call_id" in message:
            assert message["tool_call_id"] in given_ids
            answered.append(message["tool_call_id"])
    assert given_ids == [f"call_{n}" for n in range(len(given_ids))]
    assert len(set(answered)) == len(answered)


@given(NEARLY)
def test_what_is_no_row_raises_value_error_alone(row: dict[str, Any]) -> None:
    try:
        conversation = Conversation.from_row(row)
    except ValueError:
        return
    assert len(conversation.messages) == len(row["messages"])
    assert len(conversation.tools) == len(row.get("tools") or ())


def test_the_openai_shape() -> None:
    calls = (ToolCall("f", {"a": 1}), ToolCall("g"))
    conversation = Conversation(
        (
            Message("user", "do"),
            Message("assistant", "", calls),
            Message("tool", "one", tool="f"),
            Message("tool", "two"),
            Message("tool", "three"),
            Message("assistant", "", (ToolCall("h"),)),
        ),
        (Tool("f", "does f"),),
    )
    assert conversation.to_row() == {
        "messages": [
            {"role": "user", "content": "do"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                    {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": {}}},
                ],
            },
            {"role": "tool", "content": "one", "name": "f", "tool_call_id": "call_0"},
            {"role": "tool", "content": "two", "tool_call_id": "call_1"},
            {"role": "tool", "content": "three"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "call_2", "type": "function", "function": {"name": "h", "arguments": {}}},
                ],
            },
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": "does f",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
    }


def test_bare_functions_and_missing_content_are_read() -> None:
    row = {
        "messages": [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}],
        "tools": [{"name": "f"}],
    }
    assert Conversation.from_row(row) == Conversation(
        (Message("assistant", "", (ToolCall("f"),)),), (Tool("f"),)
    )


def answer(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": "a"} | more]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no messages"),
        ({"messages": []}, "no messages"),
        ({"messages": "hello"}, "no messages"),
        (answer(role="robot"), "a role of system, user, assistant, tool"),
        ({"messages": ["hello"]}, "a role of"),
        (answer(content=["a"]), "content must be text"),
        (answer(name=3), "name of a message must be text"),
        (answer(tool_calls=5), "tool_calls must be a list of objects"),
        (answer(tool_calls=["f()"]), "tool_calls must be a list of objects"),
        (answer(tool_calls=[{"function": "f"}]), "must be an object"),
        (answer(tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]), "arguments that are an object"),
        (answer(tool_calls=[{"function": {"arguments": {}}}]), "needs a name"),
        (answer() | {"tools": "abc"}, "tools must be a list of objects"),
        (answer() | {"tools": ["f"]}, "tools must be a list of objects"),
        (answer() | {"tools": [{"function": {}}]}, "a tool needs a name"),
        (
            answer() | {"tools": [{"name": "f", "parameters": ["a"]}]},
            "parameters of tool f must be an object",
        ),
    ],
)
def test_reasons(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Conversation.from_row(row)
