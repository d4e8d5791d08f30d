"""The shapes in which rows come, each read into the same conversation."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
import pytest

from stages.convert_data.converted import Converted
from stages.convert_data.glaive import read_chat
from stages.convert_data.offers import ConvertContext
from stages.convert_data.rows import convert_row
from stages.convert_data.shapes import read_row, read_text
from stages.core.chat import Tool
from stages.core.chatml import Turn, join_chatml
from stages.core.fixes import FAIR, FLAWED
from stages.core.preset import load_preset

SETUP = load_preset("smol").model
WEATHER = Tool(
    "get_weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
TIME = Tool("get_time", "", {"type": "object", "properties": {"zone": {"type": "string"}}})
TOOLS = [WEATHER.to_json(), TIME.to_json()]
OSLO = {"city": "Oslo", "days": 3}
CONTEXT = ConvertContext(SETUP, FAIR, ())  # rows have tools of their own, or none
SYSTEM = {"role": "system", "content": SETUP.system}
ASKED: dict[str, Any] = {"role": "user", "content": "Weather in Oslo?"}


def convert(raw: Any, context: ConvertContext = CONTEXT) -> Converted:
    converted = convert_row(raw, context)
    assert orjson.loads(converted.line) == converted.row
    return converted


def reason(raw: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        convert(raw)
    return str(error.value)


def call(number: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(number: int, name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "name": name, "tool_call_id": f"call_{number}"}


NEUTRAL = [
    SYSTEM,
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [call(0, "get_weather", OSLO)]},
    result(0, "get_weather", "rain"),
    {"role": "assistant", "content": "It rains."},
]
EMPTY: tuple[Any, ...] = ({}, "{}")
ADD = {"instruction": "a", "output": "b"}
DOUBLED = '{"name": "f", "arguments": {"a": 1, "a": 2}}'
HERMES = f"<tool_call>\n{json.dumps({'name': 'get_weather', 'arguments': OSLO})}\n</tool_call>"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n" + SETUP.system + "<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWeather in Oslo?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 3}}<|eot_id|>'
    "<|start_header_id|>ipython<|end_header_id|>\n\nrain<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nIt rains.<|eot_id|>"
)
OPENAI: list[dict[str, Any]] = [
    {"role": "developer", "content": SETUP.system},
    {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {
                "id": "call_abc",
                "type": "function",
                "function": {"name": "get_weather", "arguments": json.dumps(OSLO)},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_abc", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
DEPRECATED = [
    {"role": "system", "content": SETUP.system},
    {"role": "user", "content": "Weather in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "get_weather", "arguments": json.dumps(OSLO)},
    },
    {"role": "function", "name": "get_weather", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
SHAREGPT = [
    {"from": "human", "value": "Weather in Oslo?"},
    {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": OSLO})},
    {"from": "observation", "value": "rain"},
    {"from": "gpt", "value": "It rains."},
]
HERMES_TURNS = [
    {"from": "human", "value": "Weather in Oslo?"},
    {"from": "gpt", "value": HERMES},
    {"from": "tool", "value": "<tool_response>\nrain\n</tool_response>"},
    {"from": "gpt", "value": "It rains."},
]
CHATML = join_chatml(
    [
        Turn("system", SETUP.system),
        Turn("user", "Weather in Oslo?"),
        Turn("assistant", HERMES),
        Turn("tool", "<tool_response>\nrain\n</tool_response>"),
        Turn("assistant", "It rains."),
    ]
)
CUT = CHATML.index("It rains.")
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("text", {"text": CHATML}),
    ("text", {"text": CHATML.replace("<|im_end|>\n", "<|im_end|>\r\n").replace("system\n", "system\r\n")}),
    ("text", {"text": f"{LLAMA}<|end_of_text|>\n"}),
    ("text", {"text": LLAMA}),
    ("messages", {"messages": OPENAI}),
    ("messages", {"messages": json.dumps(OPENAI)}),
    ("messages", {"messages": OPENAI, "text": "the same, rendered", "prompt": None}),
    ("messages", {"messages": DEPRECATED}),
    ("conversations", {"conversations": SHAREGPT, "system": SETUP.system}),
    ("conversations", {"conversations": [{"from": "system", "value": SETUP.system}, *HERMES_TURNS]}),
    ("prompt", {"prompt": OPENAI[:2], "completion": OPENAI[2:]}),
    ("prompt", {"prompt": CHATML[:CUT], "completion": "It rains."}),
]


@pytest.mark.parametrize(("shape", "raw"), SHAPES)
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["list", "text"])
def test_every_shape_gives_the_same_conversation(shape: str, raw: dict[str, Any], tools: Any) -> None:
    converted = convert({**raw, "tools": tools})
    assert converted.row == {"messages": NEUTRAL, "tools": TOOLS}
    assert (converted.kind.shape, converted.kind.tools) == (shape, ("get_weather",))
    assert converted.kind.untyped == converted.kind.undefined == ()


def test_the_same_meaning_has_the_same_digests_in_every_shape() -> None:
    digests = {convert({**raw, "tools": TOOLS}).digests for _, raw in SHAPES}
    assert len(digests) == 1
    other = [*OPENAI[:-1], {"role": "assistant", "content": "It snows."}]
    asked = convert({"messages": other, "tools": TOOLS}).digests
    assert asked not in digests
    assert asked[1] in {questions for _, questions in digests}


def test_instruction_and_query_rows() -> None:
    row = {
        "instruction": "Add.",
        "input": "1 and 2",
        "output": "3",
        "history": [["Hi", "Hello"]],
        "system": "Be brief.",
    }
    assert convert(row).row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Add.\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    answers = [{"name": "get_weather", "arguments": OSLO}, {"name": "get_time", "arguments": {"zone": "UTC"}}]
    for given in (answers, json.dumps(answers)):
        converted = convert({"id": 7, "query": "Both?", "answers": given, "tools": json.dumps(TOOLS)})
        assert converted.row["messages"][2]["tool_calls"] == [
            call(0, "get_weather", OSLO),
            call(1, "get_time", {"zone": "UTC"}),
        ]
        assert converted.kind.changes == ("column id not kept", "system turn added")


def test_parallel_calls_keep_their_results() -> None:
    calls = [
        {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": OSLO}},
        {"id": "a", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
        {"id": "c", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "CET"}'}},
    ]
    turns = [
        ASKED,
        {"role": "assistant", "content": "Three.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "13:00"},
        {"role": "tool", "tool_call_id": "b", "content": "rain"},
        {"role": "tool", "tool_call_id": "a", "content": "12:00"},
        {"role": "assistant", "content": "Done.", "tool_calls": [{**calls[1], "id": "b"}]},
        {"role": "tool", "tool_call_id": "b", "content": "12:01"},
    ]
    converted = convert({"messages": turns, "tools": TOOLS})
    assert converted.row["messages"][2:] == [
        {
            "role": "assistant",
            "content": "Three.",
            "tool_calls": [
                call(0, "get_weather", OSLO),
                call(1, "get_time", {}),
                call(2, "get_time", {"zone": "CET"}),
            ],
        },
        result(0, "get_weather", "rain"),
        result(1, "get_time", "12:00"),
        result(2, "get_time", "13:00"),
        {"role": "assistant", "content": "Done.", "tool_calls": [call(3, "get_time", {})]},
        result(3, "get_time", "12:01"),
    ]
    assert "results put in the order of their calls" in converted.kind.changes
    turns[3] |= {"tool_call_id": "x"}
    assert reason({"messages": turns, "tools": TOOLS}) == (
        "a tool result answers 'x', which no open call has as its id"
    )


def test_results_by_name_where_there_are_no_ids() -> None:
    turns = [
        {"from": "human", "value": "Both?"},
        {
            "from": "function_call",
            "value": json.dumps([{"name": "get_weather", "arguments": OSLO}, {"name": "get_time"}]),
        },
        {"from": "observation", "value": "12:00", "name": "get_time"},
        {"from": "observation", "value": "rain", "name": "get_weather"},
    ]
    rows = convert({"conversations": turns, "tools": TOOLS}).row["messages"]
    assert rows[3:] == [result(0, "get_weather", "rain"), result(1, "get_time", "12:00")]


def test_reasoning_fields_come_before_the_answer() -> None:
    turns = [ASKED, {"role": "assistant", "content": "Rain.", "reasoning_content": "\nLook up.\n"}]
    assert (
        convert({"messages": turns}).row["messages"][2]["content"] == "<think>\nLook up.\n</think>\n\nRain."
    )
    turns[1] |= {"tool_calls": OPENAI[2]["tool_calls"], "content": None}
    assert (
        convert({"messages": turns, "tools": TOOLS}).row["messages"][2]["content"].startswith("<think>\nLook")
    )


def test_reasoning_is_kept_beside_a_text_that_speaks_of_its_tag() -> None:
    said = {"role": "assistant", "content": "It ends with </think> there.", "reasoning_content": "Hm."}
    converted = convert({"messages": [ASKED, said]})
    assert converted.row["messages"][2]["content"] == f"<think>\nHm.\n</think>\n\n{said['content']}"
    for content in ("<think>\nHm.\n</think>\n\nRain.", "Hm.\n</think>\n\nRain."):
        converted = convert({"messages": [ASKED, {**said, "content": content, "reasoning": "Hm."}]})
        assert converted.row["messages"][2]["content"] == content
        assert converted.kind.changes == ("system turn added",), "said twice, and nothing lost"


@pytest.mark.parametrize("content", ["<think>\nNo.\n</think>\n\nRain.", "Rain."])
def test_a_second_reasoning_is_counted(content: str) -> None:
    said = {"role": "assistant", "content": content, "reasoning_content": "Hm.", "thinking": "Oh."}
    converted = convert({"messages": [ASKED, said]})
    assert "thinking of a message not kept" in converted.kind.changes
    lost = "reasoning_content of a message not kept" in converted.kind.changes
    assert lost == ("Hm." not in converted.row["messages"][2]["content"])


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("role", ["role", "from"])
@pytest.mark.parametrize("content", ["content", "value", "text"])
def test_the_keys_of_a_message_are_those_that_are_there(column: str, role: str, content: str) -> None:
    turns: list[dict[str, Any]] = [{role: "user", content: "Hi"}, {role: "assistant", content: "Hello"}]
    turns[1]["weight"] = 1
    expected = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    others: dict[str, Any] = {"content": None, "value": None, "from": None}  # of rows of another source
    for more in ({}, others):
        rows = [{**more, **turn} for turn in turns]
        assert convert({column: rows}).row["messages"] == expected
        kept = convert({column: rows}, ConvertContext(SETUP, FLAWED, ())).row["messages"]
        if (column, role, content) != ("messages", "role", "content"):
            assert kept == expected[1:], "a chat template reads it in the other arm too"


def test_a_message_with_neither_content_nor_calls_is_refused() -> None:
    for message in ({"role": "user", "words": "Hi"}, {"role": "user"}, {"role": "user", "tool_calls": []}):
        assert "message 0 has neither content nor calls, only role" in reason({"messages": [message]})
    silent = [{"role": "user", "content": None}, {"role": "assistant", "content": "So"}]
    converted = convert({"messages": [{"role": "system", "content": None}, *silent]})
    assert converted.kind.changes == (
        *("null of a system made an empty text", "null of a user made an empty text"),
        "system turn added",
    )
    others: list[dict[str, Any]] = [{}, {"refusal": "No."}, {"tool_calls": []}]
    for more in others:
        refused = {"messages": [ASKED, {"role": "assistant", "content": None, **more}]}
        assert "message 1 has neither content nor calls" in reason(refused)


def test_two_contents_that_differ_are_said() -> None:
    turns = [
        {"role": "user", "content": "Hi", "text": "Ho"},
        {"role": "assistant", "content": "a", "value": "a"},
    ]
    assert convert({"messages": turns}).kind.changes[0] == "text of a message not kept"
    assert len(convert({"messages": turns}).kind.changes) == 2


def test_tools_are_those_of_the_column_that_is_filled() -> None:
    raw: dict[str, Any] = {"messages": OPENAI}
    nothing: tuple[Any, ...] = (None, [], "", "[]", {})
    for empty in nothing:
        for column, other in (("tools", "functions"), ("functions", "tools")):
            converted = convert({**raw, column: empty, other: TOOLS})
            assert (converted.row["tools"], converted.kind.undefined) == (TOOLS, ())
    bare = [tool["function"] for tool in TOOLS]
    assert "column functions not kept" not in convert({**raw, "tools": TOOLS, "functions": bare}).kind.changes
    converted = convert({**raw, "tools": TOOLS, "functions": bare[:1]})
    assert converted.row["tools"] == TOOLS
    assert "column functions not kept" in converted.kind.changes


def test_call_turns_that_follow_each_other_are_one_turn() -> None:
    calls = [{"name": "get_weather", "arguments": OSLO}, {"name": "get_time", "arguments": {}}]
    answers = [{"from": "observation", "value": "rain"}, {"from": "observation", "value": "12:00"}]
    turns = [SHAREGPT[0], *({"from": "function_call", "value": json.dumps(one)} for one in calls), *answers]
    converted = convert({"conversations": turns, "tools": TOOLS})
    assert converted.row["messages"][2:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call(0, "get_weather", OSLO), call(1, "get_time", {})],
        },
        result(0, "get_weather", "rain"),
        result(1, "get_time", "12:00"),
    ]
    assert "calls of messages that follow each other made one turn" in converted.kind.changes
    turns.insert(2, {"from": "gpt", "value": "And the time."})
    assert reason({"conversations": turns, "tools": TOOLS}) == "a tool result without an open call before it"


def test_results_are_ordered_before_what_the_user_says_next() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": OSLO}},
        {"id": "b", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
    ]
    turns = [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "b", "content": "12:00"},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "user", "content": "And?"},
    ]
    converted = convert({"messages": turns, "tools": TOOLS})
    assert converted.row["messages"][2:4] == [
        result(0, "get_weather", "rain"),
        result(1, "get_time", "12:00"),
    ]
    assert converted.row["messages"][4] == turns[3]
    assert "results put in the order of their calls" in converted.kind.changes


def test_what_a_call_has_beside_its_arguments_is_counted() -> None:
    extra = {"result": "rain", "index": 0, "empty": None}
    function = {"name": "get_weather", "arguments": OSLO}
    for message in (
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function, **extra}]},
        {"role": "assistant", "tool_calls": [{"function": {**function, **extra}}]},
        {"role": "function_call", "content": json.dumps({**function, **extra})},
    ):
        kind = convert({"messages": [ASKED, message], "tools": TOOLS}).kind
        turned = ("turn of a call made the assistant's tool call",) * (message["role"] == "function_call")
        assert kind.changes == (*turned, "result of a call not kept", "system turn added")
    answers = [{**function, "thought": "Look."}]
    for given in (answers, json.dumps(answers)):
        kind = convert({"query": "Oslo?", "answers": given, "tools": TOOLS}).kind
        assert "thought of a call not kept" in kind.changes


@pytest.mark.parametrize("arguments", [None, "null", "", " "])
def test_arguments_that_say_nothing_are_counted(arguments: Any) -> None:
    said = "arguments of a call that are null or empty made {}"
    function = {"name": "get_time", "arguments": arguments}
    for message in (
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "function_call", "content": json.dumps(function)},
    ):
        converted = convert({"messages": [ASKED, message], "tools": TOOLS})
        assert said in converted.kind.changes
        assert converted.row["messages"][-1]["tool_calls"][0]["function"]["arguments"] == {}
    for given in EMPTY:
        message = {"role": "assistant", "tool_calls": [{"function": {**function, "arguments": given}}]}
        assert said not in convert({"messages": [ASKED, message], "tools": TOOLS}).kind.changes


@pytest.mark.parametrize("nothing", [None, [], "", "[]", "null", "{}", {}])
def test_no_calls_in_any_spelling_are_none(nothing: Any) -> None:
    said = {"role": "assistant", "content": "So.", "tool_calls": nothing, "function_call": nothing}
    converted = convert({"messages": [ASKED, said]})
    assert converted.row["messages"][2] == {"role": "assistant", "content": "So."}
    assert converted.kind.changes == ("system turn added",)


def test_a_call_under_both_keys_is_one_call() -> None:
    both = {**OPENAI[2], "function_call": {"name": "get_weather", "arguments": json.dumps(OSLO)}}
    converted = convert({"messages": [ASKED, both], "tools": TOOLS})
    assert converted.row["messages"][2] == NEUTRAL[2]
    assert converted.kind.changes == ("function_call that repeats a tool call dropped", "system turn added")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{'city': 'Oslo', 'days': 3}", "Python, not JSON"),
        ('{"city": "Oslo", "days": 3,}', "a trailing comma"),
    ],
)
def test_structured_calls_that_had_to_be_mended_are_counted(written: str, said: str) -> None:
    for message in (
        {"role": "assistant", "tool_calls": [{"name": "get_weather", "arguments": written}]},
        {"role": "function_call", "content": f'{{"name": "get_weather", "arguments": {written}}}'},
    ):
        converted = convert({"messages": [ASKED, message], "tools": TOOLS})
        assert converted.row["messages"][2] == NEUTRAL[2]
        assert f"mended: {said}" in converted.kind.changes


def test_what_a_message_says_elsewhere_is_counted() -> None:
    changes = convert({"messages": OPENAI, "tools": TOOLS}).kind.changes
    assert "role developer made system" in changes
    thought = {**OPENAI[-1], "reasoning_content": "Rain."}
    changes = convert({"messages": [*OPENAI[:-1], thought], "tools": TOOLS}).kind.changes
    assert "reasoning_content of a message put into its text" in changes
    silent = {**OPENAI[3], "content": None}
    changes = convert({"messages": [*OPENAI[:3], silent, OPENAI[-1]], "tools": TOOLS}).kind.changes
    assert "null of a tool result made an empty text" in changes
    changes = convert({"conversations": SHAREGPT, "tools": TOOLS}).kind.changes
    assert "turn of a call made the assistant's tool call" in changes


def test_a_result_without_a_call_is_counted() -> None:
    answer = {"role": "assistant", "content": "It rains."}
    for given, said in (
        ({}, "tool result without a call before it"),
        ({"tool_call_id": "x"}, "tool result without a call before it, its tool_call_id not kept"),
    ):
        converted = convert({"messages": [ASKED, {"role": "tool", "content": "rain", **given}, answer]})
        assert said in converted.kind.changes


def test_a_result_of_another_name_goes_by_order_and_is_counted() -> None:
    asked = {"role": "assistant", "tool_calls": [{"name": "get_weather", "arguments": OSLO}]}
    given = {"role": "tool", "name": "weather_api", "content": "rain"}
    converted = convert({"messages": [ASKED, asked, given, OPENAI[-1]], "tools": TOOLS})
    assert converted.row["messages"] == NEUTRAL
    assert "name of a tool result made that of its call" in converted.kind.changes


def test_a_tagged_result_goes_to_the_call_that_its_turn_names() -> None:
    calls = [{"name": "get_weather", "arguments": OSLO}, {"name": "get_time", "arguments": {}}]
    tagged = "<tool_response>\n12:00\n</tool_response>"
    turns = [ASKED, {"role": "assistant", "tool_calls": calls}]
    turns += [{"role": "tool", "name": "get_time", "content": tagged}]
    converted = convert({"messages": turns, "tools": TOOLS})
    assert converted.row["messages"][-1] == result(1, "get_time", "12:00")


def test_results_in_another_order_with_a_turn_between_are_refused() -> None:
    calls = [{"id": i, "function": {"name": "get_time", "arguments": {}}} for i in "abc"]
    a, b, c = ({"role": "tool", "tool_call_id": i, "content": i} for i in "abc")
    turns = [ASKED, {"role": "assistant", "tool_calls": calls}]
    why = "results in another order than their calls, with a turn between them"
    assert reason({"messages": [*turns, b, ASKED, a], "tools": TOOLS}) == why
    row = convert({"messages": [*turns, b, a, ASKED, c], "tools": TOOLS}).row
    assert [m["content"] for m in row["messages"] if m["role"] == "tool"] == ["a", "b", "c"]


def test_a_system_column_goes_before_a_prompt_in_chatml() -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    row = convert({"prompt": prompt, "completion": "Hello", "system": "Be brief."}).row
    assert row["messages"][0] == {"role": "system", "content": "Be brief."}
    twice = {"prompt": CHATML[:CUT], "completion": "a", "system": "b"}
    assert "both in its own column and among the turns" in reason(twice)


def test_a_call_written_twice_is_one_call() -> None:
    turns = [ASKED, {**OPENAI[2], "content": f"I look.\n{HERMES}"}]
    converted = convert({"messages": turns, "tools": TOOLS})
    assert converted.row["messages"][2] == {**NEUTRAL[2], "content": "I look."}
    assert "calls written a second time in the text dropped" in converted.kind.changes
    clock = {"name": "get_time", "arguments": {}}
    more = {**OPENAI[2], "tool_calls": [*OPENAI[2]["tool_calls"], clock], "content": HERMES}
    calls = convert({"messages": [ASKED, more], "tools": TOOLS}).row["messages"][2]["tool_calls"]
    assert calls == [call(0, "get_weather", OSLO), call(1, "get_time", {})]
    tagged = f"{HERMES}\n<tool_call>\n{json.dumps(clock)}\n</tool_call>"
    further = {**OPENAI[2], "content": tagged}
    assert convert({"messages": [ASKED, further], "tools": TOOLS}).row["messages"][2]["tool_calls"] == calls


def test_what_is_not_kept_is_said() -> None:
    raw = {
        "messages": [
            {**ASKED, "name": "Ann", "weight": 1},
            {"role": "assistant", "content": "Rain.", "audio": None},
        ],
        "source": "somewhere",
        "score": 0.5,
        "note": None,
    }
    assert convert(raw).kind.changes == (
        "weight of a message not kept",
        "name of a message not kept",
        "column source not kept",
        "column score not kept",
        "system turn added",
    )


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"text": "[INST] Hi [/INST] Hello"}, "with the marks of Mistral or Llama 2 ([INST])"),
        ({"text": "<start_of_turn>user\nHi<end_of_turn>"}, "with the marks of Gemma (<start_of_turn>)"),
        ({"text": "USER: Hi\nASSISTANT: Hello"}, "with the marks of Vicuna or Glaive"),
        ({"text": LLAMA.replace("<|eot_id|>", "", 1)}, "no <|eot_id|>"),
        ({"text": b"bytes"}, "text is bytes and not text"),
        ({"text": "<|im_start|>wizard\nHi<|im_end|>"}, "unknown role 'wizard'"),
        ({"tools": TOOLS}, "tools and no conversation: definitions for all rows are given with --tools"),
        ({"functions": [], "messages": None}, "tools and no conversation"),
        ({"text": LLAMA + "more"}, "not a Llama-3 turn at character"),
        ({"chosen": "a", "rejected": "b", "prompt": "c"}, "a row of preferences (chosen, rejected)"),
        ({"input": "a", "target": "b"}, "its columns (input, target): understood are text |"),
        ({"messages": {"role": "user"}}, "messages is an object and no list"),
        ({"messages": "no JSON"}, "messages is text and no JSON list"),
        ({"messages": ["hi"]}, "message 0 is text and no object"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "message 0: unknown role 'wizard'"),
        ({"messages": [ASKED, {"content": "x"}]}, "message 1 has no role"),
        ({"messages": [ASKED, {"role": "user", "content": 3}]}, "1: content must be text, and it is a "),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "message 0 has a part of type 'image_url': only text is read",
        ),
        ({"messages": [{**ASKED, "tool_calls": [{"name": "f", "arguments": {}}]}]}, "is not the assistant's"),
        (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}]},
            "message 1: a tool call is no call: no name",
        ),
        ({"conversations": [{"from": "function_call", "value": "none"}]}, "0: a call that is no JSON"),
        (
            {"conversations": [{"from": "function_call", "value": DOUBLED}]},
            "message 0: a call has 'a' twice",
        ),
        (
            {"query": "a", "answers": "[{'name': 'f', 'arguments': '{\"a\": 1, \"a\": 2}'}]"},
            "message 1: a call has 'a' twice",
        ),
        (
            {"query": "a", "answers": '[{"name": "f", "arguments": {"b": 1}, "arguments": {"c": 2}}]'},
            "message 1: a call has 'arguments' twice",
        ),
        ({"conversations": SHAREGPT, "system": 3}, "system is a number and not text"),
        (
            {"conversations": [{"from": "system", "value": "a"}, *SHAREGPT], "system": "b"},
            "a system text both in its own column and among the turns",
        ),
        ({"conversations": SHAREGPT, "tools": "none"}, "tools are not JSON"),
        ({"conversations": SHAREGPT, "tools": [{"description": "no name"}]}, "tools: a tool needs a name"),
        ({"prompt": "a", "completion": ["b"]}, "prompt and completion must both be text"),
        ({"instruction": "a", "output": 3}, "output is a number and not text"),
        ({"query": "a", "answers": " "}, "answers are empty"),
        ({"query": "a", "answers": "[]"}, "answers hold no call, and nothing to say instead"),
        ({"query": "a", "answers": []}, "answers hold no call"),
        ({"chat": "Hi\n\n\nASSISTANT: Hello"}, "chat does not begin with USER: or ASSISTANT: ('Hi"),
        ({"chat": "USER: Hi\nASSISTANT: Hello"}, "chat has 'ASSISTANT:' within a turn"),
        ({"chat": ["USER: Hi"]}, "chat is a list and not text"),
        ({**ADD, "history": 5}, "history is a number and no list of pairs"),
        ({**ADD, "history": "ab"}, "history is text and no list of pairs"),
        ({**ADD, "history": ["ab"]}, "history must hold pairs of a question and an answer"),
        ({**ADD, "history": [["a", 1]]}, "a text of history is a number and not text"),
        ({**ADD, "history": [["a", "b", "c"]]}, "history must hold pairs"),
    ],
)  # fmt: skip
def test_reasons(raw: dict[str, Any], why: str) -> None:
    assert why in reason(raw)


def test_every_shape_stays_readable_without_the_fix_json() -> None:
    context = ConvertContext(SETUP, FLAWED, ())
    for shape, raw in SHAPES:
        row = convert(raw, context).row
        if shape in ("text", "messages"):
            assert row == {**raw, **({"messages": OPENAI} if isinstance(raw.get("messages"), str) else {})}
        else:
            assert [m["role"] for m in row["messages"]][-4:] == ["user", "assistant", "tool", "assistant"]
            assert [turn.text for turn in read_row(raw).turns] == [m["content"] for m in row["messages"]]


def test_llama_text_keeps_its_white_space() -> None:
    turns, _ = read_text(LLAMA.replace("rain", "rain\n\n"))
    assert (turns[3].role, turns[3].text) == ("tool", "rain\n\n")


LLAMA_FORM = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"


@pytest.mark.parametrize("form", ["<|im_start|>{}\n{}<|im_end|>\n", LLAMA_FORM])
def test_a_text_has_roles_by_any_name_that_messages_have(form: str) -> None:
    turns = [("developer", "Be kind."), ("user", "Rain?"), ("assistant", HERMES), ("function", "rain")]
    turns.append(("model", "It rains."))
    whole = convert({"text": "".join(form.format(*turn) for turn in turns), "tools": TOOLS})
    given = [{"role": role, "content": content} for role, content in turns]
    assert whole.row == convert({"messages": given, "tools": TOOLS}).row
    roles = [message["role"] for message in whole.row["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert "role developer made system" in whole.kind.changes
    turns[2] = ("function_call", json.dumps({"name": "get_weather", "arguments": OSLO}))
    again = convert({"text": "".join(form.format(*turn) for turn in turns), "tools": TOOLS})
    assert again.row == whole.row
    assert "turn of a call made the assistant's tool call" in again.kind.changes


@pytest.mark.parametrize(("written", "count"), [("1", 1), ("1.0", 2), ("true", 2)])
def test_a_call_is_repeated_only_to_the_letter(written: str, count: int) -> None:
    given = call(0, "get_weather", {"city": "Oslo", "days": 1})
    arguments = f'{{"days": {written}, "city": "Oslo"}}'
    text = f'<tool_call>{{"name": "get_weather", "arguments": {arguments}}}</tool_call>'
    alone = {"name": "get_weather", "arguments": arguments}
    for more in ({"content": text}, {"content": None, "function_call": alone}):
        said = {"role": "assistant", "tool_calls": [given], **more}
        converted = convert({"messages": [ASKED, said], "tools": TOOLS})
        assert len(converted.row["messages"][-1]["tool_calls"]) == count


PARTED: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Two.", "signature": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "a", "name": "get_weather", "input": OSLO},
            {"type": "tool_use", "id": "b", "name": "get_time", "input": {}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "noon"}]},
            {"type": "tool_result", "tool_use_id": "a", "content": "rain", "is_error": True},
            {"type": "text", "text": "Well?"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "Rain."}]},
]


def test_calls_and_results_in_parts_are_turns() -> None:
    schemas = [tool["function"] for tool in TOOLS]
    tools = [
        {"name": s["name"], "description": s["description"], "input_schema": s["parameters"]} for s in schemas
    ]
    converted = convert({"messages": PARTED, "tools": tools})
    assert converted.row == {
        "messages": [
            SYSTEM,
            ASKED,
            {
                "role": "assistant",
                "content": "<think>\nTwo.\n</think>\n\nI look.",
                "tool_calls": [call(0, "get_weather", OSLO), call(1, "get_time", {})],
            },
            result(0, "get_weather", "rain"),
            result(1, "get_time", "noon"),
            {"role": "user", "content": "Well?"},
            {"role": "assistant", "content": "Rain."},
        ],
        "tools": TOOLS,
    }
    changes = converted.kind.changes
    assert "parts with a call or a result made turns" in changes
    assert "is_error of a part not kept" in changes
    flawed = convert({"messages": PARTED, "tools": tools}, ConvertContext(SETUP, FLAWED, ()))
    assert all(isinstance(m["content"], str) for m in flawed.row["messages"])
    assert [len(m.get("tool_calls", ())) for m in flawed.row["messages"]] == [0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("role", ["role", "from"])
@pytest.mark.parametrize("content", ["content", "value"])
def test_parts_are_found_under_whichever_key_is_there(column: str, role: str, content: str) -> None:
    turns = [{role: turn["role"], content: turn["content"]} for turn in PARTED]
    expected = convert({"messages": PARTED, "tools": TOOLS}).row
    assert convert({column: turns, "tools": TOOLS}).row == expected


def test_a_call_in_parts_and_beside_them_is_one_call() -> None:
    parts = [{"type": "tool_use", "id": each, "name": "get_weather", "input": OSLO} for each in "ab"]
    given = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": OSLO}}
    said = {"role": "assistant", "content": parts, "tool_calls": [given]}
    converted = convert({"messages": [ASKED, said], "tools": TOOLS})
    calls = [call(number, "get_weather", OSLO) for number in (0, 1)]
    assert converted.row["messages"][-1]["tool_calls"] == calls
    assert "call in a part that repeats a tool call dropped" in converted.kind.changes
    said = {"role": "assistant", "content": parts, "tool_calls": json.dumps([given])}
    assert "tool_calls beside them that are no list" in reason({"messages": [ASKED, said], "tools": TOOLS})


def test_a_part_of_another_role_is_refused() -> None:
    given = {"type": "tool_result", "tool_use_id": "a", "content": "rain"}
    assert "message 1: a part of type 'tool_result' in a turn of the assistant" in reason(
        {"messages": [ASKED, {"role": "assistant", "content": [given]}]}
    )
    called = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    assert "in a turn of the user" in reason({"messages": [{"role": "user", "content": [called, given]}]})


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"a": 1.0, "é": [None, True]}, '{"a":1.0,"é":[null,true]}'),
        ([{"a": 1}, {"b": 2}], '[{"a":1},{"b":2}]'),
        (10**30, str(10**30)),
        ([{"type": "text", "text": "a"}, "b"], "a\nb"),
    ],
)
def test_a_result_in_json_is_text(given: Any, written: str) -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [call(0, "get_weather", OSLO)]}
    turns = [ASKED, calling, {"role": "tool", "content": given}, {"role": "assistant", "content": "So."}]
    converted = convert({"messages": turns, "tools": TOOLS})
    assert converted.row["messages"][3]["content"] == written
    said = "tool result in JSON written as compact text"
    assert (said in converted.kind.changes) == (written != "a\nb")
    if written != "a\nb":  # templates put a result beside text, in the other arm too
        flawed = convert({"messages": turns, "tools": TOOLS}, ConvertContext(SETUP, FLAWED, ()))
        assert flawed.row["messages"][2]["content"] == written
    turns[2] = {"role": "tool", "content": {"a": float("nan")}}
    assert "a tool result that JSON cannot hold" in reason({"messages": turns, "tools": TOOLS})


def test_arguments_that_were_encoded_twice_are_mended() -> None:
    twice = json.dumps(json.dumps(OSLO))
    turns = [
        ASKED,
        {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": twice}}]},
    ]
    converted = convert({"messages": turns, "tools": TOOLS})
    assert converted.row["messages"][-1]["tool_calls"] == [call(0, "get_weather", OSLO)]
    assert "mended: arguments that were encoded twice" in converted.kind.changes
    turns[1] = {
        "role": "assistant",
        "tool_calls": [{"name": "get_weather", "arguments": json.dumps('"Oslo"')}],
    }
    assert "arguments are not an object" in reason({"messages": turns, "tools": TOOLS})


def test_empty_lines_in_a_chat_take_linear_time() -> None:
    lines = "\n" * 100_000
    start = time.process_time()
    assert read_chat(f"USER: a{lines}b")[0].text == f"a{lines}b"
    assert time.process_time() - start < 1


GLAIVE_SYSTEM = "SYSTEM: You are kind with access to the following functions. Use them if required -\n"
GLAIVE = (
    "USER: Weather in Oslo?\n\n\nASSISTANT: <functioncall> "
    + json.dumps({"name": "get_weather", "arguments": "X"}).replace('"X"', f"'{json.dumps(OSLO)}'")
    + ' <|endoftext|>\n\n\nFUNCTION RESPONSE: {"a": "rain"}\n\n\nASSISTANT: Rain.\n\nAnd wind. <|endoftext|>'
    "\n\n\n"
)


def test_glaives_chats_are_turns() -> None:
    tools = "\n".join(json.dumps(tool["function"], indent=4) for tool in TOOLS)
    converted = convert({"system": GLAIVE_SYSTEM + tools, "chat": GLAIVE})
    assert converted.row == {
        "messages": [
            {"role": "system", "content": "You are kind."},
            ASKED,
            {"role": "assistant", "content": "", "tool_calls": [call(0, "get_weather", OSLO)]},
            result(0, "get_weather", '{"a": "rain"}'),
            {"role": "assistant", "content": "Rain.\n\nAnd wind."},
        ],
        "tools": TOOLS,
    }
    assert "mended: an end-of-turn token at the end of an answer" in converted.kind.changes
