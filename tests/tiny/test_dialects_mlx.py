"""mlx-lm's own tool parsers as the judge, where they read what the template writes without a loss.

Where they differ is documented in docs/DIALECTS.md: they turn the text `null` into null under any type,
a wrong boolean into false, and 5.0 into 5.
"""

from __future__ import annotations

from keyword import iskeyword
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tool_parsers import json_tools, pythonic, qwen3_coder

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import parse_reply, render_calls

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not iskeyword(name))
TEXT = st.text(st.characters(exclude_characters="<>\r", exclude_categories=["Cs"]), max_size=20)
FRACTIONS = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda x: not x.is_integer())
SCALARS = st.booleans() | st.integers(-(2**52), 2**52) | FRACTIONS | TEXT
VALUES = st.recursive(
    SCALARS | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KINDS: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def body_of(text: str) -> str:
    """What stands between the tags: mlx-lm's server hands its parsers that."""
    return text.removeprefix("<tool_call>").removesuffix("</tool_call>")


def as_call(parsed: Any) -> ToolCall:
    return ToolCall(parsed["name"], parsed["arguments"])


@settings(max_examples=200)
@given(name=st.text(min_size=1), arguments=st.dictionaries(st.text(), VALUES, max_size=4))
def test_json(name: str, arguments: dict[str, Any]) -> None:
    call = ToolCall(name, arguments)
    text = render_calls([call], "hermes")
    assert as_call(json_tools.parse_tool_call(body_of(text))) == call
    assert parse_reply(text, "hermes").calls == [call]


@settings(max_examples=200)
@given(name=NAMES, arguments=st.dictionaries(NAMES, VALUES.filter(lambda v: v is not None), max_size=4))
def test_xml(name: str, arguments: dict[str, Any]) -> None:
    arguments = {
        k: v for k, v in arguments.items() if not (isinstance(v, str) and v.strip().lower() == "null")
    }
    schema = {"type": "object", "properties": {k: {"type": KINDS[type(v)]} for k, v in arguments.items()}}
    tool = Tool(name, "", schema)
    call = ToolCall(name, arguments)
    text = render_calls([call], "qwen3_coder", [tool])
    assert as_call(qwen3_coder.parse_tool_call(body_of(text).strip(), [tool.to_json()])) == call
    assert parse_reply(text, "qwen3_coder", [tool]).calls == [call]


@settings(max_examples=200)
@given(
    st.lists(
        st.builds(
            ToolCall,
            NAMES,
            st.dictionaries(NAMES, VALUES, max_size=3),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_python(calls: list[ToolCall]) -> None:
    text = render_calls(calls, "pythonic")
    parsed = pythonic.parse_tool_call(text)
    assert [as_call(each) for each in (parsed if isinstance(parsed, list) else [parsed])] == calls
    assert parse_reply(text, "pythonic").calls == calls
