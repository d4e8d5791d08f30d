"""Each dialect's reading and writing, one behaviour at a time. The choices are those of docs/DIALECTS.md."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import DIALECTS, Reply, Toolbox, parse_any, parse_reply, render_calls
from stages.core.dialects.schema import find_types
from stages.core.errors import StageError
from stages.core.tools import EXECUTE_CODE

WEATHER = ToolCall("get_weather", {"city": "Oslo", "days": 3})
WEATHER_TOOL = Tool(
    "get_weather",
    "",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
)
CODE = 'for name in ["a", "b"]:\n    print(f"<{name}>")\n\n    # done'


def xml(value: str, key: str = "v") -> str:
    return f"<tool_call>\n<function=f>\n<parameter={key}>{value}</parameter>\n</function>\n</tool_call>"


def read_value(value: str, schema: dict[str, Any]) -> tuple[Any, list[str]]:
    """What an XML parameter's text becomes under a schema, and the problems."""
    tool = Tool("f", "", {"type": "object", "properties": {"v": schema}})
    reply = parse_reply(xml(value), "qwen3_coder", [tool])
    return reply.calls[0].arguments["v"], reply.problems


def hermes(**call: Any) -> str:
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


# What all dialects share


def test_an_unknown_dialect_is_named_with_the_known_ones() -> None:
    with pytest.raises(StageError, match="unknown dialect 'chatml': use one of hermes, qwen3_coder, bare_p"):
        parse_reply("", "chatml")
    with pytest.raises(StageError, match="unknown dialect"):
        render_calls([], "xml")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_prose_alone_is_content_as_it_is(dialect: str) -> None:
    for text in (
        "",
        "  \n",
        "Use a dict.\n\n<div>x</div>\n",
        "a < b",
        "```python\nx = [f(y) for y in z]\n```",
    ):
        assert parse_reply(text, dialect) == Reply(text, [], None, [])
        assert parse_any(text) == Reply(text, [], None, [])


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d != "bare_python"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_calls_with_prose_before_are_read_and_named(dialect: str, newline: str) -> None:
    other = ToolCall("get_weather", {"city": 'São "Paulo" <b>\U0001f980</b>', "days": -1})
    text = "I will look." + "\n\n" + render_calls([WEATHER, other], dialect, [WEATHER_TOOL])
    text = text.replace("\n", newline)
    reply = parse_reply(text, dialect, [WEATHER_TOOL])
    assert (reply.calls, reply.dialect, reply.problems) == ([WEATHER, other], dialect, [])
    assert reply.content.rstrip() == "I will look."
    assert parse_any(text, [WEATHER_TOOL]) == reply


@pytest.mark.parametrize("dialect", ["hermes", "qwen3_coder", "bare_python", "fenced_json"])
def test_code_comes_out_as_it_went_in(dialect: str) -> None:
    call = ToolCall("execute_code", {"code": CODE + "\n\n\tx\r"})
    reply = parse_reply(render_calls([call], dialect, [EXECUTE_CODE]), dialect, [EXECUTE_CODE])
    assert (reply.calls, reply.content, reply.problems) == ([call], "", [])


def test_tools_come_as_objects_or_in_the_openai_shape() -> None:
    text = render_calls([WEATHER], "qwen3_coder", [WEATHER_TOOL])
    shape = WEATHER_TOOL.to_json()
    for tools in (
        [WEATHER_TOOL],
        (WEATHER_TOOL,),
        [shape],
        [shape["function"]],
        [{"type": "web_search"}, shape],
    ):
        assert parse_reply(text, "qwen3_coder", tools).calls == [WEATHER]
    assert parse_reply(text, "qwen3_coder").calls[0].arguments["days"] == "3"


def test_prose_between_and_after_calls_is_kept() -> None:
    call = hermes(name="f", arguments={})
    reply = parse_reply(f"First.\n{call}\nThen.\n\n{call}\n{call}\n\nLast.\n", "hermes")
    assert reply.content == "First.\nThen.\n\n\nLast.\n"
    assert len(reply.calls) == 3
    assert reply.problems == []


def test_each_dialect_drops_the_newlines_its_template_writes_before_a_call() -> None:
    assert parse_reply("a\n\n" + hermes(name="f"), "hermes").content == "a\n"
    assert parse_reply("a\n\n\n" + xml("1"), "qwen3_coder").content == "a\n"
    assert parse_reply("a\n[f(x=1)]", "pythonic").content == "a\n"
    assert parse_reply("a \r\n" + hermes(name="f"), "hermes").content == "a "


@pytest.mark.parametrize(
    ("before", "after", "content"),
    [
        (
            "```python\nx = 1\n```\n\n```python\ny = 2\n```\n",
            "",
            "```python\nx = 1\n```\n\n```python\ny = 2\n```",
        ),
        ("Put it here:\n```\n```\nThen run:\n", "\n", "Put it here:\n```\n```\nThen run:"),
        ("```python\nx = 1\n```\n", "\n```\ny = 2\n```", "```python\nx = 1\n```\n```\ny = 2\n```"),
        ("```python\nx = 1\n```\n", "\n```json\n{}\n```", "```python\nx = 1\n```\n```json\n{}\n```"),
        ("So:\n```xml\n", "\n```\nWait.", "So:\nWait."),
        ("So ```", "``` now", "So now"),
        ("```\nx\n```\n```\n", "\n```", "```\nx\n```"),
        ("````\n", "\n````", "````\n````"),
        ("```\nSee:\n", "\n```", "```\nSee:\n```"),
    ],
)
def test_a_fence_goes_with_the_calls_in_it_and_no_other_one(before: str, after: str, content: str) -> None:
    for call in (hermes(name="f"), "\n".join((hermes(name="f"), hermes(name="g")))):
        reply = parse_any(f"{before}{call}{after}")
        assert (reply.content, reply.problems) == (content, [])
        assert "".join(reply.pieces) == content


