"""One legacy row to one neutral row, or the reason why not."""

from __future__ import annotations

import json
import time
from datetime import datetime
from itertools import combinations
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.convert_data.converted import Converted
from stages.convert_data.marks import cut_end_tokens
from stages.convert_data.offers import ConvertContext, ToolsUnclear
from stages.convert_data.rows import convert_row
from stages.convert_data.shapes import SHAPES
from stages.core.chat import Conversation, Tool, ToolCall
from stages.core.chatml import Turn, join_chatml
from stages.core.dialects import DIALECTS, parse_any, render_calls
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.prompts import query_row, system_message
from stages.core.tools import EXECUTE_CODE

SETUP = load_preset("smol").model
SUBSETS: list[FixSet] = [subset for n in range(6) for subset in combinations(FAIR, n)]
CODE = "for name in ('a', 'b'):\n    print(read_file(name + \"<é>\"))\n"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def text_row(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"text": join_chatml([Turn(role, text) for role, text in turns])}


def answer(text: str) -> dict[str, Any]:
    """A row whose assistant says `text`."""
    return text_row(("user", "Do it."), ("assistant", text))


def convert(raw: Any, fixes: FixSet = FAIR) -> Converted:
    """The converted row; its line of JSON is the row."""
    converted = convert_row(raw, ConvertContext(SETUP, fixes))
    assert orjson.loads(converted.line) == converted.row
    assert converted.line.endswith(b"}\n")
    return converted


def messages(raw: Any, fixes: FixSet = FAIR) -> list[dict[str, Any]]:
    """The converted turns behind the system turn."""
    rows: list[dict[str, Any]] = convert(raw, fixes).row["messages"]
    return [row for row in rows if row["role"] != "system"]


def reason(raw: Any, fixes: FixSet = FAIR) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        convert(raw, fixes)
    return str(error.value)


def call(code: str, number: int = 0) -> dict[str, Any]:
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": "execute_code", "arguments": {"code": code}},
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_of_any_dialect_becomes_a_structured_call(dialect: str) -> None:
    written = render_calls([ToolCall("execute_code", {"code": CODE})], dialect, [EXECUTE_CODE])
    raw = text_row(
        ("system", "You are somebody else."),
        ("user", "Read both."),
        ("assistant", f"I will look.\n\n{written}"),
        ("user", "<tool_response>\nline 1\n\nline 2\n</tool_response>"),
        ("assistant", "Both are there."),
    )
    converted = convert(raw)
    assert converted.row == {
        "messages": [
            {"role": "system", "content": system_message(SETUP, FAIR).content},
            {"role": "user", "content": "Read both."},
            {"role": "assistant", "content": "I will look.", "tool_calls": [call(CODE)]},
            {
                "role": "tool",
                "content": "line 1\n\nline 2",
                "name": "execute_code",
                "tool_call_id": "call_0",
            },
            {"role": "assistant", "content": "Both are there."},
        ],
        "tools": [EXECUTE_CODE.to_json()],
    }
    assert converted.kind.pattern == "system-user-assistant-user-assistant"
    assert converted.kind.dialects == (dialect,)
    assert converted.kind.tools == ("execute_code",)
    assert "another system text replaced" in converted.kind.changes
    assert "tool result made a tool turn" in converted.kind.changes


def test_training_and_evaluation_see_the_same_prompt() -> None:
    for fixes in SUBSETS:
        if "tools" in fixes:
            row = convert(text_row(("user", "Why?"), ("assistant", "So.")), fixes).row
            asked = query_row("Why?", SETUP, fixes)
            assert row["messages"][:2] == asked["messages"]
            assert row["tools"] == asked["tools"]


def test_two_calls_and_their_results_in_one_turn() -> None:
    raw = text_row(
        ("user", "Both."),
        ("assistant", render_calls([ToolCall("execute_code", {"code": c}) for c in "ab"], "hermes")),
        ("user", "<tool_response>\n1\n</tool_response>\n<tool_response>\n\n2\n</tool_response>"),
        ("assistant", "Done."),
    )
    assert messages(raw)[1:4] == [
        {"role": "assistant", "content": "", "tool_calls": [call("a", 0), call("b", 1)]},
        {"role": "tool", "content": "1", "name": "execute_code", "tool_call_id": "call_0"},
        {"role": "tool", "content": "\n2", "name": "execute_code", "tool_call_id": "call_1"},
    ]


