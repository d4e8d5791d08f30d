"""Calls that disagree with the definition of their tool, on the card and in the last lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.convert_data.converted import NO_QUESTION
from stages.convert_data.offers import ConvertContext
from stages.convert_data.plain import convert_plain
from stages.convert_data.request import Request
from stages.convert_data.stage import convert_data
from stages.core.chat import Tool, ToolCall
from stages.core.chatml import Turn, join_chatml
from stages.core.cli import Options
from stages.core.dialects import render_calls
from stages.core.fixes import FAIR, FixSet
from stages.core.preset import load_preset
from stages.core.prompts import query_row
from tests.tool_rows import PLAIN, SEARCH, SETUP, TOOLS, chat, convert


def call(tool: str = "search", **arguments: Any) -> dict[str, Any]:
    return chat(render_calls([ToolCall(tool, arguments)], "hermes")) | {"tools": TOOLS}


ODD = [
    call(query="tea"),
    call(query="tea", limt=5),
    call(query=3, limit="5"),
    call(),
    call(query="tea", limit=None),
    call("get_time", zone="UTC"),
    call(query="milk", limt=5),
]
SAID = {
    "search.limt: not among its arguments": [2, 7],
    "search.query: integer instead of string": [3],
    "search.limit: string instead of integer": [3],
    "search.query: required and missing": [4],
    "get_time.zone: not among its arguments": [6],
}


@pytest.mark.parametrize(
    "context",
    [ConvertContext(SETUP, FAIR, ()), ConvertContext(SETUP, FAIR, (SEARCH, Tool("get_time")), given=True)],
    ids=["own", "given"],
)
def test_whoever_defines_the_tools_calls_are_compared_with_them(context: ConvertContext) -> None:
    found = [convert(raw, context).kind.misfits for raw in ODD]
    lines = {said: [n for n, misfits in enumerate(found, 1) if said in misfits] for said in sum(found, ())}
    assert lines == SAID


def test_a_call_of_code_mode_is_compared_as_it_came() -> None:
    """The short way leaves to the full one what is not as it should be."""
    for tool, arguments, misfits in (
        ("execute_code", {"code": "x"}, ()),
        ("execute_code", {"code": "x", "why": "y"}, ("execute_code.why: not among its arguments",)),
        ("execute_code", {"source": "x"}, None),
        ("read_file", {}, ("read_file.path: required and missing",)),
    ):
        raw = chat(render_calls([ToolCall(tool, arguments)], "hermes"))
        found = convert(raw, PLAIN).kind.misfits
        assert misfits is None or found == misfits
        assert (convert_plain(raw, PLAIN) is None) == (found != ())


def test_the_card_says_which_arguments_in_which_rows(tmp_path: Path) -> None:
    own = [{"name": "get weather!", "parameters": {"properties": {"city": {"type": "strng"}}}}]
    rows = [*ODD, chat("So.") | {"tools": own}, {"bad": 1}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options(load_preset("smol"), FAIR, data=tmp_path, out=tmp_path / "out")
    outcome = convert_data(options, Request(valid_share=0))
    card = json.loads((tmp_path / "out" / "card.json").read_text())["splits"]["train"]
    disagree = card["arguments_that_disagree_with_their_definition"]
    assert {one["what"]: one["lines"] for one in disagree} == SAID
    assert [one["count"] for one in disagree] == [2, 1, 1, 1, 1]
    assert len(card["rows_by_fault_of_their_definitions"]) == 2
    page = " ".join((tmp_path / "out" / "card.md").read_text().split())
    assert "| train | search.limt: not among its arguments | 2 | 2, 7 |" in page
    assert "| get weather!.city is of type 'strng', which JSON Schema does not have" in page
    said = "\n".join(outcome.lines)
    assert "6 arguments not as the tool's definition says: search.limt: not among its arguments, " in said
    assert "definitions of rows that cannot be meant so: 'get weather!' is no name for a tool: " in said
    assert " - . : /; get weather!.city is of type 'strng', which JSON Schema" in said


def test_what_is_right_is_not_spoken_of(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(ODD[0]) + "\n")
    options = Options(load_preset("smol"), FAIR, data=tmp_path, out=tmp_path / "out")
    outcome = convert_data(options, Request(valid_share=0))
    assert len(outcome.lines) == 1
    assert "definition says" not in (tmp_path / "out" / "card.md").read_text()


# What is kept though it is odd


@pytest.mark.parametrize("fixes", [FAIR, ("json",)])
def test_a_row_that_asks_nothing_is_counted(fixes: FixSet) -> None:
    context = ConvertContext(SETUP, fixes)
    asked = chat("So.")
    silent = {"text": asked["text"].partition("<|im_end|>\n")[2]}
    code = render_calls([ToolCall("execute_code", {"code": "x"})], "hermes")
    turns = [("assistant", code), ("user", "<tool_response>\nx\n</tool_response>"), ("assistant", "So.")]
    results = {"text": join_chatml([Turn(role, text) for role, text in turns])}
    for raw, count in ((asked, 0), (silent, 1), (results, 1)):
        assert convert(raw, context).kind.changes.count(NO_QUESTION) == count


def test_without_a_line_no_system_turn_is_written() -> None:
    """Code Mode's instructions are a text of their own."""
    nothing = SETUP.model_copy(update={"system": ""})
    shop = [ConvertContext(nothing, FAIR, tools) for tools in ((), (SEARCH,))]
    for context in (*shop, ConvertContext(nothing, ("tools",), ())):
        row = convert(chat("So."), context).row
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        kept = convert(chat("So.", "Mine."), context).row
        assert kept["messages"][0] == {"role": "system", "content": "Mine."}
    code = convert(chat("So."), ConvertContext(nothing, FAIR)).row
    assert code["messages"][0] == query_row("q", nothing, FAIR)["messages"][0]
    assert code["messages"][0]["content"].startswith("To look at")
