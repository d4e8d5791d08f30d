"""What holds for every text and every call: nothing raises, what is written is read back, time is linear."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import DIALECTS, literals, parse_any, parse_reply, render_calls
from stages.core.dialects.literals import NotLiteral, read_json, read_literal
from stages.core.dialects.scanning import Source

PIECES = [
    "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=a>", "<parameter=code>",
    "</parameter>",
    "<think>", "</think>", "<tools>", "</tools>", "```", "```json\n", "```python\n", "<|python_start|>",
    "<|python_tag|>", "<|tool_call_end|>", "<function_calls>", "\n", "\r\n", " ", "\t", "{", "}", "[", "]",
    "(", ")",
    '"', "'", '"""', "'''", "\\", "#", ",", ":", "=", ";", '"name": ', '"arguments": ', '"f"', "f", "a",
    "null", "True",
    "-1.5", "1e999", "9" * 5000, '{"name": "f", "arguments": {"a": 1}}', "[f(a=1)]", "f(a='x')", "x = f()",
    "\\u", "\x00",
    "\ud800", "\u2028", "\U0001f980",
]  # fmt: skip
ANY_TYPE = ["string", "integer", "number", "boolean", "array", "object", "null"]
OFFERED: list[Any] = [
    Tool("f", "", {"properties": {"a": {"anyOf": [{"type": "object"}, {"type": ["integer", "null"]}]}}}),
    {"function": {"name": "execute_code", "parameters": {"properties": {"code": {"type": "string"}}}}},
    {"type": "web_search"},
    {"function": {"name": "g", "parameters": {"properties": []}}},
]

texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=30).map("".join),
    st.text(),
)
strings = st.one_of(st.text(), texts)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
scalars = st.one_of(st.none(), st.booleans(), numbers, strings)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(strings, inner, max_size=4)),
    max_leaves=12,
)
identifiers = st.from_regex(r"[^\W\d]\w{0,8}", fullmatch=True)


def same(one: Sequence[ToolCall], other: Sequence[ToolCall]) -> bool:
    """Equal in types too, and in the order of the arguments."""
    return repr(one) == repr(other)


@settings(max_examples=700)
@given(texts, st.sampled_from([None, OFFERED]))
def test_no_text_raises_or_loses_a_call_in_silence(text: str, tools: Any) -> None:
    for reply in (parse_any(text, tools), *(parse_reply(text, dialect, tools) for dialect in DIALECTS)):
        assert (reply.dialect in DIALECTS) if reply.calls else (reply.dialect is None)
        if not reply.calls and "think>" not in text:
            assert reply.content == text
            assert reply.problems or "<tool_call>" not in text


@pytest.mark.parametrize("dialect", ["hermes", "fenced_json"])
@settings(max_examples=120)
@given(
    calls=st.lists(
        st.builds(ToolCall, st.text(min_size=1), st.dictionaries(strings, values, max_size=4)), max_size=3
    )
)
def test_json_dialects_read_back_everything(dialect: str, calls: list[ToolCall]) -> None:
    reply = parse_reply(render_calls(calls, dialect), dialect)
    assert same(reply.calls, calls)
    assert (reply.content, reply.problems) == ("", [])


@settings(max_examples=120)
@given(
    st.lists(st.builds(ToolCall, identifiers, st.dictionaries(identifiers, values, max_size=4)), max_size=3)
)
def test_pythonic_reads_back_everything_with_proper_names(calls: list[ToolCall]) -> None:
    reply = parse_reply(render_calls(calls, "pythonic"), "pythonic")
    assert same(reply.calls, calls)
    assert (reply.content, reply.problems) == ("", [])


@settings(max_examples=200)
@given(st.lists(strings, min_size=1, max_size=3))
def test_bare_python_reads_back_or_refuses(codes: list[str]) -> None:
    calls = [ToolCall("execute_code", {"code": code}) for code in codes]
    try:
        text = render_calls(calls, "bare_python")
    except ValueError:
        assert any("<" in c or not c.strip() or c.strip()[0] in "{[" or "'" in c or '"' in c for c in codes)
        return
    reply = parse_reply(text, "bare_python")
    assert same(reply.calls, calls)
    assert (reply.content, reply.problems) == ("", [])


def schema_of(value: Any) -> dict[str, Any]:
    for kind, name in (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
    ):
        if isinstance(value, kind):
            return {"type": name}
    return {"type": "object" if isinstance(value, dict) else "null"}