def test_two_fences_with_a_call_in_each_both_go() -> None:
    fenced = f"```xml\n{hermes(name='f')}\n```"
    for between in ("\n", "\n\n", " "):
        assert parse_any(f"A.\n{fenced}{between}{fenced}\nB.").content == "A.\nB."


# Reasoning


def test_a_leading_thought_is_the_reasoning_and_its_calls_are_none() -> None:
    call = hermes(name="f")
    for opening in ("<think>\n", "\n<think>\n", ""):  # a template may put the opening tag in the prompt
        text = f"{opening}Maybe {call}?\n</think>\n\nYes.\n{hermes(name='g')}"
        for reply in (parse_reply(text, "hermes"), parse_any(text)):
            assert (reply.reasoning, reply.content) == (f"Maybe {call}?", "Yes.")
            assert [c.name for c in reply.calls] == ["g"]
            assert reply.problems == [], "a right call behind a thought of another is a right reply"


def test_an_empty_thought_leaves_later_think_tags_alone() -> None:
    reply = parse_any(f"<think>\n\n</think>\n\n{hermes(name='f')}\nThe tag </think> ends it.")
    assert (reply.reasoning, reply.content) == ("", "\nThe tag </think> ends it.")
    assert len(reply.calls) == 1


def test_a_later_thought_stays_in_the_content_unread() -> None:
    text = f"Well. <think>{hermes(name='f')}</think> No."
    reply = parse_reply(text, "hermes")
    assert (reply.calls, reply.content) == ([], text)
    assert "calls in <think> at character 6 are not calls" in reply.problems[0]


def test_a_thought_that_never_ends_holds_no_calls() -> None:
    text = f"<think>\nSo\n{hermes(name='f')}"
    reply = parse_any(text)
    assert (reply.calls, reply.content, reply.reasoning) == ([], text, "")
    assert "never closed" in reply.problems[0]


def test_think_tags_in_a_value_are_data() -> None:
    call = ToolCall("f", {"a": "</think> and <think>"})
    for dialect in ("hermes", "pythonic", "fenced_json", "qwen3_coder"):
        assert parse_reply(render_calls([call], dialect), dialect).calls == [call]


# Hermes


def test_hermes_writes_what_the_template_writes() -> None:
    assert render_calls([WEATHER, ToolCall("g", {"é": "</tool_call>"})], "hermes") == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {"é": "</tool_call>"}}\n</tool_call>'
    )


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"name": "f", "arguments": '{"a": "{}"}'}, {"a": "{}"}),  # a JSON string is decoded once
        ({"name": "f", "arguments": '"{}"'}, None),
        ({"name": "f", "arguments": ""}, {}),
        ({"name": "f", "arguments": None}, {}),
        ({"name": "f"}, {}),
        ({"name": "f", "parameters": {"a": 1}}, {"a": 1}),
        ({"arguments": {"a": 1}, "name": "f"}, {"a": 1}),
        ({"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}, {"a": 1}),
        ({"name": "f", "arguments": [1]}, None),
        ({"name": "", "arguments": {}}, None),
        ({"name": 7, "arguments": {}}, None),
        ({"arguments": {}}, None),
    ],
)
def test_hermes_reads_the_usual_shapes_of_a_call(call: dict[str, Any], arguments: Any) -> None:
    text = hermes(**call)
    reply = parse_reply(text, "hermes")
    if arguments is None:
        assert (reply.calls, reply.content, len(reply.problems)) == ([], text, 1)
    else:
        assert (reply.calls, reply.problems) == ([ToolCall("f", arguments)], [])


def test_the_json_and_not_the_tag_ends_a_call() -> None:
    value = '</tool_call>\n<tool_call>\n{"name": "no"}'
    text = hermes(name="f", arguments={"a": value}) + hermes(name="g", arguments={})
    for reply in (parse_reply(text, "hermes"), parse_any(text)):
        assert [c.name for c in reply.calls] == ["f", "g"]
        assert reply.calls[0].arguments == {"a": value}
        assert reply.problems == []


@pytest.mark.parametrize(
    ("inside", "names", "problem"),
    [
        ('{"name": "f", "arguments": {"a": "x\ny"}}\n</tool_call>', ["f"], "raw control characters"),
        ("{'name': 'f', 'arguments': {'a': True}}\n</tool_call>", ["f"], "Python, not JSON"),
        ('{"name": "f", "arguments": {}}', ["f"], "no </tool_call>"),
        ('{"name": "f", "arguments": {}}\nMore prose.', ["f"], "no </tool_call>"),
        ('{"name": "f", "arguments": {}}}\n</tool_call>', ["f"], "text before </tool_call>: '}"),
        ('{"name": "f"}\n<tool_call>\n{"name": "g"}\n</tool_call>', ["f", "g"], "no </tool_call>"),
        ('[{"name": "f"}, "junk"]</tool_call>', ["f"], "not an object"),
        ('{"name": "f", "arguments": {"a": 1}\n</tool_call>', [], "invalid JSON"),
        ('{"name": "f", "arguments": {"a": "x', [], "invalid JSON"),
        ("</tool_call>", [], "no JSON object"),
        ("", [], "no JSON object"),
        ("tags are nice", [], "no JSON object"),
        ("<function=f></function></tool_call>", [], "no JSON object"),
    ],
)
def test_hermes_says_what_is_wrong_and_where(inside: str, names: list[str], problem: str) -> None:
    text = f"Oh.\n<tool_call>\n{inside}"
    reply = parse_reply(text, "hermes")
    assert [c.name for c in reply.calls] == names
    assert problem in reply.problems[0]
    assert "character 4" in reply.problems[0]
    assert reply.calls or reply.content == text


