"""The short way to read the commonest replies finds what the general way finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import Toolbox, parse_any, render_calls
from stages.core.dialects.lenient import read_weighing
from stages.core.dialects.plain import read_plain
from stages.core.tools import EXECUTE_CODE
from tests.fuzz import TOOLS, make_texts

TYPED = Tool(
    "typed",
    parameters={
        "type": "object",
        "properties": {
            "code": {"type": "integer"},
            "n": {"type": ["number", "null"]},
            "x": {"type": "object"},
        },
    },
)
BOXES = (Toolbox(), Toolbox((EXECUTE_CODE,)), Toolbox((TYPED,)), Toolbox((EXECUTE_CODE, TYPED)))
FUZZED = (BOXES[1], Toolbox(TOOLS))

SPACES = st.sampled_from(["", "\n", "\n\n", "\r\n", " ", "\t\n ", "\u2003"])
WORDS = st.sampled_from(
    ["", "Let me look.", "a `b`", "```", "see [1]", "{", "x\r\n", "\n", "ä€", "<", "<think>", "</think>", ";"]
)
VALUES = st.sampled_from(
    ["", "x", "print(1)", "\nprint(run('x'))\n", "\r\ny = 2\r\n", "\n\n", "12", "null", "None",
     "{}", '{"a": 1}', "[1]", "a < b", "f(", "word", " lead", "# </tool_call>", "x\n", "\nx", "'''", "1e999",
     "<tool_call>", "<parameter=x>", "</parameter>", "<function=f>", "\n</tool_call>\n", "'</function>'"]
)  # fmt: skip
NAMES = st.sampled_from(["execute_code", "typed", " typed ", "other", "a b"])
KEYS = st.sampled_from(["code", "n", " x ", "x", "other"])
BODIES = st.sampled_from(
    ['{"name": "typed", "arguments": {"n": 1}}', '{"name": "f", "parameters": {"a": "</tool_call>"}}',
     '{"name": "f", "arguments": "{\\"a\\": 18446744073709551617}"}', '{"name": "f"}', "{}", "{", "{}{}",
     '{"name": "f", "arguments": [1]}', '[{"name": "f", "arguments": {}}]', "{'name': 'f'}",
     '{"name": "f", "arguments": {"a": NaN}},', '{"function": {"name": "f", "arguments": null}, "id": "x"}',
     '{"name": "f", "arguments": {}, "thought": "x"}', '{"name": "f", "arguments": {"a": "\\ud800"}}',
     '{"name": "f", "a": 1}']
)  # fmt: skip


@st.composite
def xml_calls(draw: st.DrawFn) -> str:
    parameters = "".join(
        f"<parameter={draw(KEYS)}>{draw(VALUES)}</parameter>{draw(SPACES)}"
        for _ in range(draw(st.integers(0, 3)))
    )
    return (
        f"<tool_call>{draw(SPACES)}<function={draw(NAMES)}>{draw(SPACES)}{parameters}</function>"
        f"{draw(SPACES)}</tool_call>"
    )


TAGGED = st.builds(
    lambda a, v, b: f"<tool_call>{a}{v}{b}</tool_call>", SPACES, st.one_of(VALUES, BODIES), SPACES
)
TEXTS = st.lists(st.one_of(WORDS, SPACES, xml_calls(), TAGGED), max_size=5).map("".join)


def require_agreement(text: str, box: Toolbox) -> bool:
    """Compare the two ways; whether the short one took the text."""
    short = read_plain(text, box)
    if short is not None:
        assert repr(short) == repr(read_weighing(text, box)), text  # NaN is not equal to itself
        assert short.problems == []
    return short is not None


@settings(max_examples=1000)
@given(TEXTS, st.sampled_from(BOXES))
def test_both_ways_read_the_same(text: str, box: Toolbox) -> None:
    require_agreement(text, box)


def test_both_ways_read_random_and_mutated_texts_the_same() -> None:
    taken = [require_agreement(text, box) for text in make_texts(5, 1500) for box in FUZZED]
    assert 10 < sum(taken) < len(taken)


@pytest.mark.parametrize("dialect", ["hermes", "qwen3_coder", "bare_python"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("prose", ["", "I look at `x`.\n\n"])
def test_what_templates_write_is_read_the_short_way(dialect: str, count: int, prose: str) -> None:
    calls = [ToolCall("execute_code", {"code": f"if a < {i}:\n    print('ä', b[{i}])"}) for i in range(count)]
    text = prose + render_calls(calls, dialect, BOXES[1]) + "\n"
    reply = read_plain(text, BOXES[1])
    assert reply is not None
    assert (reply.calls, reply.dialect) == (calls, dialect)
    assert reply == read_weighing(text, BOXES[1]) == parse_any(text, (EXECUTE_CODE,))
