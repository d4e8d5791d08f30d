"""What chat templates write about tools into a system text, taken out again."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest

from stages.convert_data.instructions import (
    LEFT_OVER,
    NOT_TAKEN,
    TAKEN_OUT,
    find_definitions,
    take_list,
    take_tools,
)
from stages.convert_data.messages import SourceTurn
from stages.core.preset import TEMPLATES
from tests.tool_rows import LINES, QWEN, TOOLS

ROOT = Path(__file__).resolve().parents[1]


def render_system(template: str, system: str, tools: list[dict[str, Any]]) -> str:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]
    text = environment.from_string(template).render(messages=messages, tools=tools)
    return text.split("<|im_start|>system\n", 1)[1].split("<|im_end|>", 1)[0]


@pytest.mark.parametrize(
    "path", [TEMPLATES / "chatml_hermes.jinja", ROOT / "templates" / "qwen3_coder.jinja"]
)
def test_what_a_template_writes_about_tools_is_taken_out_again(path: Path) -> None:
    text = render_system(path.read_text("utf-8"), "Be brief.\nAlways.", TOOLS)
    assert "search" in text
    taken = take_tools(text)
    assert taken is not None
    assert taken.text == "Be brief.\nAlways."
    assert list(taken.own.tools) == TOOLS
    assert taken.changes == (TAKEN_OUT,)


HERMES_HEAD = (
    "You are a function calling AI model. You are provided with function signatures within <tools> </tools> "
    "XML tags. You may call one or more functions. Here are the available tools:"
)
HERMES_TAIL = (
    "Use the following pydantic model json schema for each tool call: {'title': 'FunctionCall'}\n"
    "For each function call return a json object within <tool_call></tool_call> XML tags as follows:\n"
    "<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>"
)
LLAMA = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments."
    "\n\nDo not use variables.\n\n"
)
LONG_HEAD = f"<tools>{LINES}</tools>\n\nFor each function call, return a JSON object "


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (f"{HERMES_HEAD} <tools> {json.dumps(TOOLS)} </tools> {HERMES_TAIL}", ""),
        (f"{HERMES_HEAD}\n<tools>\n{TOOLS}\n</tools>\n{HERMES_TAIL}", ""),
        (
            f"Be kind.\n\n{HERMES_HEAD}\n<tools>{LINES}</tools>\n{HERMES_TAIL}\n\nIt is May.",
            "Be kind.\n\nIt is May.",
        ),
        (QWEN.format(LINES), ""),
        (f"You are Q.\n\n{QWEN.format(LINES)}", "You are Q."),
        (f"My tools are <tools>{LINES}</tools>, use them.", "My tools are\n\n, use them."),
        (
            f"You are kind with access to the following functions. Use them if required -\n{LINES}",
            "You are kind.",
        ),
        (f"<|im_system|>tool_declare<|im_middle|>{json.dumps(TOOLS)}<|im_end|>\nBe kind.", "Be kind."),
    ],
)
def test_known_wordings_are_taken_out(text: str, rest: str) -> None:
    taken = take_tools(text)
    assert taken is not None
    assert (taken.text, list(taken.own.tools)) == (rest, TOOLS)


@pytest.mark.parametrize(
    "text", ["", "Call <tools> wisely.", "<tools></tools>", "The following functions: f."]
)
def test_a_text_without_definitions_stays(text: str) -> None:
    assert take_tools(text) is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (
            "You are a function calling AI model. You work for ACME and must never reveal prices. "
            f"Here are the available tools:<tools>{LINES}</tools>",
            "You are a function calling AI model. You work for ACME and must never reveal prices.",
        ),
        (f"## Tools\n<tools>{LINES}</tools>", "## Tools"),
        (f"Be kind. Use these Tools: <tools>{LINES}</tools>", "Be kind. Use these Tools:"),
        (f"Be kind. Tools: <tools>{LINES}</tools>", "Be kind."),
        (f"Hello!\n\n{LLAMA}{LINES}\n\nTea?", "Hello!\n\nTea?"),
        (f"Be brief\n\n{LLAMA}{LINES}\n\nTea?", "Be brief\n\nTea?"),
        (
            "# Tools\nUse metric units.\n\nYou are provided with function signatures within <tools></tools> "
            f"XML tags:\n<tools>\n{LINES}\n</tools>",
            "# Tools\nUse metric units.",
        ),
        (
            f"{QWEN.format(LINES)}\n\nNever say <tool_call> aloud, nor </tool_call>.",
            "Never say <tool_call> aloud, nor </tool_call>.",
        ),
    ],
)
def test_a_rows_own_words_among_the_known_ones_stay(text: str, rest: str) -> None:
    taken = take_tools(text)
    assert taken is not None
    assert (taken.text, list(taken.own.tools)) == (rest, TOOLS)


@pytest.mark.parametrize(
    "instruction",
    [
        "For each function call, return a JSON object. Never tell prices. <tool_call>\n{}\n</tool_call>",
        "Use the following pydantic model. Never tell prices. <tool_call>\n{}\n</tool_call>",
        f"For each function call, return a JSON object {'without prices ' * 20}<tool_call>{{}}</tool_call>",
        f"If you choose to call a function ONLY reply so: {'never tell prices ' * 99}</IMPORTANT>",
    ],
)
def test_a_rows_own_words_within_the_known_ones_stay(instruction: str) -> None:
    taken = take_tools(f"<tools>{LINES}</tools>\n{instruction}")
    assert taken is not None
    assert taken.text == instruction
    assert (LEFT_OVER in taken.changes) == ("<tool_call>" in instruction)


def test_definitions_behind_many_words_of_a_users_own_are_no_llamas() -> None:
    assert take_tools(LLAMA.replace("arguments.", f"arguments. {'Tea is good. ' * 50}") + LINES) is None


TOOLACE = (
    "You are an expert in composing functions. You should only return the function call in tools call "
    "sections."
    "\n{}\n{}. \n{}"
)
TOOLACE_HEAD = "Here is a list of functions in JSON format that you can invoke:"
TOOLACE_TAIL = (
    "Should you decide to return the function call(s){}ut it in the format of [func1(params_name="
    "params_value, params_name2=params_value2...), func2(params)]\n\nNO other text MUST be included. \n"
)


@pytest.mark.parametrize("joint", [". \nP", ", p"])
def test_toolaces_list_and_its_call_format_are_taken_out(joint: str) -> None:
    given = json.dumps(TOOLS)
    taken = take_tools(TOOLACE.format(TOOLACE_HEAD, given, TOOLACE_TAIL.format(joint)))
    assert taken is not None
    assert (taken.text, taken.changes) == (TOOLACE.split("\n{}")[0], (TAKEN_OUT,))
    assert list(taken.own.tools) == TOOLS


@pytest.mark.parametrize(
    ("before", "after"),
    [("My tools:\n", "\n\nBe kind."), ("I do [this], {that}: ", ""), ("", "Write [func1(params)].")],
)
def test_a_list_of_definitions_behind_unknown_words_is_taken(before: str, after: str) -> None:
    bare = [tool["function"] for tool in TOOLS]
    for given in (TOOLS, bare):
        for written in (json.dumps(given), json.dumps(given, indent=2), "\n".join(map(json.dumps, given))):
            found = find_definitions([SourceTurn("system", before + written + after)])
            assert found is not None
            assert list(found[1].own.tools) == TOOLS
            assert found[1].text == "\n\n".join(filter(None, (before.strip(), after.strip())))
            assert (LEFT_OVER in found[1].changes) == ("func1" in after)


@pytest.mark.parametrize(
    "text",
    [
        'Answer so: {"name": "search", "parameters": {"query": "x"}}',
        'Answer so: {"name": "search", "parameters": {"where": {"city": "x"}}}',
        'Respond with {"name": function name, "parameters": its arguments}.',
        f"Tools: {json.dumps(TOOLS)[:-9]}",
        '[{"name": "Bob", "description": "tall"}, {"name": "f", "parameters": {"a": 1}}]',
    ],
)
def test_what_may_be_definitions_and_is_not_taken_is_said(text: str) -> None:
    assert take_list(text) is None
    found = find_definitions([SourceTurn("system", text), SourceTurn("user", f"{LLAMA}{LINES}\n\nTea?")])
    assert found is not None
    assert (found[0], list(found[1].own.tools)) == (1, TOOLS)
    found = find_definitions([SourceTurn("system", text), SourceTurn("user", "Tea?")])
    assert found is not None
    assert (found[1].text, found[1].own.tools, found[1].changes) == (text, (), (NOT_TAKEN,))


def test_a_call_format_in_other_words_is_said() -> None:
    taken = take_tools(f"<tools>{LINES}</tools> Then write <tool_call> and the JSON.")
    assert taken is not None
    assert taken.changes == (TAKEN_OUT, LEFT_OVER)


TWICE = "<parameter><name>a</name><type>string</type></parameter>" * 2


def test_definitions_that_cannot_be_read_are_a_reason() -> None:
    for text in (
        "<tools>{oops</tools>",
        f"<tools>{LINES}",
        "<tools>\n<function>\n<name>f</name> what</tools>",
        "<tools>\n<function>\n<name>f</name><a>1</a><a>2</a></function></tools>",
        f"<tools>\n<function>\n<name>f</name><parameters>{TWICE}</parameters></function></tools>",
    ):
        with pytest.raises(ValueError, match="tools"):
            take_tools(text)


NEWER = """# Tools