@settings(max_examples=200)
@given(st.lists(st.tuples(identifiers, st.dictionaries(identifiers, values, max_size=4)), max_size=3))
def test_xml_reads_back_or_refuses(drafts: list[tuple[str, dict[str, Any]]]) -> None:
    calls = [ToolCall(f"{name}_{i}", arguments) for i, (name, arguments) in enumerate(drafts)]
    tools = [
        Tool(c.name, "", {"properties": {k: schema_of(v) for k, v in c.arguments.items()}}) for c in calls
    ]
    try:
        text = render_calls(calls, "qwen3_coder", tools)
    except ValueError:
        assert any("<" in str(v) or "\r" in str(v) for c in calls for v in c.arguments.values())
        return
    reply = parse_reply(text, "qwen3_coder", tools)
    assert same(reply.calls, calls)
    assert reply.content == ""


prose = st.text(alphabet=st.characters(exclude_characters="<{[`", exclude_categories=["Cs"]), max_size=30)
plain_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=150)
@given(data=st.data(), before=prose, between=prose, after=prose, crlf=st.booleans())
def test_calls_between_prose_come_back_in_every_dialect(
    dialect: str, data: st.DataObject, before: str, between: str, after: str, crlf: bool
) -> None:
    """Several calls in a turn, with any prose around each, by the strict and by the lenient reader."""
    if dialect == "bare_python":
        codes = st.sampled_from(
            ["print(1)", "x = {'a': 1}\n\nf(x)", "for i in 'ab':\n    g(i)\n", "s = '</tool_call>'"]
        )
        calls = [ToolCall("execute_code", {"code": data.draw(codes)}) for _ in range(2)]
    else:
        arguments = st.dictionaries(identifiers, plain_values, max_size=3)
        calls = [ToolCall(f"{data.draw(identifiers)}_{i}", data.draw(arguments)) for i in range(2)]
    tools = [
        Tool(c.name, "", {"properties": {k: schema_of(v) for k, v in c.arguments.items()}}) for c in calls
    ]
    try:
        first, second = (render_calls([call], dialect, tools) for call in calls)
    except ValueError:
        assume(False)
    text = ("\r\n" if crlf else "\n").join((before, first, between, second, after))
    for reply in (parse_reply(text, dialect, tools), parse_any(text, tools)):
        assert same(reply.calls, calls)
        assert (reply.dialect, reply.problems) == (dialect, [])
        assert "".join(reply.content.split()) == "".join(f"{before}{between}{after}".split())


@settings(max_examples=120)
@given(st.dictionaries(st.sampled_from("abc"), scalars, max_size=3), st.sampled_from([None, *ANY_TYPE]))
def test_xml_never_changes_a_value_in_silence(arguments: dict[str, Any], kind: str | None) -> None:
    tools = [Tool("f", "", {"properties": {k: {"type": kind} for k in arguments}})] if kind else None
    call = ToolCall("f", arguments)
    try:
        text = render_calls([call], "qwen3_coder", tools)
    except ValueError:
        return
    assert same(parse_reply(text, "qwen3_coder", tools).calls, [call])


@settings(max_examples=120)
@given(
    st.recursive(
        scalars,
        lambda v: st.one_of(st.lists(v), st.tuples(v, v), st.dictionaries(st.text(), v)),
        max_leaves=8,
    )
)
def test_literals_are_read_as_python_reads_them(value: Any) -> None:
    written = repr(value)
    assume(not any(0xD800 <= ord(c) < 0xE000 for c in ast.literal_eval(repr(str(value)))))
    got, end = read_literal(written, 0)
    assert end == len(written)
    assert got == as_json(ast.literal_eval(written))


def as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return {k: as_json(v) for k, v in value.items()} if isinstance(value, dict) else value


