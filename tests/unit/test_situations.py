"""The suite `situations`: its make-up, and replies to every query that were labelled by reading them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import orjson
import pytest
from rapidfuzz import fuzz

from stages.core.chat import Tool, ToolCall
from stages.core.dialects import render_calls
from stages.core.matcher import Matcher
from stages.core.query import Calls, Query
from stages.core.records import EvalSummary, Rate, RawReply, Score, read_record
from stages.core.suite import load_suite
from stages.core.tools import EXECUTE_CODE
from stages.eval.__main__ import main
from stages.eval.behaviour import RunCode
from stages.eval.sandbox import CodeRunner, Sandbox
from stages.eval.score import score_reply
from tests.unit.test_suites import NON_ANSWERS
from tests.unit.test_suites import QUERIES as OTHERS

SUITE = load_suite("situations")
QUERIES = {query.id: query for query in SUITE.queries}
LABELLED = Path(__file__).resolve().parents[1] / "data" / "situation_replies.jsonl"
REPLIES: list[dict[str, Any]] = [orjson.loads(line) for line in LABELLED.read_bytes().splitlines()]


def write_reply(labelled: dict[str, Any]) -> RawReply:
    """A labelled reply as a model writes it in the dialect hermes."""
    query, text = QUERIES[labelled["query"]], labelled.get("text")
    if text is None:
        calls = [ToolCall(call["name"], call["arguments"]) for call in labelled.get("calls", ())]
        if "code" in labelled:
            calls = [ToolCall(EXECUTE_CODE.name, {"code": labelled["code"]})]
        text = render_calls(calls, "hermes", [Tool.from_json(tool) for tool in query.tools or ()])
    return RawReply(id=query.id, text=text, tokens=9, finish="stop", seconds=0.1)


def score(labelled: dict[str, Any], run_code: RunCode | None = None) -> Score:
    return score_reply(QUERIES[labelled["query"]], write_reply(labelled), "hermes", run_code)


def rules(matcher: Matcher) -> Iterator[str]:
    """The names of the rules of a matcher and of those inside it."""
    yield matcher.rule
    if matcher.optional:
        yield "optional"
    inside = matcher.wanted if isinstance(matcher.wanted, tuple) else ()
    for inner in (*inside, *(matcher.fields or {}).values()):
        if isinstance(inner, Matcher):
            yield from rules(inner)


@pytest.fixture(scope="module")
def run_code() -> Iterator[CodeRunner]:
    with Sandbox() as sandbox:
        yield CodeRunner(sandbox)


def test_composition() -> None:
    queries = SUITE.queries
    assert Counter((query.category, query.kind) for query in queries) == {
        ("follow_up", "tool"): 14,
        ("several_calls", "tool"): 12,
        ("given_result", "direct"): 8,
        ("unavailable", "direct"): 10,
        ("irrelevant", "direct"): 6,
    }
    assert Counter(query.code_mode for query in queries) == {True: 21, False: 29}
    for query in queries:
        assert query.wants_several == (query.category == "several_calls"), query.id
        results = [turn for turn in query.messages if turn["role"] == "tool"]
        assert bool(results) >= (query.category in ("follow_up", "given_result")), query.id
        assert query.terms or query.kind == "tool", query.id


def test_every_rule_for_an_argument_is_in_use() -> None:
    used = {
        rule
        for query in SUITE.queries
        for expected in query.expected
        for matcher in expected.arguments.values()
        for rule in rules(matcher)
    }
    assert used == set(Matcher.model_fields)
    assert any(expected.closed for query in SUITE.queries for expected in query.expected)
    ordered = [one for query in SUITE.queries for one in query.accept if isinstance(one, Calls)]
    assert {one.ordered for one in ordered} == {True, False}


def test_a_tool_that_is_missing_was_not_offered() -> None:
    offered = {query.id: set(query.toolbox.schemas) for query in SUITE.queries}
    assert "delete_file" not in offered["missing-04"]
    assert offered["missing-07"] == set()
    assert QUERIES["missing-08"].messages[1]["tool_calls"][0]["function"]["name"] == "get_share_price"
    assert offered["missing-08"] == {"set_timer"}
    called = {
        (query.id, call["function"]["name"])
        for query in SUITE.queries
        for turn in query.messages
        for call in turn.get("tool_calls", ())
    }
    assert [query for query, name in called if name not in offered[query]] == ["missing-08"]


def test_no_turn_is_like_another_or_like_a_query_of_the_other_suites() -> None:
    said = [
        turn["content"].lower() for query in SUITE.queries for turn in query.turns if turn["role"] == "user"
    ]
    others = [query.query.lower() for query in OTHERS]
    pairs = [*combinations(said, 2), *product(said, others)]
    assert [pair for pair in pairs if fuzz.token_sort_ratio(*pair) >= 90] == []


def test_every_query_has_right_and_wrong_replies() -> None:
    labels = Counter((reply["query"], reply["cause"] is None) for reply in REPLIES)
    assert labels.keys() == {(query, right) for query in QUERIES for right in (True, False)}
    for query in SUITE.queries:
        judged = {r["on_terms"] for r in REPLIES if r["query"] == query.id and "on_terms" in r}
        assert judged == (set() if query.kind == "tool" else {True, False}), query.id


@pytest.mark.parametrize("labelled", REPLIES, ids=lambda r: f"{r['query']} {r['cause']}")
def test_a_reply_is_judged_as_labelled(labelled: dict[str, Any], run_code: CodeRunner) -> None:
    found = score(labelled, run_code)
    assert found.cause == labelled["cause"]
    assert found.strict.whole == (labelled["cause"] is None)
    if "on_terms" in labelled:
        assert found.answer is not None
        assert found.answer.on_terms == labelled["on_terms"]


def declines(query: Query) -> bool:
    """Whether saying that it cannot be done is the answer."""
    return query.category == "unavailable"


@pytest.mark.parametrize(
    "query", [q for q in SUITE.queries if q.kind == "direct"], ids=lambda query: query.id
)
def test_terms_are_said_neither_by_the_turns_nor_by_a_non_answer(query: Query) -> None:
    given = [turn["content"] for turn in query.turns if turn["role"] in ("user", "assistant")]
    for text in (*given, *(NON_ANSWERS if not declines(query) else ())):
        answer = score({"query": query.id, "text": text}).answer
        assert answer is not None
        assert answer.on_terms is False, text


def test_the_suite_is_scored_from_a_file_of_replies(tmp_path: Path) -> None:
    right = {reply["query"]: write_reply(reply) for reply in REPLIES if reply["cause"] is None}
    file = tmp_path / "replies.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps(reply.model_dump()) for reply in right.values()))
    assert main(["--replies", str(file), "--suites", "situations", "--out", str(tmp_path / "out")]) == 0
    summary = read_record(tmp_path / "out" / "situations" / "summary.json", EvalSummary)
    assert summary.strict is not None
    assert summary.strict.whole == Rate(k=50, n=50)
    assert summary.by_category.keys() == {query.category for query in SUITE.queries}
    assert summary.by_category_lenient.keys() == summary.by_category.keys()
    assert summary.by_tool_lenient.keys() == summary.by_tool.keys() >= {"typecheck", "get_weather"}