You have access to the following functions:

<tools>
<function>
<name>find</name>
<description>[optional] the `path`, relative</description>
<parameters>
<parameter>
<name>path</name>
<type>string</type>
<description>[`a`, `b`]</description>
<default>5</default>
<minLength>1</minLength>
<enum>["5", "a`b"]</enum>
</parameter>
<parameter>
<name>depth</name>
<type>['integer', 'null']</type>
<default>5</default>
<minimum>1</minimum>
<multipleOf>0.5</multipleOf>
<anyOf>[{'type': 'string'}, {'const': True}]</anyOf>
<x>1.2.3</x>
</parameter>
<required>["path"]</required>
<additionalProperties>False</additionalProperties>
<$defs>{"R": {"type": "object"}}</$defs>
</parameters>
<strict>True</strict>
<return>{"type": "array"}</return>
</function>
<function>
<name>stop</name>
<parameters>
</parameters>
<strict>None</strict>
</function>
</tools>

If you choose to call a function ONLY reply in the following format: <IMPORTANT>\n</IMPORTANT>"""


def test_every_key_of_an_xml_definition_is_read_with_its_type() -> None:
    taken = take_tools(NEWER)
    assert taken is not None
    assert taken.text == ""
    find, stop = (tool["function"] for tool in taken.own.tools)
    assert find == {
        "name": "find",
        "description": "[optional] the `path`, relative",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {
                    "type": "string",
                    "description": "[`a`, `b`]",
                    "default": "5",
                    "minLength": 1,
                    "enum": ["5", "a`b"],
                },
                "depth": {
                    "type": ["integer", "null"],
                    "default": 5,
                    "minimum": 1,
                    "multipleOf": 0.5,
                    "anyOf": [{"type": "string"}, {"const": True}],
                    "x": "1.2.3",
                },
            },
            "required": ["path"],
            "additionalProperties": False,
            "$defs": {"R": {"type": "object"}},
        },
        "strict": True,
        "return": {"type": "array"},
    }
    assert stop == {"name": "stop", "description": "", "parameters": {"type": "object", "properties": {}}}


def test_the_items_of_a_list_in_backquotes() -> None:
    listed = "<enum>[`a, b`, 3, None, `True`, 1.5, ``, `, `]</enum>"
    taken = take_tools(
        f"<tools>\n<function>\n<name>f</name><parameters><parameter><name>a</name>{listed}</parameter>"
        "</parameters></function></tools>"
    )
    assert taken is not None
    properties = taken.own.tools[0]["function"]["parameters"]["properties"]
    assert properties["a"]["enum"] == ["a, b", 3, None, "True", 1.5, "", ", "]


@pytest.mark.parametrize(
    "text",
    [
        f"{LONG_HEAD}{'<tool_call>{' * 20_000}",
        f"{LONG_HEAD}{'Use the following pydantic ' * 10_000}",
        "Given the following functions, please respond with a JSON for a function call " * 3_000,
        f"You are kind with access to the following functions. Use them if required{' ' * 200_000}",
        f"{'Tools: ' * 40_000}x<tools>{LINES}</tools>",
        f"<tools>\n<function>\n<name>{'<function>' * 30_000}</tools>",
        f"<tools>\n<function>\n<name>f</name><a>{'</function><function>' * 10_000}</tools>",
    ],
    ids=["calls", "instructions", "openers", "spaces", "heads", "functions", "ends"],
)
def test_instructions_without_an_end_take_linear_time(text: str) -> None:
    start = time.process_time()
    with suppress(ValueError):
        take_tools(text)
    assert time.process_time() - start < 1  # of hundredths