def test_several_objects_or_an_array_in_one_block_are_all_calls() -> None:
    for inside in ('{"name": "f"}\n{"name": "g"}', '[{"name": "f"}, {"name": "g"}]'):
        reply = parse_reply(f"<tool_call>{inside}</tool_call>", "hermes")
        assert [c.name for c in reply.calls] == ["f", "g"]
        assert reply.problems == []


def test_a_good_call_after_a_bad_one_is_read() -> None:
    bad, good = "<tool_call>\n{oops}\n</tool_call>", hermes(name="f")
    reply = parse_reply(f"{bad}\n{good}", "hermes")
    assert (reply.content, [c.name for c in reply.calls], len(reply.problems)) == (bad, ["f"], 1)


def test_integers_beyond_64_bits_and_long_values_survive() -> None:
    call = ToolCall("f", {"n": 10**30 + 1, "m": 2**63, "s": "x\n" * 100_000, "z": [{"a": None}] * 3000})
    for dialect in ("hermes", "fenced_json", "pythonic"):
        assert parse_reply(render_calls([call], dialect), dialect).calls == [call]


@pytest.mark.parametrize("dialect", ["hermes", "fenced_json", "pythonic", "qwen3_coder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {1}, b"x", [object()]])
def test_what_json_cannot_say_is_not_written(dialect: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"'f'.*JSON cannot write"):
        render_calls([ToolCall("f", {"a": value})], dialect)


# Qwen3-Coder


def test_xml_writes_what_the_template_writes() -> None:
    tool = Tool(
        "f", "", {"type": "object", "properties": {"o": {"type": "object"}, "b": {"type": "boolean"}}}
    )
    assert render_calls(
        [ToolCall("f", {"s": "a\nb", "o": {"é": [1]}, "b": True}), ToolCall("g")], "qwen3_coder", [tool]
    ) == (
        "<tool_call>\n<function=f>\n<parameter=s>\na\nb\n</parameter>\n"
        '<parameter=o>\n{"é": [1]}\n</parameter>\n'
        "<parameter=b>\nTrue\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=g>\n</function>\n</tool_call>"
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("x", "x"), ("\nx\n", "x"), ("\n\nx\n\n", "\nx\n"), (" \nx\n ", " \nx\n "), ("", ""), ("\n", ""),
        ("\n\n", ""), ("   ", "   "), ("\r\nx\r\n", "x"), ("\nx\r\n", "x\r"), ("x\n", "x"), ("\n  x", "  x"),
        ("&lt;&amp;", "&lt;&amp;"), ("02134", "02134"), ("null", "null"), ("</parameters>\n",
        "</parameters>"),
    ],
)  # fmt: skip
def test_an_xml_value_loses_one_newline_on_each_side(written: str, value: str) -> None:
    assert read_value(written, {"type": "string"}) == (value, [])
    assert read_value(written, {}) == (value, [])


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        ({"type": "integer"}, "30", 30),
        ({"type": "integer"}, "\n -7 \n", -7),
        ({"type": "integer"}, "007", 7),
        ({"type": "integer"}, "5.0", 5),
        ({"type": "integer"}, "NULL", None),
        ({"type": "number"}, "5.0", 5.0),
        ({"type": "number"}, "18446744073709551617", 18446744073709551617),
        ({"type": "number"}, ".5e-3", 0.0005),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "null"}, "None", None),
        ({"type": "array"}, '["a", 1, true, null]', ["a", 1, True, None]),
        ({"type": "array"}, "['a', True, None]", ["a", True, None]),
        ({"type": "array"}, "(1, 2)", [1, 2]),
        ({"type": "object"}, '{"a": {"b": "</parameter"}}', {"a": {"b": "</parameter"}}),
        ({"type": "object"}, "{'a': \"b\", \"c\": 'd'}", {"a": "b", "c": "d"}),
        ({"type": "dict"}, "{}", {}),
        ({"type": "str"}, "7", "7"),
        ({"type": "date"}, "7", "7"),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "null"]}, "NULL", "NULL"),
        ({"type": ["string", "integer"]}, "12", 12),
        ({"type": ["string", "integer"]}, " 12a", " 12a"),
        ({"type": ["integer", "number"]}, "1.5", 1.5),
        ({"anyOf": [{"type": "array"}, {"type": "null"}]}, "[1]", [1]),
        ({"oneOf": [{"type": "object"}, {"type": "string"}]}, "{oops", "{oops"),
        ({"$ref": "#/$defs/Page"}, "4", 4),
        ({"allOf": [{"$ref": "#/$defs/Page"}]}, "4", 4),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": True}, "true", True),
        ({"enum": ["1", "2"]}, "2", "2"),
        ({"enum": ["1", "2", 3]}, "1", "1"),
        ({"enum": ["1", "2", 3]}, "3", 3),
        ({"enum": ["1", 1, "null", None]}, "1", 1),
        ({"anyOf": [{"type": "integer"}, {"const": "12"}]}, "12", "12"),
        ({"type": "integer", "nullable": True}, "null", None),
        ({"items": {}}, "[1]", [1]),
        ({"properties": {}}, '{"a": 1}', {"a": 1}),
    ],
)
def test_a_schema_gives_an_xml_value_its_type(schema: dict[str, Any], written: str, value: Any) -> None:
    parameters = {
        "properties": {"v": schema},
        "$defs": {"Page": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}},
    }
    reply = parse_reply(xml(written), "qwen3_coder", [Tool("f", "", parameters)])
    got = reply.calls[0].arguments["v"]
    assert (got, type(got), reply.problems) == (value, type(value), [])


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "integer"}, "thirty"), ({"type": "integer"}, "5.5"), ({"type": "number"}, "1e999"),
        ({"type": "number"}, "nan"), ({"type": "boolean"}, "yes"), ({"type": "array"}, "[1, 2"),
        ({"type": "object"}, "[1]"), ({"type": "integer"}, ""), ({"type": "integer"}, "9" * 5000),
    ],
)  # fmt: skip
def test_a_value_that_fits_no_type_stays_text_with_a_problem(schema: dict[str, Any], written: str) -> None:
    value, problems = read_value(written, schema)
    assert value == written
    assert "stays text" in problems[0]


