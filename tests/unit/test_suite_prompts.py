"""What a suite's query shows a model: the same as a training row with the same tools and turns."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from pydantic import ValidationError

from stages.convert_data.offers import ConvertContext
from stages.convert_data.rows import convert_row
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import ModelSetup, load_preset
from stages.core.prompts import case_row, query_row
from stages.core.query import Query
from stages.core.suite import load_suite

SETUP = load_preset("smol").model
AS_USER = SETUP.model_copy(update={"tool_response": "user"})
PARAMETERS = {"properties": {"text": {"type": "string"}, "limit": {"type": "integer"}}, "type": "object"}
SEARCH: dict[str, Any] = {  # keys in an order, and of kinds, that conversions put right
    "function": {
        "parameters": PARAMETERS, "strict": True, "description": "Search.", "name": "search", "returns": None
    },
    "type": "function",
}  # fmt: skip
BARE = {"name": "stop", "description": "Stop.", "input_schema": {"type": "object", "properties": {}}}
CALL = {"id": "x7", "type": "function", "function": {"name": "search", "arguments": '{"text": "tea"}'}}
RESULT = {"role": "tool", "tool_call_id": "x7", "content": "Assam, Darjeeling"}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Find tea."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    RESULT,
    {"role": "assistant", "content": "Assam and Darjeeling."},
]
ALL = [subset for n in range(6) for subset in combinations(FAIR, n)]


def ask(**fields: Any) -> Query:
    return Query.model_validate({"id": "q", "query": "And coffee?"} | fields)


def trained(turns: list[dict[str, Any]], setup: ModelSetup) -> dict[str, Any]:
    """The row that a conversion makes of some turns and an answer, less the answer."""
    raw = {"messages": [*turns, {"role": "assistant", "content": "So."}], "tools": [SEARCH, BARE]}
    row = convert_row(raw, ConvertContext(setup, FAIR, ())).row
    return {"messages": row["messages"][:-1], "tools": row["tools"]}


@pytest.mark.parametrize("setup", [SETUP, AS_USER], ids=["template", "user"])
@pytest.mark.parametrize("system", [None, "You find things."])
@pytest.mark.parametrize("given", [0, 4], ids=["one turn", "several"])
def test_a_query_with_tools_is_put_as_a_row_with_them_is_trained(
    setup: ModelSetup, system: str | None, given: int
) -> None:
    before = [{"role": "system", "content": system}] if system else []
    turns = [*before, *TURNS[:given]]
    query = ask(messages=turns, tools=[SEARCH, BARE])
    asked = {"role": "user", "content": "And coffee?"}
    assert case_row(query, setup, FAIR) == trained([*turns, asked], setup)
    shown = case_row(query, setup, FAIR)["messages"]
    assert shown[0] == {"role": "system", "content": system or setup.system}
    assert any(turn["role"] == "tool" for turn in shown) == (given > 0 and setup is SETUP)


def test_a_query_may_end_with_a_result() -> None:
    query = ask(query="", messages=TURNS[:3], tools=[SEARCH, BARE])
    assert case_row(query, SETUP, FAIR) == trained(TURNS[:3], SETUP)
    assert (query.kind, query.question) == ("direct", "Find tea.")
    assert [turn["role"] for turn in query.turns] == ["user", "assistant", "tool"]


def test_results_find_their_calls_by_their_ids() -> None:
    other, its_result = CALL | {"id": "x8"}, RESULT | {"tool_call_id": "x8", "content": "of x8"}
    called = [TURNS[0], {"role": "assistant", "tool_calls": [other, CALL]}]
    for results in ([RESULT, its_result], [its_result, RESULT]):
        query = ask(messages=[*called, *results], tools=[SEARCH])
        assert [turn["content"] for turn in query.messages[2:]] == ["of x8", RESULT["content"]]
        assert [turn["tool_call_id"] for turn in query.messages[2:]] == ["call_0", "call_1"]
    for results in ([RESULT, RESULT], [RESULT], [its_result, RESULT | {"tool_call_id": "x9"}]):
        with pytest.raises(ValidationError, match="has the id of no call that waits for it"):
            ask(messages=[*called, *results], tools=[SEARCH])


@pytest.mark.parametrize("fixes", ALL)
def test_a_query_of_code_mode_is_put_as_before(fixes: FixSet) -> None:
    for query in load_suite("core20").queries[::7]:
        assert case_row(query, SETUP, fixes) == query_row(query.query, SETUP, fixes)


def test_without_the_fix_tools_none_are_shown() -> None:
    row = case_row(ask(tools=[SEARCH]), SETUP, FLAWED)
    assert (row["tools"], row["messages"][0]["content"]) == ([], SETUP.system)
    assert case_row(ask(tools=[]), SETUP, FAIR)["tools"] == []