@settings(max_examples=120)
@given(st.dictionaries(strings, values, max_size=5), st.text(max_size=5))
def test_json_is_read_the_same_through_a_small_window(value: dict[str, Any], behind: str) -> None:
    text = render_calls([ToolCall("f", value)], "hermes").removeprefix("<tool_call>\n") + behind
    whole = read_json(text, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(literals, "_FIRST_WINDOW", 17)
        assert read_json(text, 0) == whole
        with pytest.raises(NotLiteral):
            read_json(text[: whole[1] - 1], 0)


@given(
    st.text("ab", max_size=40), st.lists(st.integers(0, 40), max_size=8), st.sampled_from(["a", "ab", "aba"])
)
def test_a_remembered_search_finds_what_a_new_one_finds(text: str, starts: list[int], needle: str) -> None:
    source = Source(text)
    assert [source.find(needle, start) for start in starts] == [text.find(needle, start) for start in starts]


FLOODS = [
    "<tool_call>", "</tool_call>", "<function=", "<function=f>\n<parameter=a>\n", "<parameter=a>",
    "</parameter>",
    "{", "{\n", "[", "[\n", "[f(", "[f(a='", "```", "```json\n{", '{"name":\n', "<think>", "</think>",
    "<tools>{",
    "<tool_call>{", '<tool_call>{"a":', "<tool_call>#", "# <tool_call>#\n", "<tool_call>'",
    "'''\n<tool_call>", '\\"', "'",
    " ", "\n", "a", "<", "(", "-", "<tool_call>f(</tool_call>", "</function></tool_call>",
    "<|python_tag|>[", "9", "[TOOL_CALLS]", "[TOOL_CALLS]f{", '<functioncall>{"name":', '<json>{"name":"',
    "<function name=", "<tool_call>```json\n{", "<tool_call>{},", "{'name':", '<tool_call>{"name": "\\w',
    "``````", "x<think>", "[f()] ",
]  # fmt: skip
HEADS = [
    "",
    "<tool_call>",
    "<tool_call>\n<function=f>\n<parameter=a>\n",
    '<tool_call>{"name": "f", "arguments": {"a": "',
]


@pytest.mark.parametrize("head", HEADS)
def test_a_text_made_to_be_slow_takes_linear_time(head: str) -> None:
    """Twenty times the text may take sixty times the time: a quadratic reader takes four hundred."""
    for flood in FLOODS:
        small, large = (best_time(head + flood * (size // len(flood))) for size in (2_000, 40_000))
        assert large < max(60 * small, 0.5), flood


JSON_CALL = '{"name": "f", "arguments": {}} '
ESCAPED_CALL = '{"id": 1, "na\\u006de": "f", "arguments": {}}\n'


def make_keys(size: int) -> str:
    keys = "".join(f'"{number}": 0, ' for number in range(size // 12))
    return f'<tool_call>{{"name": "f", "arguments": {{{keys}"0": 1}}}}</tool_call>'


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make_keys, id="many-keys-and-one-of-them-twice"),
        pytest.param(
            lambda size: f"x {JSON_CALL * (size // 31)}{JSON_CALL.replace('f', 'h', 1)}",
            id="calls-behind-words-and-one-that-nobody-offers",
        ),
        pytest.param(lambda size: f"x {JSON_CALL * (size // 31)}[1]", id="calls-behind-words-and-a-list"),
        pytest.param(
            lambda size: f"x {JSON_CALL * (size // 31)}{JSON_CALL[:-3]}",
            id="calls-behind-words-and-one-cut-off",
        ),
        pytest.param(
            lambda size: f"{ESCAPED_CALL * (size // 45)}{{",
            id="lines-of-calls-whose-name-is-escaped",
        ),
    ],
)
def test_calls_in_a_row_that_end_badly_take_linear_time(make: Callable[[int], str]) -> None:
    small, large = (best_time(make(size)) for size in (5_000, 100_000))
    assert large < max(60 * small, 0.5)


def best_time(text: str) -> float:
    """Seconds of processor time that all readers together need, the better of two runs."""
    times = []
    for _ in range(2):
        start = time.process_time()
        parse_any(text, OFFERED)
        for dialect in DIALECTS:
            parse_reply(text, dialect, OFFERED)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(
    ("flood", "megabytes"),
    [
        *((flood, 1) for flood in ("<tool_call>", "<function=", "{", "[", "```json", '"', "[f()] ", "``` ")),
        ('<tool_call>{"name":', 1),
        ("{[<tool_call>'```json\n", 1),
        ("x<think>", 3),
    ],
)
def test_a_megabyte_of_openings_is_read_within_seconds(flood: str, megabytes: int) -> None:
    text = flood * (megabytes * 1_000_000 // len(flood))
    start = time.process_time()
    parse_any(text)
    assert time.process_time() - start < 5  # about one on an idle core


@pytest.mark.parametrize("head", ["", "```"])
def test_a_long_run_of_space_at_a_fence_takes_linear_time(head: str) -> None:
    text = f'{head}\n```{" " * 300_000}<tool_call>{{"name": "f"}}</tool_call>{" " * 300_000}x'
    start = time.process_time()
    assert len(parse_any(text).calls) == 1
    assert time.process_time() - start < 0.5  # of milliseconds, where going back costs minutes