def test_a_schema_that_leads_to_itself_many_times_is_read_at_once() -> None:
    tree = {"anyOf": [*[{"$ref": "#/$defs/T"}] * 4, {"type": "string"}, {"type": "integer"}]}
    schema = {"$defs": {"T": tree}, "properties": {"v": {"$ref": "#/$defs/T"}}}
    started = time.process_time()
    assert find_types(schema, "v") == {"string", "integer"}
    assert time.process_time() - started < 1, "of the processor; on every path it would take for ever"


def test_a_reference_to_itself_or_to_nowhere_means_text() -> None:
    for reference in ("#/properties/v", "#/$defs/Gone", "https://example.org/schema"):
        assert read_value("4", {"$ref": reference}) == ("4", [])


def test_additional_properties_give_the_type_of_unnamed_parameters() -> None:
    tool = Tool("f", "", {"type": "object", "additionalProperties": {"type": "integer"}})
    assert parse_reply(xml("4", "any"), "qwen3_coder", [tool]).calls[0].arguments == {"any": 4}


@pytest.mark.parametrize(
    "value",
    [
        'print("</parameter>")',
        'print("</tool_call>")\n</tool_call> is a tag',
        'if "</parameter>" in text:\n    text = text.split("</function>")[0]',
        "<tool_call>\n<function=g>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
        "see <function=g><parameter=x>1</parameter></function></tool_call> here",
        "start = '<parameter=code>'",
        "<think>",
        "\n\n",
        "",
    ],
)
def test_tags_in_an_xml_value_are_data_where_it_can_be_told(value: str) -> None:
    calls = [ToolCall("f", {"a": value, "b": "x"}), ToolCall("f", {"b": value}), ToolCall("h", {"c": "y"})]
    text = render_calls(calls, "qwen3_coder")
    assert parse_reply(text, "qwen3_coder").calls == calls
    assert parse_any(text).calls == calls


@pytest.mark.parametrize(
    "value", ["a\n</parameter>\n</function>\n</tool_call>", "</parameter>\n<parameter=b>"]
)
def test_an_xml_value_that_would_end_early_is_not_written(value: str) -> None:
    with pytest.raises(ValueError, match="argument 'a' of 'f'"):
        render_calls([ToolCall("ok"), ToolCall("f", {"a": value})], "qwen3_coder")


@pytest.mark.parametrize("value", [3, True, None, [1], "30", "null"])
def test_a_value_whose_type_would_change_is_not_written(value: Any) -> None:
    kind = "integer" if isinstance(value, str) else "string"
    tool = Tool("f", "", {"type": "object", "properties": {"a": {"type": kind}}})
    with pytest.raises(ValueError, match="argument 'a' of 'f'"):
        render_calls([ToolCall("f", {"a": value})], "qwen3_coder", [tool])


@pytest.mark.parametrize("name", ["", "a>b", "a\nb", " a", "<x"])
def test_a_name_that_xml_cannot_hold_is_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        render_calls([ToolCall(name, {})], "qwen3_coder")
    with pytest.raises(ValueError, match="cannot write"):
        render_calls([ToolCall("f", {name: "x"})], "qwen3_coder")


