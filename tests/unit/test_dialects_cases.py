"""Texts as models and streams really produce them, and how they are to be read: `tests/data/`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from stages.core.chat import ToolCall
from stages.core.dialects import Recovered, Reply, parse_any, parse_reply

DATA = tomllib.loads((Path(__file__).resolve().parents[1] / "data" / "parser_cases.toml").read_text("utf-8"))
CASES: list[dict[str, Any]] = DATA["case"]
TOOLS = {"none": None, **{name: json.loads(text) for name, text in DATA["tools"].items()}}


def test_there_are_many_and_each_has_its_name() -> None:
    assert len(CASES) >= 100
    assert len({case["id"] for case in CASES}) == len(CASES)
    known = {"id", "text", "calls", "content", "state", "dialect", "tools", "reasoning"}
    assert all(set(case) <= known for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    tools = TOOLS[case.get("tools", "shop")]
    dialect = case.get("dialect", "hermes")
    check(case, parse_any(case["text"], tools), dialect.split("+")[0])
    if dialect and "+" not in dialect:
        check(case, parse_reply(case["text"], dialect, tools), dialect)


def check(case: dict[str, Any], reply: Reply, dialect: str) -> None:
    calls = [ToolCall(call["name"], call["arguments"]) for call in json.loads(case["calls"])]
    assert repr(reply.calls) == repr(calls), "the same values, of the same types, in the same order"
    assert reply.content == case.get("content", "" if calls or "reasoning" in case else case["text"])
    assert reply.reasoning == case.get("reasoning", "")
    assert reply.dialect == (dialect if calls else None)
    certain = [problem for problem in reply.problems if isinstance(problem, Recovered)]
    match case["state"]:
        case "clean" | "prose":
            assert reply.problems == []
        case "mended":
            assert certain
            assert certain == reply.problems
        case "broken":
            assert len(reply.problems) > len(certain)
        case other:
            raise AssertionError(f"unknown state {other}")
