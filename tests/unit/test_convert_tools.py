"""Which tools a row has: its own in a column or a text, those given, or Code Mode's."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from stages.convert_data.inference import infer_tools
from stages.convert_data.offers import ConvertContext, ToolsUnclear
from stages.core.chat import ToolCall
from stages.core.definitions import read_definitions, read_tools_file
from stages.core.dialects import DIALECTS, render_calls
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FLAWED
from stages.core.prompts import query_row
from stages.core.tools import EXECUTE_CODE
from tests.tool_rows import CALL, LINES, OTHER, PLAIN, QWEN, SEARCH, SETUP, TOOLS, called, chat, convert

OWN = ConvertContext(SETUP, FAIR, ())


def test_tools_in_a_text_column_are_tools_without_any_fix() -> None:
    """How a column holds them is no flaw of the text: a template takes a list alone."""
    messages = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    row = convert({"messages": messages, "tools": json.dumps(TOOLS)}, ConvertContext(SETUP, FLAWED)).row
    assert row == {"messages": messages, "tools": TOOLS}


# Definitions


@pytest.mark.parametrize(
    "given",
    [
        TOOLS,
        json.dumps(TOOLS),
        [tool["function"] for tool in TOOLS],
        [{"type": "function", **tool["function"]} for tool in TOOLS],
        "\n".join(json.dumps(tool) for tool in TOOLS),
        json.dumps(json.dumps(TOOLS)),
        [json.dumps(tool) for tool in TOOLS],
        [{"type": "function", "function": json.dumps(tool["function"])} for tool in TOOLS],
        str([tool["function"] for tool in TOOLS]),
        [
            {"name": "search", "description": "Find products.", "input_schema": SEARCH.parameters},
            {"name": "get_time", "description": None, "parameters": None},
        ],
        [
            {
                "type": "function",
                "function": {**TOOLS[0]["function"], "parameters": json.dumps(SEARCH.parameters)},
            },
            {"function": {"name": "get_time"}},
        ],
    ],
)
def test_definitions_of_every_shape_are_the_same(given: Any) -> None:
    assert list(read_definitions(given).tools) == TOOLS
    assert read_definitions(given).typed == {"search": {"query", "limit", "zip"}, "get_time": set()}


def test_what_a_definition_says_beyond_the_usual_is_kept() -> None:
    strict = {
        "type": "function",
        "function": {**TOOLS[0]["function"], "strict": True, "returns": {"type": "array"}},
    }
    (kept,) = read_definitions([strict]).tools
    assert kept == strict


def test_parameters_without_a_schema_get_one() -> None:
    (tool,) = read_definitions(
        [
            {
                "name": "f",
                "description": "d",
                "parameters": {
                    "a": {"type": "str", "description": "x"},
                    "b": {"type": "List[int], optional", "description": "y"},
                    "c": {"type": "Optional[Dict[str, Any]]"},
                    "d": {"type": "float", "default": 1.0},
                    "e": {"type": "integer", "required": True},
                },
            }
        ]
    ).tools
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "string", "description": "x"},
            "b": {"type": "array", "items": {"type": "integer"}, "description": "y"},
            "c": {"type": "object"},
            "d": {"type": "number", "default": 1.0},
            "e": {"type": "integer"},
        },
        "required": ["a", "e"],
    }


def test_a_type_in_json_schemas_own_words_stays() -> None:
    parameters: dict[str, Any] = {
        "a": {"type": ["integer", "null"]},
        "b": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "c": {"enum": [1, 2]},
        "d": {"description": "x"},
    }
    (tool,) = read_definitions([{"name": "f", "parameters": parameters}]).tools
    schema = tool["function"]["parameters"]
    assert schema["properties"] == {**parameters, "d": {"description": "x", "type": "string"}}
    assert schema["required"] == ["a", "b", "c", "d"]


def test_what_stands_beside_a_tools_function_is_counted() -> None:
    given = {"type": "function", "function": {"name": "f"}, "strict": True, "index": None, "tags": []}
    assert read_definitions([given]).changes == ("strict beside a tool's function not kept",)


def test_a_tool_that_a_row_defines_twice_is_counted() -> None:
    other = {"name": "search", "parameters": {}}
    read = read_definitions([*TOOLS, other])
    assert len(read.tools) == 3
    assert read.changes == ("a tool of the row defined twice",)


def test_foreign_nulls_leave_a_definition() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "enum": None}, "b": None},
        "required": None,
    }
    read = read_definitions([{"name": "f", "description": None, "parameters": schema, "strict": None}])
    assert read.tools[0]["function"] == {
        "name": "f",
        "description": "",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    }
    assert read.changes == ("foreign nulls dropped from a tool's definition",)


@pytest.mark.parametrize("nothing", [None, "", [], {}, "[]"])
def test_no_definitions(nothing: Any) -> None:
    assert read_definitions(nothing).tools == ()


def test_a_tools_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS), "utf-8-sig")
    assert len(read_tools_file(path)) == len(TOOLS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "tools are not JSON"),
        ("{}", "a tool needs a name"),
        (" ", "defines no tool"),
        ('[{"name": "f", "parameters": 3}]', "the parameters of f must be an object"),
        ('[{"name": "f", "parameters": "{"}]', "the parameters of f are no JSON"),
        (json.dumps([TOOLS[0], TOOLS[0]]), "defines 'search' twice"),
    ],
)
def test_an_unusable_tools_file_is_one_line(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(StageError, match=why) as error:
        read_tools_file(path)
    assert "\n" not in str(error.value)
    with pytest.raises(StageError, match=r"no file .*gone\.json"):
        read_tools_file(tmp_path / "gone.json")


LONG = '{"minimum": -9999999999999999999}'


def nested(levels: int) -> str:
    inner = '{"items":' * levels + "1" + "}" * levels
    return f'{{"name": "f", "parameters": {{"properties": {{"a": {inner}}}}}}}'


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        ('{"name": "f", "parameters": {"properties": {"a": {"maximum": 99999999999999999999}}}}', "64-bit"),
        ('{"name": "f", "description": "\\ud800"}', "JSON cannot hold"),
        ('{"name": "f", "parameters": {"properties": {"a": {"default": Infinity}}}}', "not finite"),
        (nested(300), "levels deep"),
        (nested(700), "levels deep"),
        (json.dumps({"name": "f", "parameters": nested(300)[28:-1]}), "levels deep"),
        (json.dumps({"name": "f", "parameters": nested(150)[28:-1]}), "levels deep"),
        (json.dumps({"function": nested(150)}), "levels deep"),
        (json.dumps({"name": "f", "parameters": f'{{"properties": {{"a": {LONG}}}}}'}), "64-bit"),
    ],
)
def test_definitions_that_no_row_can_hold_are_a_reason(tool: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        convert(chat("So.", f"<tools>{tool}</tools>"), OWN)
    with pytest.raises(ValueError, match=why):
        convert({**chat("So."), "tools": tool}, OWN)


def test_a_type_nested_without_end_is_read_all_the_same() -> None:
    written = {"name": "f", "parameters": {"a": {"type": "list[" * 900 + "int" + "]" * 900}}}
    assert read_definitions([written]).box.schemas["f"]["properties"]["a"]["type"] == "array"


# Which tools a row gets


def test_a_row_keeps_its_own_tools_and_its_own_system_text() -> None:
    answer = render_calls([CALL], "hermes")
    for system, rest in (
        (f"Be brief.\n\n{QWEN.format(LINES)}", "Be brief."),
        (QWEN.format(LINES), SETUP.system),
    ):
        row = convert(chat(answer, system), OWN).row
        assert row["tools"] == TOOLS
        assert row["messages"][0] == {"role": "system", "content": rest}
    row = convert({**chat(answer), "tools": TOOLS}, OWN).row
    asked = query_row("Tea?", SETUP, FAIR, [SEARCH, OTHER])
    assert row["messages"][:2] == asked["messages"], "an evaluation with these tools asks the same"
    assert row["tools"] == asked["tools"]


def test_definitions_in_a_users_turn_are_llamas_or_none() -> None:
    asked = f"What does <tools>{LINES}</tools> mean?"
    raw = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "Tools."}]}
    assert convert(raw, OWN).row["messages"][1]["content"] == asked
    llama = (
        "Given the following functions, please respond with a JSON for a function call with its proper "
        f"arguments.\n\nDo not use variables.\n\n{LINES}\n\nTea?"
    )
    raw["messages"][0]["content"] = llama
    row = convert(raw, OWN).row
    assert (row["messages"][1]["content"], row["tools"]) == ("Tea?", TOOLS)
    assert infer_tools([raw]).defining == 1


EMPTY: tuple[Any, ...] = ([], "[]", "", None)


def test_other_tools_in_the_column_than_in_the_text_are_said() -> None:
    system = f"Be brief.\n\n{QWEN.format(LINES)}"
    left_out = "tools of a turn's text left out for those of the column"
    for tools, said in ((TOOLS, False), ([OTHER.to_json()], True)):
        converted = convert({**chat("So.", system), "tools": tools}, OWN)
        assert (converted.row["tools"], left_out in converted.kind.changes) == (tools, said)


def test_an_empty_list_of_tools_is_none() -> None:
    context = ConvertContext(SETUP, FAIR, (SEARCH,), given=True)
    for empty in EMPTY:
        assert convert({**chat("So."), "tools": empty}, context).kind.changes == ("system turn added",)


def test_own_tools_and_foreign_calls_are_never_taken_for_code_mode() -> None:
    own = convert({**chat("So."), "tools": TOOLS}, PLAIN)
    assert (own.row["tools"], own.kind.has_own_tools) == (TOOLS, True)
    for dialect in ("hermes", "qwen3_coder", "pythonic", "fenced_json"):
        with pytest.raises(ToolsUnclear, match="search is called"):
            convert(chat(render_calls([CALL], dialect, [SEARCH])), PLAIN)
    calls = [{"function": {"name": "search", "arguments": {}}}]
    with pytest.raises(ToolsUnclear, match="search is called"):
        convert({"messages": [{"role": "assistant", "tool_calls": calls}]}, PLAIN)


def test_the_arms_agree_on_whose_tools_they_are() -> None:
    foreign, own = chat(render_calls([CALL], "fenced_json")), {**chat("So."), "tools": TOOLS}
    for fixes in (FAIR, ("json",), ("tools",), FLAWED):
        with pytest.raises(ToolsUnclear):
            convert(foreign, ConvertContext(SETUP, fixes))
        assert bool(convert(own, ConvertContext(SETUP, fixes)).kind.has_own_tools) == bool(fixes)
    for raw in (foreign, own):
        assert convert(raw, ConvertContext(SETUP, FLAWED, (SEARCH,))).row == raw, "the text as it is"


def test_a_system_turn_further_on_stays_where_it_is() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Now be brief."}]
    turns.append({"role": "assistant", "content": "Hello"})
    assert convert({"messages": turns, "tools": TOOLS}, OWN).row["messages"] == turns
    first = [{"role": "system", "content": "Be kind."}, *turns]
    assert convert({"messages": first, "tools": TOOLS}, OWN).row["messages"] == first


def test_given_tools_go_before_a_rows_own() -> None:
    context = ConvertContext(SETUP, FAIR, (SEARCH,), given=True)
    converted = convert({**chat("So."), "tools": [OTHER.to_json()]}, context)
    assert converted.row["tools"] == [SEARCH.to_json()]
    assert "tools of the row replaced by the given ones" in converted.kind.changes


def test_a_converted_code_mode_row_stays_one() -> None:
    once = convert(chat(render_calls([ToolCall("read_file", {"path": "a"})], "hermes")), PLAIN)
    assert once.row["tools"] == [EXECUTE_CODE.to_json()]
    for context in (PLAIN, ConvertContext(SETUP, FAIR, (EXECUTE_CODE,))):
        assert convert(once.row, context).row == once.row


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d != "bare_python"])
def test_calls_of_own_tools_come_out_typed(dialect: str) -> None:
    answer = f"I look.\n\n{render_calls([CALL], dialect, [SEARCH])}"
    converted = convert({**chat(answer), "tools": TOOLS}, OWN)
    assert called(converted) == [CALL]
    assert converted.kind.untyped == ()


def test_xml_values_without_a_type_stay_text_and_are_counted() -> None:
    values = {"zip": "02134", "limit": "30", "page": "2"}
    xml = render_calls([ToolCall("search", values)], "qwen3_coder")
    converted = convert({**chat(xml), "tools": TOOLS}, OWN)
    assert called(converted)[0].arguments == {"zip": "02134", "limit": 30, "page": "2"}
    assert converted.kind.untyped == ("search.page",)
    without = convert(chat(xml), ConvertContext(SETUP, FAIR, ()))
    assert called(without)[0].arguments == values
    assert without.kind.untyped == ("search.zip", "search.limit", "search.page")
    assert without.kind.undefined == ("search",)


def test_what_the_targets_dialect_cannot_say_is_counted() -> None:
    call = ToolCall("search", {"query": "a\n</parameter>\n</function>\n</tool_call>"})
    raw = {**chat(render_calls([call], "hermes")), "tools": TOOLS}
    for dialect, count in (("hermes", 0), ("qwen3_coder", 1), ("pythonic", 0), ("bare_python", 1)):
        context = ConvertContext(SETUP.model_copy(update={"dialect": dialect}), FAIR, ())
        converted = convert(raw, context)
        assert called(converted) == [call]
        assert len(converted.kind.unwritable) == count


def test_a_call_of_a_tool_that_is_not_defined_is_counted() -> None:
    converted = convert({**chat(render_calls([ToolCall("buy", {"n": 1})], "hermes")), "tools": TOOLS}, OWN)
    assert (called(converted), converted.kind.undefined) == ([ToolCall("buy", {"n": 1})], ("buy",))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        (10**30, "JSON cannot hold"),
    ],
)
def test_numbers_that_json_cannot_hold_are_refused(value: float, why: str) -> None:
    calls = [{"function": {"name": "search", "arguments": {"deep": [{"n": value}]}}}]
    with pytest.raises(ValueError, match=why):
        convert({"messages": [{"role": "assistant", "tool_calls": calls}], "tools": TOOLS}, OWN)


def test_foreign_nulls_leave_the_arguments_and_own_ones_stay() -> None:
    calls = [{"function": {"name": "search", "arguments": {"query": "tea", "zip": None, "zone": None}}}]
    converted = convert({"messages": [{"role": "assistant", "tool_calls": calls}], "tools": TOOLS}, OWN)
    assert called(converted)[0].arguments == {"query": "tea", "zip": None}
    assert "foreign nulls dropped from arguments" in converted.kind.changes
    written = render_calls([ToolCall("search", {"zone": None})], "hermes")
    assert called(convert({**chat(written), "tools": TOOLS}, OWN))[0].arguments == {"zone": None}


def test_a_context_travels_to_another_process() -> None:
    context = ConvertContext(SETUP, FAIR, (SEARCH,), given=True, untyped=frozenset({"search.page"}))
    row = chat(render_calls([CALL], "hermes"))
    first = convert(row, context)
    copy = pickle.loads(pickle.dumps(context))
    assert copy == context
    assert convert(row, copy).line == first.line