@pytest.mark.parametrize(
    ("text", "arguments", "problem"),
    [
        ("<function=f>\n<parameter=a>1</parameter>\n</function>", {"a": "1"}, "no <tool_call>"),
        ("<function=f><parameter=a>1</parameter></function></tool_call>", {"a": "1"}, "no <tool_call>"),
        ("<tool_call><function=f><parameter=a>1</parameter></function>", {"a": "1"}, "no </tool_call>"),
        ("<tool_call><function=f><parameter=a>1</parameter></tool_call>", {"a": "1"}, "no </function>"),
        ("<tool_call><function=f>\n<parameter=a>\n1\n</function></tool_call>", {"a": "1"}, "no </parameter>"),
        ("<tool_call><function=f>\n<parameter=a>\n1\n</tool_call>", {"a": "1"}, "no </parameter>"),
        (
            "<tool_call><function=f>\n<parameter=a>\n1\n</parameter9>\n<parameter=b>2</parameter></function></tool_call>",
            {"a": "1", "b": "2"},
            "no </parameter>",
        ),
        (
            "<tool_call><function=f><parameter=a>1</parameter><parameter=a>2</parameter></function></tool_call>",
            {"a": "2"},
            "given twice",
        ),
    ],
)  # fmt: skip
def test_xml_with_a_tag_missing_is_recovered(text: str, arguments: dict[str, str], problem: str) -> None:
    for reply in (parse_reply(text, "qwen3_coder"), parse_any(text)):
        assert reply.calls == [ToolCall("f", arguments)]
        assert reply.content == ""
        assert any(problem in p for p in reply.problems)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n<function=f>\n<parameter=a>Os",
        "<tool_call>\n<function=f>\n<parameter=a>Oslo</parameter>\n",
        "<tool_call>\n<function=f>\n",
        "<tool_call>\n<function=f",
        "I call <function=f>",
        "<tool_call>\n<function>\n<parameter=a>1</parameter>\n</function>\n</tool_call>",
        "<tool_call><parameter=a>1</parameter></tool_call>",
        "<tool_call><function=f>Oslo</function></tool_call>",
        "<tool_call><function=f>{oops}</function></tool_call>",
    ],
)
def test_xml_that_is_cut_off_or_broken_stays_in_the_content(text: str) -> None:
    for reply in (parse_reply(text, "qwen3_coder"), parse_any(text)):
        assert (reply.calls, reply.content, reply.dialect) == ([], text, None)
        assert reply.problems


def test_a_call_before_one_that_is_cut_off_is_kept() -> None:
    reply = parse_reply(xml("1") + "\n<tool_call>\n<function=g>\n<parameter=x>\n1", "qwen3_coder")
    assert reply.calls == [ToolCall("f", {"v": "1"})]
    assert reply.content == "\n<tool_call>\n<function=g>\n<parameter=x>\n1"
    assert "cut off" in reply.problems[0]


def test_a_missing_parameter_end_does_not_swallow_the_next_call() -> None:
    text = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>\n" + xml("2")
    assert [c.arguments for c in parse_reply(text, "qwen3_coder").calls] == [{"a": "1"}, {"v": "2"}]


def test_a_json_object_may_stand_for_the_parameters() -> None:
    assert parse_any('<function=f>{"a": [1]}</function>').calls == [ToolCall("f", {"a": [1]})]


# Bare Python


@pytest.mark.parametrize(
    "code",
    [
        CODE,
        "x = '</tool_call>'",
        'x = """\n</tool_call>\n<tool_call>\n"""\nprint(x)',
        "# a </tool_call> in a comment, and a quote '\nf()",
        "x = [f(a) for a in b]",
        "{'a': f()}",
        "  indented = 1",
        "\n\nf()\n\n",
        "f('\\'</tool_call>\\\\')",
        "f('it''s', \"'\")",
        "s = r'\\'\nt = '</tool_call>'",
    ],
)
def test_bare_python_is_read_as_it_was_written(code: str) -> None:
    calls = [ToolCall("execute_code", {"code": code}), ToolCall("execute_code", {"code": "f()"})]
    text = render_calls(calls, "bare_python")
    assert parse_reply(text, "bare_python") == Reply("", calls, "bare_python", [])
    assert parse_reply(text.replace("\n", "\r\n"), "bare_python").calls[1].arguments == {"code": "f()"}


def test_bare_python_without_newlines_inside_its_tags() -> None:
    assert parse_any("<tool_call>print(1)</tool_call>").calls == [
        ToolCall("execute_code", {"code": "print(1)"})
    ]


def test_a_tag_at_the_end_of_a_comment_ends_the_code() -> None:
    text = "<tool_call>f()  # done</tool_call>\n<tool_call>g()</tool_call>"
    assert [c.arguments["code"] for c in parse_reply(text, "bare_python").calls] == ["f()  # done", "g()"]


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("f", {"code": "x"}),
        ToolCall("execute_code", {}),
        ToolCall("execute_code", {"code": 1}),
        ToolCall("execute_code", {"code": "x", "timeout": 1}),
        ToolCall("execute_code", {"code": ""}),
        ToolCall("execute_code", {"code": '{"name": "f"}'}),
        ToolCall("execute_code", {"code": "<function=f>"}),
        ToolCall("execute_code", {"code": "f()\n</tool_call>\ng()"}),
        ToolCall("execute_code", {"code": "f() </tool_call>"}),
        ToolCall("execute_code", {"code": "x = '''\n</tool_call>"}),
        ToolCall("execute_code", {"code": "<tool_call>"}),
    ],
)
def test_what_bare_python_cannot_say_is_not_written(call: ToolCall) -> None:
    with pytest.raises(ValueError, match="bare_python c"):
        render_calls([call], "bare_python")


@pytest.mark.parametrize("body", ["", "\n \n", '{"name": "f"}', "[1, 2]", "<function=f>\n</function>"])
def test_bare_python_leaves_other_dialects_alone(body: str) -> None:
    text = f"<tool_call>{body}</tool_call>"
    reply = parse_reply(text, "bare_python")
    assert (reply.calls, reply.content, len(reply.problems)) == ([], text, 1)


@pytest.mark.parametrize(
    "body", ["not valid json", "hello", "[1, 2]", "{invalid json}", "Let me look.", "42"]
)
def test_words_between_the_tags_are_not_code(body: str) -> None:
    text = f"<tool_call>\n{body}\n</tool_call>"
    for tools in (None, [EXECUTE_CODE], [WEATHER_TOOL]):
        reply = parse_any(text, tools)
        assert (reply.calls, reply.content) == ([], text)
        assert reply.problems


