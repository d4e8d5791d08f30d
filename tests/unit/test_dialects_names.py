"""Tools whose names or arguments Python could not write are called all the same, as many data sets do."""

from __future__ import annotations

import time

import pytest

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import Toolbox, parse_any, parse_reply
from stages.core.dialects.foreign import find_foreign


def offer(*names: str) -> list[Tool]:
    keys = ("q", "user-id", "first name", "first", "f(x)", "2d")
    return [Tool(name, "", {"properties": {key: {"type": "string"} for key in keys}}) for name in names]


NAMES = (
    "v1/search",
    "2dplot",
    "Market Trends API",
    "Market Trends",
    "find (old)",
    "find",
    "c++",
    "a&b:c",
    "-x",
)
BOX = Toolbox(offer(*NAMES))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ['[{}(q="x")]', 'I look.\n[ {} (q="x")]', 'I look: [{}(q="x", )] now'])
def test_an_offered_name_is_read_as_it_is_written(name: str, text: str) -> None:
    written = text.format(name)
    prose = "I look.\n" if "\n" in text else "I look:  now" if "now" in text else ""
    for reply in (parse_any(written, BOX), parse_reply(written, "pythonic", BOX)):
        assert (reply.calls, reply.content, reply.problems) == ([ToolCall(name, {"q": "x"})], prose, [])


@pytest.mark.parametrize("key", ["user-id", "first name", "first", "f(x)", "2d"])
def test_an_argument_of_the_definition_is_read_as_it_is_written(key: str) -> None:
    for text in (f"[find(q='a', {key}='X')]", f"[find({key} = 'X', q='a')]"):
        assert parse_any(text, BOX).calls == [ToolCall("find", {"q": "a", key: "X"})], text
        assert parse_any(text, BOX).problems == []


def test_several_names_of_both_kinds_are_read() -> None:
    text = '[find(q="1"), Market Trends API(q="2"),\n v1/search(q="3")]'
    assert [call.arguments["q"] for call in parse_any(text, BOX).calls] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "text",
    [
        '<|python_start|>[v1/search(q="x")]<|python_end|>',
        '<|tool_call_start|>[v1/search(q="x")]<|tool_call_end|>',
        '<function_calls>\nv1/search(q="x")\n</function_calls>',
        '<tool_call>[v1/search(q="x")]</tool_call>',
        '<tool_call>v1/search(q="x")</tool_call>',
        '[TOOL_CALLS]v1/search{"q": "x"}',
        '[TOOL_CALLS]v1/search[CALL_ID]abcdefghi[ARGS]{"q": "x"}',
    ],
)
def test_marks_of_a_call_hold_such_names_too(text: str) -> None:
    assert parse_any(text, BOX).calls == [ToolCall("v1/search", {"q": "x"})]


@pytest.mark.parametrize(
    "text",
    [
        "See [Market Trends](https://example.test) and [v1/search](#s).",
        "`[v1/search(q='x')]`",
        "A [Market Trends API] (q) is one.",
        "x = [v1/search(q='x')]",
        "[2dplot]",
        "[v1/search(of all)]",
        '[{"name": "v1/other (q)"}]',
    ],
)
def test_such_names_in_prose_are_no_calls(text: str) -> None:
    assert parse_any(text, BOX).calls == []
    assert parse_any(text, BOX).problems == []


@pytest.mark.parametrize(
    "text",
    [
        '[find(other-id="X")]',
        'I look.\n[find(q="a", other id="X")]',
        '[Unknown Trends API(q="X")]',
        "[v1/search(q=later)]",
        "[find(**{'q': 'x'})]",
        "[v1/search(*['x'])]",
    ],
)
def test_a_list_that_cannot_be_read_is_never_taken_for_words(text: str) -> None:
    reply, seen = parse_any(text, BOX), find_foreign(text, BOX)
    assert reply.calls == []
    assert reply.problems or (seen is not None and seen.certain)


@pytest.mark.parametrize(
    "text",
    [
        'Market Trends API(q="X")',
        'v1/search(q="X")',
        '**find**(q="X")',
        '**Market Trends API**(q="X")',
        '**find(q="X")**',
        '<steptml:invoke name="find">\n<steptml:parameter name="q">x</steptml:parameter></steptml:invoke>',
        '<invoke name="v1/search"><parameter name="q">x</parameter></invoke>',
        "<function>Market Trends API</function>",
    ],
)
def test_a_call_in_another_format_is_seen(text: str) -> None:
    assert parse_any(text, BOX).calls == []
    seen = find_foreign(text, BOX)
    assert seen is not None
    assert seen.certain


@pytest.mark.parametrize(
    "text",
    [
        "**find**(q) looks for a text.",
        "Market Trends API(q) is what you want (see above)",
        "[Smith and others (n=12)]",
        "The list [a b(c=1)] is odd.",
    ],
)
def test_words_about_tools_are_no_certain_call(text: str) -> None:
    seen = find_foreign(text, BOX)
    assert seen is None or not seen.certain


@pytest.mark.parametrize(
    "unit",
    ["[", "[a(", "[v1/search(", '[v1/search(q="x"', "[v1/search(q=1)", "[a b(c=1", "\n[a b(c=1", "**find**("],
)
def test_such_names_are_sought_in_linear_time(unit: str) -> None:
    text = unit * (300_000 // len(unit)) + ")]"
    for read in (parse_any, find_foreign):
        start = time.process_time()
        read(text, BOX)
        assert time.process_time() - start < 1, read