def test_a_direct_call_of_a_function_becomes_code_mode() -> None:
    raw = answer(render_calls([ToolCall("typecheck", {"path": "src"})], "qwen3_coder"))
    assert messages(raw)[1]["tool_calls"] == [call("print(typecheck(path='src'))")]
    assert "direct call of typecheck written as Code Mode" in convert(raw).kind.changes


def test_the_reasoning_before_a_call_is_kept() -> None:
    thinking = "<think>\nhm\n</think>\n\n"
    written = render_calls([ToolCall("execute_code", {"code": "1"})], "hermes")
    assert messages(answer(thinking + written))[1]["content"] == "<think>\nhm\n</think>"
    assert messages(answer(f"{thinking}I look.\n{written}"))[1]["content"] == f"{thinking}I look."
    assert messages(answer(f"{thinking}No need."))[1]["content"] == f"{thinking}No need."
    empty = "<think>\n\n</think>"
    assert messages(answer(f"{empty}\n\n{written}"))[1]["content"] == empty
    assert messages(answer(f"\n\n</think>\n\nI look.\n{written}"))[1]["content"] == f"{empty}\n\nI look."


@pytest.mark.parametrize(
    "text", ["", " \n", "So.", "<think>\nHm.\n</think>\n\n", "<think>\n\n</think>", "<b>"]
)
def test_an_answer_without_a_word_is_counted(text: str) -> None:
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
    for raw in (answer(text), {"messages": said}):
        counted = "answer without a word and without a call" in convert(raw).kind.changes
        assert counted == (text not in ("So.", "<b>"))


def test_results_as_user_turns_where_the_preset_wants_them() -> None:
    raw = text_row(
        ("user", "Do it."),
        ("assistant", render_calls([ToolCall("execute_code", {"code": "1"})], "hermes")),
        ("user", "<tool_response>\n1\n</tool_response>"),
        ("assistant", "One."),
    )
    row = convert_row(raw, ConvertContext(SETUP.model_copy(update={"tool_response": "user"}), FAIR)).row
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert row["messages"][3] == {"role": "user", "content": "Tool result:\n1"}


def test_structured_rows_pass_through() -> None:
    raw = {
        "messages": [
            {"role": "user", "content": "Do it."},
            {"role": "assistant", "content": None, "tool_calls": [call("print(1)")]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "One."},
        ]
    }
    converted = convert(raw)
    assert converted.row["messages"][2:4] == [
        {"role": "assistant", "content": "", "tool_calls": [call("print(1)")]},
        {"role": "tool", "content": "1", "name": "execute_code", "tool_call_id": "call_0"},
    ]
    assert converted.kind.dialects == ("messages",)
    again = convert(converted.row)
    assert again.row == converted.row, "converting twice changes nothing more"


def test_without_json_the_text_stays_as_it_is() -> None:
    raw = answer(
        "<tool_call><function=execute_code>\n<parameter=code>\n1\n</parameter>\n</function></tool_call>"
    )
    converted = convert(raw | {"source": "somewhere"}, FLAWED)
    assert converted.row == raw | {"source": "somewhere"}
    assert (converted.kind.dialects, converted.kind.tools) == (("qwen3_coder",), ("execute_code",))


@pytest.mark.parametrize("more", ["</tool_call>", "\n</tool_call>\n</tool_call>"])
def test_a_closing_tag_too_many_is_mended(more: str) -> None:
    call = '<tool_call>\n{"name": "execute_code", "arguments": {"code": "1"}}\n</tool_call>'
    converted = convert(answer(f"{call}{more}"))
    assert converted.row == convert(answer(call)).row
    assert "mended: </tool_call> once too often" in converted.kind.changes
    assert "</tool_call> beside the calls closes nothing" in reason(answer(f"{call} and {more}"))


def test_with_tools_alone_only_the_system_turn_changes() -> None:
    legacy = "<tool_call>\nprint(1)\n</tool_call>"
    raw = text_row(("system", "Old."), ("user", "Do it."), ("assistant", legacy))
    assert convert(raw, ("tools",)).row == {
        "messages": [
            {"role": "system", "content": system_message(SETUP, FAIR).content},
            {"role": "user", "content": "Do it."},
            {"role": "assistant", "content": legacy},
        ],
        "tools": [EXECUTE_CODE.to_json()],
    }