def test_code_is_sought_where_it_may_be_sent() -> None:
    good, broken = "<tool_call>\nprint(1)\n</tool_call>", "<tool_call>\nprint(1\n</tool_call>"
    assert parse_any(good).dialect == parse_any(good, [EXECUTE_CODE]).dialect == "bare_python"
    assert parse_any(good, [WEATHER_TOOL]).calls == []
    assert parse_any(broken).calls == []
    reply = parse_any(broken, [EXECUTE_CODE])
    assert (
        reply.calls
        == parse_reply(broken, "bare_python").calls
        == [ToolCall("execute_code", {"code": "print(1"})]
    )
    assert "does not parse as Python" in reply.problems[0]


def test_code_without_its_closing_tag_counts_if_it_parses() -> None:
    reply = parse_reply("Look.\n<tool_call>\nprint(1)\n", "bare_python")
    assert (reply.calls, reply.content) == ([ToolCall("execute_code", {"code": "print(1)"})], "Look.")
    assert "no </tool_call>" in reply.problems[0]
    cut = parse_reply("<tool_call>\nprint('Hel", "bare_python")
    assert (cut.calls, cut.content) == ([], "<tool_call>\nprint('Hel")


# Pythonic


def test_pythonic_writes_literals() -> None:
    call = ToolCall("a.f", {"s": 'q"\n', "n": None, "t": True, "x": [1, -2.5, {"k": False}]})
    text = render_calls([call, ToolCall("g")], "pythonic")
    assert text == '[a.f(s="q\\"\\n", n=None, t=True, x=[1, -2.5, {"k": False}]), g()]'
    assert parse_reply(text, "pythonic").calls == [call, ToolCall("g")]


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<|python_start|>", "<|python_end|>"), ("<|tool_call_start|>", "<|tool_call_end|>"),
        ("<function_calls>", "</function_calls>"), ("<|python_tag|>", "<|eom_id|>"), ("<|python_tag|>", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "inside",
    [
        "[f(a=1), g()]", "\nf(a=1)\ng()\n", "f(a=1); g()", "[f(a=1)] [g()]",
        '[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]',
        '{"name": "f", "parameters": {"a": 1}}; {"name": "g"}',
    ],
)  # fmt: skip
def test_wrapping_tokens_may_hold_a_list_calls_or_json(opening: str, closing: str, inside: str) -> None:
    text = f"Look: {opening}{inside}{closing}"
    for reply in (parse_reply(text, "pythonic"), parse_any(text, [WEATHER_TOOL])):
        assert reply == Reply("Look: ", [ToolCall("f", {"a": 1}), ToolCall("g")], "pythonic", [])


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("from='a', to=\"b\"", {"from": "a", "to": "b"}),
        ("a=true, b=null, c=False", {"a": True, "b": None, "c": False}),
        (
            'a=\'it\\\'s\', b="""x\ny""", c=r\'\\d\', d=\'a\' "b"',
            {"a": "it's", "b": "x\ny", "c": "\\d", "d": "ab"},
        ),
        (
            "a='\\x41\\u00e9\\N{BULLET}\\101\\d', b='\\ud83e\\udd80'",
            {"a": "A\u00e9\u2022A\\d", "b": "\U0001f980"},
        ),
        ("a=(1, 2,), b=(3), c=()", {"a": [1, 2], "b": 3, "c": []}),
        ("a={1: 'x', None: 2}", {"a": {"1": "x", "null": 2}}),
        ("a=-1_000, b=0x1F, c=+.5, d=1e3, e=0o17", {"a": -1000, "b": 31, "c": 0.5, "d": 1000.0, "e": 15}),
        ("\n  a = [\n 1,\n ],\n", {"a": [1]}),
        ("a=')]', b=\"[g(x=1)]\"", {"a": ")]", "b": "[g(x=1)]"}),
    ],
)
def test_python_and_json_literals_are_read(written: str, arguments: dict[str, Any]) -> None:
    assert parse_reply(f"[f({written})]", "pythonic") == Reply("", [ToolCall("f", arguments)], "pythonic", [])


@pytest.mark.parametrize(
    "inside",
    ["a=", "a=b", "a=1, 2", "a=1, a=2", "a=1 b=2", "a='x", "a=f(1)", "a=1+1", "a=f'x'", "a=b'x'",
    "a={1, 2}", "a=[1"],
)  # fmt: skip
def test_what_is_no_literal_is_no_call(inside: str) -> None:
    text = f"[f({inside})]"
    reply = parse_reply(text, "pythonic")
    assert (reply.calls, reply.content, len(reply.problems)) == ([], text, 1)


@pytest.mark.parametrize(
    "text",
    [
        "Read [the docs](https://example.test) first.",
        "The array is [1, 2, 3].",
        "Call [read(file_path)] or [main()] for it.",
        "Use `[f(a=1)]` here.",
        "x = [f(a=1), f(a=2)]",
        "print([f(a=1)])",
        "items[f(a=1)]",
        "```python\nreturn\n[f(a=1)]\n```",
        "f(a=1)",
    ],
)
def test_lists_in_prose_and_code_are_no_calls(text: str) -> None:
    assert parse_reply(text, "pythonic") == Reply(text, [], None, [])
    assert parse_any(text) == Reply(text, [], None, [])


def test_positional_arguments_get_the_names_of_the_schema() -> None:
    assert parse_reply("[get_weather('Oslo', days=3)]", "pythonic", [WEATHER_TOOL]).calls == [WEATHER]
    assert parse_reply("[get_weather('Oslo', 3)]", "pythonic", [WEATHER_TOOL]).calls == [WEATHER]
    for written in ("'Oslo', 3, 4", "'Oslo', city='Rome'"):
        assert parse_reply(f"[get_weather({written})]", "pythonic", [WEATHER_TOOL]).calls == []
    assert parse_reply("[get_weather('Oslo')]", "pythonic").calls == []


def test_lists_in_the_middle_of_prose_are_calls_with_the_prose_kept() -> None:
    reply = parse_reply("I look: [f(a=1)] and [g(b='x')] now", "pythonic")
    assert (reply.content, [c.name for c in reply.calls]) == ("I look:  and  now", ["f", "g"])


@pytest.mark.parametrize("call", [ToolCall("get weather"), ToolCall("f", {"a b": 1}), ToolCall("f", {"": 1})])
def test_names_that_python_cannot_hold_are_not_written(call: ToolCall) -> None:
    with pytest.raises(ValueError, match="it is not a name"):
        render_calls([call], "pythonic")


@pytest.mark.parametrize(
    ("text", "offered", "name"),
    [
        ("<|python_tag|>brave.call(q='x')", None, "brave"),
        ("<|python_tag|>brave.call(q='x')<|eom_id|>", (), "brave"),
        ("<|python_tag|>brave.call(q='x')", ("other",), "brave"),
        ("<|python_tag|>brave.call(q='x')", ("brave", "brave.call"), "brave.call"),
        ("<|python_tag|>Brave Search.call(q='x')", ("Brave Search",), "Brave Search"),
        ("[brave.call(q='x')]", ("brave",), "brave"),
        ("[brave.call(q='x')]", ("brave.call",), "brave.call"),
        ("[brave.call(q='x')]", None, "brave.call"),
        ('<|python_tag|>{"name": "brave.call", "parameters": {"q": "x"}}', None, "brave.call"),
        ("<|python_tag|>.call(q='x')", None, ""),
        ("<|python_tag|>lookup.call('x')", ("lookup",), "lookup"),
    ],
)
def test_a_built_in_tool_of_llama_is_called_by_its_method(
    text: str, offered: tuple[str, ...] | None, name: str
) -> None:
    takes = {"properties": {"q": {"type": "string"}}}
    reply = parse_any(text, None if offered is None else [Tool(each, "", takes) for each in offered])
    assert reply.calls == ([ToolCall(name, {"q": "x"})] if name else [])
    assert bool(reply.problems) == (not name)


def test_a_name_that_would_be_read_as_another_tool_is_not_written() -> None:
    assert render_calls([ToolCall("f.call")], "pythonic", [Tool("f.call"), Tool("f")]) == "[f.call()]"
    with pytest.raises(ValueError, match="it would be one of another tool"):
        render_calls([ToolCall("f.call")], "pythonic", [Tool("f")])


@pytest.mark.parametrize(
    "text",
    [
        "It is sunny. [f(a=1)]",
        "The list [f(a=1)] is odd.",
        "Write [dict(a=1), dict(b=2)] for two of them.",
        "Write [f(a=x), f(b=y)] for two of them.",
        "[f(a=1)] makes a list.",
        "- [f(a=1)] makes a list\n- and [f(b=1)] as well",
    ],
)
def test_a_list_in_a_sentence_is_prose_where_nobody_offers_its_tools(text: str) -> None:
    assert parse_any(text, [WEATHER_TOOL]) == Reply(text, [], None, [])
    mixed = text.replace("f(a", "get_weather(city='Oslo', a").replace("dict(a", "get_weather(a")
    assert parse_any(mixed, [WEATHER_TOOL]).calls or parse_any(mixed, [WEATHER_TOOL]).problems


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=1)]",
        "I look.\n[f(a=1)]",
        "I look:\n\n  [f(a=1), f()]  \n\nSo.",
        "I look: [f(a=1)]\n",
        "[f(a=x)]",
    ],
)
def test_a_list_that_stands_alone_is_a_problem_where_nobody_offers_its_tools(text: str) -> None:
    reply = parse_any(text, [WEATHER_TOOL])
    assert (reply.calls, reply.content, len(reply.problems)) == ([], text, 1)


@pytest.mark.parametrize(
    "text",
    [
        "To call, write `<tool_call>` and then JSON.",
        "Between `<tool_call>` and `</tool_call>` stands JSON.",
        "The tag (`</tool_call>`) ends it.",
    ],
)
def test_a_tag_in_backquotes_is_spoken_of(text: str) -> None:
    for tools in (None, [], [WEATHER_TOOL]):
        assert parse_any(text, tools) == Reply(text, [], None, [])
        said = parse_any(f"{text}\n{hermes(name='f')}", tools)
        assert (said.content, said.calls, said.problems) == (text, [ToolCall("f")], [])
    for dialect in DIALECTS:
        assert parse_reply(text, dialect) == Reply(text, [], None, []), dialect


def test_a_tag_with_one_backquote_beside_it_is_a_tag() -> None:
    for text in ("`<tool_call> is a tag", "a <tool_call>` b", "a </tool_call>` b"):
        assert parse_any(text).problems, text


# Fenced JSON