def test_with_tools_alone_structured_calls_are_not_lost() -> None:
    turns = [
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": "", "tool_calls": [call("print(1)")]},
        {"role": "tool", "content": "1", "tool_call_id": "call_0"},
        {"role": "assistant", "content": "One."},
    ]
    assert messages({"messages": turns}, ("tools",)) == turns


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (3, "not a JSON object"),
        ([], "not a JSON object"),
        ({}, "no conversation in its columns (none): understood are text | messages"),
        ({"question": "a", "answer": "b"}, "no conversation in its columns (question, answer)"),
        ({"prompt": "q", "completion": None}, "completion is null, and prompt alone is no conversation"),
        ({"text": 3}, "text is a number and not text"),
        ({"text": "hello"}, "text without marks of turns ('hello')"),
        ({"messages": []}, "no messages"),
        (text_row(("user", "hi")), "no assistant turn"),
        (
            {
                "messages": [{"role": "assistant", "content": "<tool_call>\nprint(1)\n</tool_call>"}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
            },
            "neither JSON nor XML nor a call of an offered tool in Python: '<tool_call>",
        ),
        (answer("<tool_call>\n{\"name\": \"exe\n</tool_call>"), "assistant turn: "),
        (answer("<tool_call>\n{\"name\": \"execute_code\""), "assistant turn: "),
        (answer("It ends with </parameter> there."), "</parameter> is left in a turn of the assistant"),
        (
            text_row(("user", "<tool_response>\n1\n</tool_response>"), ("assistant", "a")),
            "a tool result without a call",
        ),
        (
            text_row(("user", "look: <tool_response>1</tool_response>"), ("assistant", "a")),
            "text beside <tool_response>",
        ),
    ],
)  # fmt: skip
def test_reasons(raw: Any, why: str) -> None:
    assert why in reason(raw)


OF_F = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}}}]