CALL = '{"name": "f", "arguments": {"a": "```"}}'


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"```json\n{CALL}\n```", ""),
        (f"```\n{CALL}\n```", ""),
        (f"```JSON {CALL}```\nDone.", "\nDone."),
        (f"Look.\n```json\n[{CALL}]\n```", "Look."),
        (f"Look.\n<tools>\n{CALL}\n</tools> Done.", "Look. Done."),
        (CALL, ""),
        (f"Look.\n\n  {CALL}\n\nDone.", "Look.\n\n\nDone."),
        (f"[\n  {CALL}\n]", ""),
    ],
)
def test_json_without_call_tags_is_read(text: str, content: str) -> None:
    call = ToolCall("f", {"a": "```"})
    for reply in (parse_reply(text, "fenced_json"), parse_any(text), parse_any(text, [Tool("f")])):
        assert reply == Reply(content, [call], "fenced_json", [])


@pytest.mark.parametrize(
    "text",
    [
        'The config is\n```json\n{"name": "app", "version": "1"}\n```',
        'A person: {"name": "Ann", "arguments": {}} is one.',
        '{"name": "Ann", "age": 3}',
        '```json\n{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}\n```',
        '```json\n{"name": "f", "parameters": {"type": "object", "properties": {}}}\n```',
        f"```python\n{CALL}\n```",
        "```json\n[1, 2]\n```",
        "[1, 2]",
        "{}",
    ],
)
def test_other_json_is_an_answer(text: str) -> None:
    assert parse_reply(text, "fenced_json") == Reply(text, [], None, [])
    assert parse_any(text) == Reply(text, [], None, [])


@pytest.mark.parametrize(
    ("text", "calls", "problem"),
    [
        (f"```json\n{CALL}", 1, "no closing ```"),
        (f"<tools>{CALL}", 1, "no </tools>"),
        (f"{CALL}\n</tool_call>", 1, "</tool_call> without its opening tag"),
        ('```json\n{"name": "f", "arguments": {a: 1}}\n```', 0, "invalid JSON"),
        ('{"name": "f", "arguments": {"a": 1}', 0, "invalid JSON"),
        ('```json\n{"name": "f", "arguments": {}, "why": "so"}\n```', 0, "not only a name"),
        ("<tools></tools>", 0, "no JSON object"),
        ("<tools>not json</tools>", 0, "no JSON object"),
    ],
)
def test_json_that_was_meant_as_a_call_is_a_problem(text: str, calls: int, problem: str) -> None:
    reply = parse_reply(text, "fenced_json")
    assert len(reply.calls) == calls
    assert calls or reply.content == text
    assert problem in reply.problems[0]


def test_unmarked_calls_must_name_an_offered_tool_to_be_found() -> None:
    for text in (f"```json\n{CALL}\n```", CALL, "[f(a=1)]"):
        reply = parse_any(text, [WEATHER_TOOL])
        assert (reply.calls, reply.content) == ([], text)
        assert "'f' is not an offered tool" in reply.problems[0]
    assert parse_any(hermes(name="f"), [WEATHER_TOOL]).calls == [ToolCall("f")]
    assert parse_reply("[f(a=1)]", "pythonic", [WEATHER_TOOL]).calls == [ToolCall("f", {"a": 1})]


def test_json_in_a_result_that_a_reply_quotes_is_no_call() -> None:
    quoted = f"It said:\n<tool_response>\n{CALL}\n{CALL}\n</tool_response>\n"
    for tools in (None, (), [Tool("f")]):
        assert parse_any(quoted, tools) == Reply(quoted, [], None, [])
        assert len(parse_any(f"{quoted}{hermes(name='f')}", tools).calls) == 1
    assert len(parse_any(f"{quoted}{CALL}").calls) == 1


def test_where_no_tools_are_offered_only_marks_make_a_call() -> None:
    shown = (CALL, f"So:\n```json\n{CALL}\n```\n", "[f(a=1)]", f"<json>{CALL}</json>", f"{CALL[:-1]}, //\n}}")
    for text in shown:
        for none in ((), Toolbox()):
            assert parse_any(text, none) == Reply(text, [], None, []), "an answer that shows something"
    for text in shown[:-1]:
        assert len(parse_any(text).calls) == 1, "it is not known whether f is offered"
    for text in (
        hermes(name="f"),
        f"<tools>{CALL}</tools>",
        xml("1"),
        "<|python_start|>[f(a=1)]<|python_end|>",
    ):
        assert len(parse_any(text, ()).calls) == 1
    assert parse_any("<tool_call>\nprint(1)\n</tool_call>", ()).dialect == "bare_python"
    assert parse_any("<tool_call>[f(a=1)]</tool_call>", ()).dialect == "pythonic"


# Any dialect


def test_two_dialects_in_one_reply_are_both_read_and_said() -> None:
    text = f"{hermes(name='f')}\n{xml('1')}\n```json\n{CALL}\n```"
    reply = parse_any(text)
    assert (len(reply.calls), reply.dialect) == (3, "hermes")
    assert reply.problems == ["calls in several dialects: hermes, qwen3_coder, fenced_json"]


def test_a_strict_reader_says_that_it_saw_a_call_it_cannot_read() -> None:
    for dialect in ("bare_python", "qwen3_coder", "pythonic", "fenced_json"):
        text = hermes(name="f", arguments={"a": 1})
        reply = parse_reply(text, dialect)
        assert (reply.calls, reply.content, reply.dialect) == ([], text, None)
        assert reply.problems
    assert "closes nothing" in parse_reply("f()\n</tool_call>", "hermes").problems[0]


def test_a_toolbox_is_read_once_for_many_calls() -> None:
    box = Toolbox([WEATHER_TOOL])
    assert "get_weather" in render_calls([WEATHER], "qwen3_coder", box)
    assert "schemas" in vars(box), "the given one was used, and no copy of it"