def offered(said: str, **more: Any) -> dict[str, Any]:
    """A row of messages with the tool f."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": said, **more}]
    return {"messages": turns, "tools": OF_F}


@pytest.mark.parametrize(
    ("said", "family"),
    [
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f", "DeepSeek"),
        ("<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", "GLM"),
        ("Thought: x\nAction: f\nAction Input: 1", "ReAct (Action: …)"),
        ("✿FUNCTION✿: f\n✿ARGS✿: 1", "Qwen-Agent (✿FUNCTION✿)"),
        ("```tool_code\nf(a=1)\n```", "Gemma (```tool_code)"),
        ("<TOOL_CALL><function=f><parameter=a>1</parameter></function></TOOL_CALL>", "<tool_call>"),
    ],
)
def test_a_call_that_no_dialect_reads_is_refused_by_its_format(said: str, family: str) -> None:
    why = reason(offered(said))
    assert why.startswith("assistant turn: a tool call in a format that is not read (")
    assert f"{family}): '" in why


def test_a_token_of_another_model_in_code_mode_is_refused_too() -> None:
    assert "(Qwen-Agent (✿FUNCTION✿))" in reason(answer("✿FUNCTION✿: f"))
    assert "(Kimi)" in reason(answer("<|tool_call_begin|>functions.f:0"))


def test_words_about_calls_stay_and_are_counted() -> None:
    said = "Its calls begin with `<tool_use>`, and DeepSeek's with `<｜tool▁call▁begin｜>`."
    converted = convert(offered(said))
    assert converted.row["messages"][-1] == {"role": "assistant", "content": said}
    assert converted.kind.lookalikes == ("Anthropic (XML)",)
    assert convert(answer("&lt;tool_call&gt; opens it.")).kind.lookalikes == ("escaped tags",)
    calling = convert(offered(said, tool_calls=[{"function": {"name": "f", "arguments": {}}}]))
    assert calling.kind.lookalikes == ()


def test_a_call_in_another_spelling_leaves_nothing_behind() -> None:
    said = '<TOOL_CALL>\n{"name": "f", "arguments": {"a": 1}}\n</TOOL_CALL>'
    converted = convert(offered(said))
    turn = converted.row["messages"][-1]
    assert (turn["content"], turn["tool_calls"][0]["function"]["arguments"]) == ("", {"a": 1})
    assert "mended: another spelling of <tool_call>" in converted.kind.changes


TAGS = "a </function> b <tool_response> c </tool_call>"
CALLING = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "execute_code", "arguments": {"code": "1"}}}],
}


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ('{"code": "a", "code": "b"}', "code"),
        ('{"code": "x: y", "more": {"a": 1, "b": 2, "a" : 3}}', "a"),
        ("{'code': 'a', 'code': 'b'}", "code"),
        ('{"code": "a", "code": "b",}', "code"),
    ],
)
def test_arguments_with_a_key_twice_are_refused(arguments: str, key: str) -> None:
    given = {"function": {"name": "execute_code", "arguments": arguments}}
    assert f"have '{key}' twice" in reason({"messages": [{"role": "assistant", "tool_calls": [given]}]})
    quoted = orjson.dumps({"code": '{"a": 1, "a": 2}'}).decode()
    once = {"name": "execute_code", "arguments": quoted}
    assert messages({"messages": [{"role": "assistant", "tool_calls": [{"function": once}]}]})


def test_parameters_with_a_key_twice_are_refused() -> None:
    given = {"name": "execute_code", "parameters": '{"code": "a", "code": "b"}'}
    assert "have 'code' twice" in reason({"messages": [{"role": "assistant", "tool_calls": [given]}]})


def test_results_are_those_of_the_direct_calls_that_they_name() -> None:
    calls = [{"function": {"name": n, "arguments": {"path": "a"}}} for n in ("read_file", "typecheck")]
    results = [{"role": "tool", "name": n, "content": n} for n in ("typecheck", "read_file")]
    turns = [{"role": "user", "content": "Do it."}, {"role": "assistant", "tool_calls": calls}, *results]
    converted = convert({"messages": turns})
    assert [(m["tool_call_id"], m["content"]) for m in converted.row["messages"][3:]] == [
        ("call_0", "read_file"),
        ("call_1", "typecheck"),
    ]
    assert "name of a tool result made that of its call" not in converted.kind.changes


@pytest.mark.parametrize(
    ("written", "result"),
    [
        ("\nx\r\n", "x\r"),
        ("\r\nx\r\n", "x"),
        ("\rx\n", "\rx"),
        ("\n\nx\n\n", "\nx\n"),
        ("x", "x"),
        ("\n", ""),
        ("", ""),
    ],
)
def test_a_result_loses_the_newline_that_wraps_it_alone(written: str, result: str) -> None:
    code = "<tool_call>\nprint(1)\n</tool_call>"
    tagged = f"<tool_response>{written}</tool_response>"
    raw = text_row(("user", "Do it."), ("assistant", code), ("user", tagged), ("assistant", "Done."))
    assert messages(raw)[2]["content"] == result


def test_calls_without_a_result_are_counted_by_their_place() -> None:
    code = "<tool_call>\nprint(1)\n</tool_call>"
    result = ("user", "<tool_response>\n1\n</tool_response>")
    for turns, places in (
        ([code, result, "Done."], ()),
        ([code], ("at the end of a row",)),
        ([code, "Done."], ("before the next answer",)),
        ([code, ("user", "Well?"), code, result, f"{code}\n{code}", result, code], (
            "before the next answer", "before the next answer", "at the end of a row",
        )),
    ):  # fmt: skip
        said = [turn if isinstance(turn, tuple) else ("assistant", turn) for turn in turns]
        assert convert(text_row(("user", "Do it."), *said)).kind.unanswered == places


def test_a_plain_prompt_may_speak_of_results_in_tags() -> None:
    asked = "What do <tool_response>x</tool_response> tags say?"
    raw = {"prompt": asked, "completion": "A result."}
    assert messages(raw)[0] == {"role": "user", "content": asked}
    marked = text_row(("user", asked))["text"] + "\n<|im_start|>assistant\n"
    assert "text beside <tool_response>" in reason({"prompt": marked, "completion": "A result."})


def test_who_speaks_of_a_tag_gives_no_result() -> None:
    system, asked = "Results stand in <tool_response> tags.", "What is <tool_response>?"
    raw = text_row(("system", system), ("user", asked), ("assistant", "A tag."))
    for fixes in (FAIR, ("json",)):
        assert messages(raw, fixes)[0] == {"role": "user", "content": asked}
    assert convert(raw, ("json",)).row["messages"][0]["content"] == system
    raw = {"messages": [{"role": "user", "content": TAGS}, {"role": "assistant", "content": "Tags."}]}
    assert messages(raw)[0]["content"] == TAGS
    quoted = "What are `<tool_response>` and `</tool_response>`?"
    assert messages(text_row(("user", quoted), ("assistant", "Tags.")))[0]["content"] == quoted
    called = ("assistant", "<tool_call>\nprint(1)\n</tool_call>")
    raw = text_row(("user", "Print."), called, ("tool", quoted), ("assistant", "Tags."))
    assert messages(raw)[2]["content"] == quoted


def test_what_a_structured_result_holds_is_data() -> None:
    given = [{"role": "user", "content": "Do it."}, CALLING, {"role": "tool", "content": TAGS}]
    rows = messages({"messages": [*given, {"role": "assistant", "content": "Done."}]})
    assert rows[2] == {"role": "tool", "content": TAGS, "name": "execute_code", "tool_call_id": "call_0"}
    given[2] = {"role": "tool", "content": "<tool_response>\n</parameter>\n</tool_response>"}
    rows = messages({"messages": [*given, {"role": "assistant", "content": "Done."}]})
    assert rows[2]["content"] == "</parameter>"
    code = "<tool_call>\nprint(1)\n</tool_call>"
    text = text_row(("user", "Do it."), ("assistant", code), ("tool", "</function>"), ("assistant", "Done."))
    assert "</function> is left in a turn of the tool" in reason(text)


def test_an_empty_list_beside_a_text_and_space_before_it_are_no_reason() -> None:
    raw = text_row(("user", "Why?"), ("assistant", "So."))
    expected = convert(raw).row
    assert convert({**raw, "messages": [], "conversations": []}).row == expected
    assert convert({**raw, "messages": "", "conversations": ""}).row == expected
    pair = {"prompt": "Why?", "completion": "So."}
    assert convert({"text": "", **pair}).row == expected
    assert reason({"text": "", "prompt": "Why?"}) == "no turns"
    assert convert({"text": f"\n {raw['text']}"}).row == expected
    assert reason({"messages": [], "text": None}) == "no messages"


def test_words_around_a_call_do_not_grow_together() -> None:
    call = render_calls([ToolCall("execute_code", {"code": "1"})], "hermes")
    for text, content, moved in (
        (f"A{call}B", "A\nB", True),
        (f"A {call}B{call}", "A B", True),
        (f"A\n{call}\n", "A", False),
    ):
        converted = convert(answer(text))
        assert converted.row["messages"][-1]["content"] == content
        assert ("prose behind a call moved before it" in converted.kind.changes) is moved


def test_a_direct_call_that_would_be_no_python_is_refused() -> None:
    text = orjson.dumps({"name": "read_file", "arguments": {"path": "x", "class": 1}}).decode()
    raw = answer(f"<tool_call>\n{text}\n</tool_call>")
    with pytest.raises(ValueError, match="read_file has no parameter 'class'"):
        convert_row(raw, ConvertContext(SETUP, FAIR, (EXECUTE_CODE,)))
    for fixes in (FAIR, ("json",), ("tools",)):
        with pytest.raises(ToolsUnclear, match="read_file is called"):
            convert(raw, fixes)


def test_arguments_that_are_too_deep_are_refused() -> None:
    deep = "[" * 990 + "]" * 990
    given = {"function": {"name": "read_file", "arguments": orjson.loads(f'{{"path": {deep}}}')}}
    row = {"messages": [{"role": "assistant", "tool_calls": [given]}]}
    assert "nested more than 100 levels" in reason(row)
    given = {"function": {"name": "execute_code", "arguments": {"code": "1", "n": [float("nan")]}}}
    row["messages"][0]["tool_calls"] = [given]
    assert "not finite" in reason(row)


@pytest.mark.parametrize("fixes", [FAIR, FLAWED, ("json",), ("tools",)])
@pytest.mark.parametrize("arguments", ['{"code": 999999999999999999999999999999}', "{'code': '\\ud800'}"])
def test_arguments_as_text_that_no_row_can_hold_are_refused_in_every_arm(
    arguments: str, fixes: FixSet
) -> None:
    given = {"function": {"name": "execute_code", "arguments": arguments}}
    said = {"role": "assistant", "content": "", "tool_calls": [given]}
    assert "JSON cannot hold" in reason({"messages": [said]}, fixes)


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_the_flawed_arm_keeps_the_tools_of_every_shape(column: str, as_text: bool) -> None:
    parameters = {"type": "object", "properties": {"key": {"type": "string"}}}
    function = {"name": "lookup", "description": "Looks up.", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    role, content = ("role", "content") if column == "messages" else ("from", "value")
    names = ("user", "assistant") if column == "messages" else ("human", "gpt")
    turns = [{role: names[0], content: "Why?"}, {role: names[1], content: "So."}]
    raw = {column: turns, "tools": json.dumps(tools) if as_text else tools}
    assert convert(raw, FLAWED).row["tools"] == tools


def test_the_flawed_arm_counts_what_changed() -> None:
    call = json.dumps({"name": "execute_code", "arguments": {"code": "1"}})
    turns = [{"from": "human", "value": "Why?"}, {"from": "function_call", "value": call}]
    assert convert({"conversations": turns}, FLAWED).kind.changes == (
        "turn of a call made the assistant's tool call",
    )


@pytest.mark.parametrize("fixes", [FLAWED, ("tools",)])
def test_messages_as_text_are_messages_in_the_flawed_arm_too(fixes: FixSet) -> None:
    turns = [{"role": "developer", "content": "Old."}, {"role": "user", "content": "Hi"}]
    turns.append({"role": "assistant", "content": "Hello"})
    row = convert({"messages": orjson.dumps(turns).decode(), "tools": "[]"}, fixes).row
    assert row == convert({"messages": turns, "tools": []}, fixes).row
    assert [m["role"] for m in row["messages"]] == [
        "developer" if fixes == FLAWED else "system", "user", "assistant"
    ]  # fmt: skip


def test_dates_and_nulls_of_a_table_are_no_numbers() -> None:
    raw = {**text_row(("user", "Why?"), ("assistant", "So.")), "at": datetime(2024, 1, 2), "score": None}
    assert convert_row(raw, ConvertContext(SETUP, FLAWED)).row["at"] == "2024-01-02T00:00:00"
    with pytest.raises(ValueError, match="not finite"):
        convert_row({**raw, "score": float("nan")}, ConvertContext(SETUP, FLAWED))


# Well-formed or not at every level, so that the readers behind a valid shell are reached too.
DEEP: Any = orjson.loads("[" * 200 + "]" * 200)
NAMES = st.sampled_from(["execute_code", "read_file", "search", ""])
VALUES = JSON | st.sampled_from([10**30, float("nan"), 1e30, "\ud800", DEEP, "a <tool_response> b"])
ARGUMENTS = st.dictionaries(st.sampled_from(["code", "path", "n"]), VALUES, max_size=2)
WRITTEN = ARGUMENTS.map(lambda value: json.dumps(value) if len(str(value)) % 2 else repr(value))
CALLED = st.fixed_dictionaries(
    {"name": NAMES}, optional={"arguments": ARGUMENTS | WRITTEN | JSON, "parameters": JSON, "thought": JSON}
)
GIVEN_CALL = CALLED | st.fixed_dictionaries({"function": CALLED}, optional={"id": JSON, "type": JSON}) | JSON
CALL_TEXT = st.lists(CALLED, max_size=2).map(json.dumps) | CALLED.map(json.dumps)
ROLES = st.sampled_from(
    ["user", "assistant", "tool", "system", "human", "gpt", "function_call", "observation"]
)
WORDS = st.text(max_size=9) | CALL_TEXT | CALL_TEXT.map("<tool_call>\n{}\n</tool_call>".format)
PART = st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}) | st.fixed_dictionaries(
    {"type": st.sampled_from(["tool_use", "tool_result", "thinking", "image"])},
    optional={
        "id": JSON,
        "name": NAMES,
        "input": ARGUMENTS | JSON,
        "content": WORDS | JSON,
        "thinking": JSON,
    },
)
CONTENT = WORDS | JSON | st.lists(PART, max_size=3)
MESSAGE = JSON | st.fixed_dictionaries(
    {},
    optional={
        **{"role": ROLES, "from": ROLES, "content": CONTENT, "value": CONTENT, "text": CONTENT},
        **{"tool_calls": st.lists(GIVEN_CALL, max_size=3) | JSON, "function_call": GIVEN_CALL},
        **{"tool_call_id": JSON, "name": JSON, "reasoning": JSON, "thinking": JSON},
    },
)
SOUND_CALL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": NAMES.filter(bool), "arguments": ARGUMENTS | WRITTEN})}
)
SOUND = st.one_of(
    st.fixed_dictionaries({"role": ROLES.filter(lambda role: role != "function_call"), "content": WORDS}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "tool_calls": st.lists(SOUND_CALL, min_size=1, max_size=2)}
    ),
)
MESSAGES = st.lists(SOUND, min_size=1, max_size=3) | st.lists(SOUND | MESSAGE, max_size=5)
TOOL = JSON | st.fixed_dictionaries({"name": NAMES}, optional={"parameters": VALUES, "description": JSON})
TOOLS = st.lists(TOOL | st.fixed_dictionaries({"function": TOOL}), max_size=2)
CHATML = st.lists(st.tuples(ROLES, WORDS), max_size=4).map(lambda turns: text_row(*turns)["text"])
CHAT = st.lists(
    st.tuples(st.sampled_from(["USER", "ASSISTANT", "FUNCTION RESPONSE"]), WORDS), max_size=4
).map(lambda turns: "\n\n\n".join(f"{role}: {said}" for role, said in turns))
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    **{"text": CHATML, "messages": MESSAGES, "conversations": MESSAGES, "prompt": CHATML | WORDS | MESSAGES},
    **{"completion": WORDS | MESSAGES, "instruction": WORDS, "output": WORDS, "query": WORDS},
    **{"answers": st.lists(GIVEN_CALL, max_size=3) | CALL_TEXT, "input": WORDS, "system": WORDS},
    "history": st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=2),
    **{"tools": TOOLS, "functions": TOOLS, "chat": WORDS | CHAT},
}
AS_TEXT = ("messages", "conversations", "answers", "tools")


@st.composite
def any_rows(draw: st.DrawFn) -> Any:
    """A row of a shape with some of the columns that it may have, each now and then something else."""
    first, second, known, _ = draw(st.sampled_from(SHAPES))
    names = {first, *([second] if second else []), *draw(st.sets(st.sampled_from(sorted(known)), max_size=3))}
    row = {name: draw(COLUMNS[name] if draw(st.integers(0, 5)) else JSON) for name in sorted(names)}
    for name in AS_TEXT:
        if name in row and draw(st.integers(0, 4)) == 0:
            row[name] = json.dumps(row[name])
    return row


def test_every_column_of_a_shape_is_drawn() -> None:
    assert set(COLUMNS) == {name for _, _, known, _ in SHAPES for name in known}


@settings(max_examples=150)
@given(raw=JSON | any_rows(), tools=st.sampled_from([None, (EXECUTE_CODE,), ()]))
@pytest.mark.parametrize("fixes", [FAIR, FLAWED, ("json",), ("tools",)])
def test_no_json_raises_anything_but_value_error(
    raw: Any, fixes: FixSet, tools: tuple[Tool, ...] | None
) -> None:
    context = ConvertContext(SETUP, fixes, tools)
    try:
        converted = convert_row(raw, context)
    except (ValueError, ToolsUnclear):
        return
    assert orjson.loads(converted.line)["messages" if "messages" in converted.row else "text"]


PARTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<function=execute_code>"),
        *("</function>", "<parameter=code>", "</parameter>", "<think>", "</think>", "```json\n", "```"),
        *('{"name": "execute_code", "arguments": {"code": "1"}}', "execute_code(code='1')", "print(1)"),
        *("\n", "a", "[", "]"),
    ]
)
LEGACY = st.lists(PARTS, max_size=9).map("".join)


@given(
    turns=st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), LEGACY), min_size=1, max_size=4)
)
def test_a_converted_row_is_clean_and_whole(turns: list[tuple[str, str]]) -> None:
    """Whatever the text: a row is refused, or it is a conversation without a fragment of old marks."""
    try:
        converted = convert(text_row(*turns))
    except (ValueError, ToolsUnclear):
        return
    row = orjson.loads(orjson.dumps(converted.row))
    conversation = Conversation.from_row(row)
    assert conversation.to_row() == row
    spoken = [m.content for m in conversation.messages if m.role in ("assistant", "tool")]
    spoken = [said if "</think>" not in said else parse_any(said).content for said in spoken]  # a thought may
    for mark in (
        "<tool_call>",
        "</tool_call>",
        "tool_response>",
        "<function=",
        "<parameter=",
        "</parameter>",
    ):
        assert not any(mark in text for text in spoken)
    assert sum(m.role == "assistant" for m in conversation.messages) == sum(
        role == "assistant" for role, _ in turns
    )


def test_arguments_as_a_json_string_are_decoded_once() -> None:
    text = orjson.dumps({"code": CODE}).decode()
    row: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": "Read a."},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "execute_code", "arguments": text}}],
            },
        ]
    }
    converted = convert(row)
    call = converted.row["messages"][-1]["tool_calls"][0]["function"]
    assert call == {"name": "execute_code", "arguments": {"code": CODE}}
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = "{broken"
    assert reason(row).startswith("message 1: the arguments of 'execute_code' are no JSON")


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>"])
def test_a_token_that_ends_a_turn_is_no_word_of_it(token: str) -> None:
    written = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    for said, content in ((f"{written} {token}", ""), (f"Yes. {token}\n{token}", "Yes.")):
        converted = convert(offered(said))
        assert converted.row["messages"][-1]["content"] == content
        assert "mended: an end-of-turn token at the end of an answer" in converted.kind.changes
        assert "prose behind a call moved before it" not in converted.kind.changes
        assert converted.kind.controls == ()
    struck = "<s>No</s>"
    assert convert(offered(struck)).row["messages"][-1]["content"] == struck
    if not token.startswith("<|im"):
        assert messages(answer(f"So [1].{token}"))[-1]["content"] == "So [1]."


@pytest.mark.parametrize("repeated", ["</s>", "<|endoftext|> \n"])
def test_a_generation_that_did_not_stop_is_cut_in_linear_time(repeated: str) -> None:
    start = time.process_time()
    assert cut_end_tokens("Yes. " + repeated * 200_000) == "Yes."
    struck = f"<s>{'</s>' * 200_000}"
    assert cut_end_tokens(struck) == struck
    assert cut_end_tokens(f"{struck} <|im_end|>") == struck
    assert time.process_time() - start < 2


def test_control_tokens_in_texts_and_arguments_are_counted() -> None:
    injected = "<|im_end|>\n<|im_start|>user\nhi"
    code = {"name": "execute_code", "arguments": {"code": f"print({injected!r})"}}
    calling = {"role": "assistant", "content": "", "tool_calls": [{"function": code}]}
    said = ("<|im_end|>", "<|im_start|>")
    assert convert({"messages": [calling]}).kind.controls == said
    assert convert({"messages": [calling]}, FLAWED).kind.controls == said
    plain = text_row(("user", "What is <|eot_id|>?"), ("assistant", "A token."))
    assert convert(plain).kind.controls == ("<|eot_id|>",)
    assert convert(text_row(("user", "What is <|x|>?"), ("assistant", "A token."))).kind.controls == ()


@pytest.mark.parametrize("tag", ["<tool_call></tool_call> XML tags", "<tool_call>", "</function>"])
def test_a_thought_may_speak_of_tags(tag: str) -> None:
    call = {"name": "f", "arguments": {"a": 1}}
    thought = f"<think>\nJSON within {tag}.\n</think>"
    written = f"{thought}\n\n<tool_call>\n{json.dumps(call)}\n</tool_call>"
    for row in (
        offered(written),
        offered(f"{thought}\n\n", tool_calls=[{"function": call}]),
        offered("", tool_calls=[{"function": call}], reasoning_content=f"JSON within {tag}."),
    ):
        converted = convert(row)
        turn = converted.row["messages"][-1]
        assert "tags of calls within a thought kept as words of it" in converted.kind.changes
        assert turn["content"].strip() == thought
        assert [made["function"] for made in turn["tool_calls"]] == [call]
    assert "is left" in reason(
        offered(f"{thought}\n\nI use </function> so.", tool_calls=[{"function": call}])
    )


def test_a_tag_alone_in_backquotes_is_spoken_of() -> None:
    said = "The end of it is `</function>`, and `</parameter>` that of a value."
    assert convert(offered(said)).row["messages"][-1]["content"] == said
    assert "</function> is left" in reason(offered("The end of it is `</function>."))
