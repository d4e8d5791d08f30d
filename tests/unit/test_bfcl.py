"""BFCL: its data as suites, its rules as matchers, and that both judge alike.

The published checker is the judge here. It is imported from the package `bfcl-eval` without the model
handlers that it drags in and never uses.
"""

from __future__ import annotations

import copy
import importlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stages.core import bfcl
from stages.core.chat import ToolCall
from stages.core.dialects import render_calls
from stages.core.errors import StageError
from stages.core.query import Calls, Query
from stages.core.records import RawReply
from stages.core.suite import load_suite
from stages.eval.matching import match_calls
from stages.eval.score import score_reply

SIZES = {
    "bfcl_simple": 400, "bfcl_multiple": 200, "bfcl_parallel": 200, "bfcl_parallel_multiple": 200,
    "bfcl_irrelevance": 240, "bfcl_live_simple": 258, "bfcl_live_multiple": 1053, "bfcl_live_parallel": 16,
    "bfcl_live_parallel_multiple": 24, "bfcl_live_irrelevance": 884,
}  # fmt: skip
JUDGED = ("bfcl_simple", "bfcl_multiple", "bfcl_parallel", "bfcl_parallel_multiple")
Call = dict[str, dict[str, Any]]


@cache
def queries(name: str) -> tuple[Query, ...]:
    return load_suite(name).queries


@cache
def source(name: str) -> dict[str, dict[str, Any]]:
    """The package's own entries with their answers, by id."""
    folder, file = bfcl._find_data(name), f"BFCL_v4_{bfcl._FILES[name]}.json"
    answers = {row["id"]: row["ground_truth"] for row in bfcl._read_rows(folder / "possible_answer" / file)}
    return {row["id"]: row | {"answer": answers[row["id"]]} for row in bfcl._read_rows(folder / file)}


@pytest.fixture(scope="module")
def published() -> Iterator[Callable[[str, str, list[Call]], bool]]:
    """The published verdict on the calls to one entry."""
    stand_in = ModuleType("bfcl_eval.constants.model_config")
    # All that the checker asks of its table of models: whether the model's names lose their dots.
    stand_in.__dict__["MODEL_CONFIG_MAPPING"] = {"ours": SimpleNamespace(underscore_to_dot=False)}
    before = dict(sys.modules)
    sys.modules[stand_in.__name__] = stand_in
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    python = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON

    def judge(name: str, entry: str, calls: list[Call]) -> bool:
        row = source(name)[entry]
        try:
            verdict = checker.ast_checker(
                row["function"], copy.deepcopy(calls), row["answer"], python, bfcl._FILES[name], "ours"
            )
        except (KeyError, TypeError, AttributeError):  # a value of a kind that it does not expect
            return False
        return bool(verdict["valid"])

    yield judge
    for module in sys.modules.keys() - before.keys():
        if module.startswith("bfcl_eval"):
            del sys.modules[module]


def ours(query: Query, calls: list[Call]) -> bool:
    made = [ToolCall(name, arguments) for call in calls for name, arguments in call.items()]
    return match_calls(query, made).arguments is True


def choose_gold(row: dict[str, Any], rng: random.Random) -> list[Call]:
    """One of the answers that the data allows: a listed value per argument, or none where it may lack."""
    functions = {function["name"]: function["parameters"] for function in row["function"]}
    calls = []
    for answer in row["answer"]:
        for name, allowed in answer.items():
            schema, chosen = functions[name], {}
            for argument, values in allowed.items():
                kept = [value for value in values if value != ""]
                free = "" in values and argument not in schema["required"]
                if argument in schema["properties"] and kept and not (free and rng.random() < 0.5):
                    chosen[argument] = settle(rng.choice(kept), rng)
            calls.append({name: chosen})
    return calls


def settle(value: Any, rng: random.Random) -> Any:
    """An allowed value with one choice made for each key of an object; deeper ones are meant as they are."""
    if isinstance(value, list):
        return [settle(item, rng) if isinstance(item, dict) else item for item in value]
    if not isinstance(value, dict):
        return value
    chosen = {}
    for key, values in value.items():
        kept = [inner for inner in values if inner != ""]
        if kept and not ("" in values and rng.random() < 0.5):
            chosen[key] = rng.choice(kept)
    return chosen


def mutate(calls: list[Call], row: dict[str, Any], rng: random.Random) -> tuple[str, list[Call]]:
    """The calls with one change, and its name; some changes leave them right."""
    calls = copy.deepcopy(calls)
    kind = rng.choice(["value"] * 6 + ["leave out", "add", "rename", "function", "twice", "less", "order"])
    call = rng.choice(calls)
    ((name, arguments),) = call.items()
    if kind == "add":
        arguments["extra"] = 1
    elif kind == "function":
        call[rng.choice([f["name"] for f in row["function"]] + [f"{name}_2"])] = call.pop(name)
    elif kind == "twice":
        calls.append(copy.deepcopy(call))
    elif kind == "less":
        calls.remove(call)
    elif kind == "order":
        rng.shuffle(calls)
    elif arguments:
        argument = rng.choice(list(arguments))
        if kind == "leave out":
            del arguments[argument]
        elif kind == "rename":
            arguments[f"{argument}_"] = arguments.pop(argument)
        else:
            change, arguments[argument] = mutate_value(arguments[argument], rng)
            kind = f"{kind} {change}"
    return kind, calls


def mutate_value(value: Any, rng: random.Random) -> tuple[str, Any]:
    """Another value: of another type, slightly or wholly different, or the same in other words."""
    if isinstance(value, bool):
        return rng.choice(
            [("bool not", not value), ("bool as text", str(value)), ("bool as int", int(value))]
        )
    if isinstance(value, int | float):
        return rng.choice(
            [("number more", value + 1), ("number as text", str(value)), ("number as float", float(value)),
             ("number as int", int(value)), ("null", None), ("number in a list", [value])]
        )  # fmt: skip
    if isinstance(value, str):
        return rng.choice(
            [("text upper", value.upper()), ("text spaced", value.replace(" ", "  ") + "."), ("null", None),
             ("text more", f"{value} x"), ("text empty", ""), ("text in a list", [value]), ("text as int", 7),
             ("text other", "something else"), ("text dashed", value.replace(" ", "-").replace(",", ""))]
        )  # fmt: skip
    if isinstance(value, list):
        changes = [
            ("list as text", str(value)), ("list empty", []), ("list more", [*value, *value[:1]]),
            ("list less", value[:-1]), ("list turned", value[::-1]),
        ]  # fmt: skip
        if value:
            change, item = mutate_value(value[0], rng)
            changes += [(f"list item {change}", [item, *value[1:]])] * 4
        return rng.choice(changes)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        change, inner = mutate_value(value[key], rng)
        return rng.choice(
            [("object less", {k: v for k, v in value.items() if k != key}), ("object as text", str(value)),
             ("object more", value | {"x_": 1}), (f"object key {change}", value | {key: inner})]
        )  # fmt: skip
    return "as it is", value


def test_every_category_is_read() -> None:
    assert bfcl.CATEGORIES.keys() == SIZES.keys()
    for name, size in SIZES.items():
        read = queries(name)
        assert len(read) == size
        assert {query.kind for query in read} == {"direct" if "irrelevance" in name else "tool"}
        assert not any(query.code_mode for query in read)
        if "parallel" in name:
            assert all(isinstance(query.accept[0], Calls) for query in read)
    suite = load_suite("bfcl_live_parallel")
    assert (suite.name, suite.version) == ("bfcl_live_parallel", 4)


def test_its_types_are_shown_as_those_of_json_schema() -> None:
    def types(schema: Any) -> Iterator[str]:
        for key, value in schema.items():
            if key == "type" and isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                yield from types(value)

    shown = {
        kind
        for name in ("bfcl_simple", "bfcl_live_multiple")
        for query in queries(name)
        for tool in query.tools or ()
        for kind in types(tool["function"]["parameters"])
    }
    assert shown == {"object", "string", "integer", "number", "boolean", "array"}


def test_a_call_is_scored_like_any_other_reply() -> None:
    query = queries("bfcl_parallel")[0]
    row = source("bfcl_parallel")[query.id]
    calls = choose_gold(row, random.Random(0))
    text = render_calls([ToolCall(n, a) for call in calls for n, a in call.items()], "hermes")
    for reply, cause in (
        (text, None),
        (text.split("\n</tool_call>")[0], "malformed"),
        ("Fine.", "decided wrong"),
    ):
        raw = RawReply(id=query.id, text=reply, tokens=9, finish="stop", seconds=0.1)
        assert score_reply(query, raw, "hermes").cause == cause


def test_a_whole_number_that_is_listed_for_a_text_is_no_float() -> None:
    rule = bfcl.read_answer([1, 2], {"type": "string"}, required=True)
    assert [rule.fits(value) for value in (1, 2, 1.0, "1", True)] == [True, True, False, False, False]


@pytest.mark.parametrize("name", JUDGED)
def test_its_own_answers_are_right(name: str) -> None:
    rng = random.Random(1)
    for _ in range(2):
        answers = {query.id: choose_gold(source(name)[query.id], rng) for query in queries(name)}
        assert [query.id for query in queries(name) if not ours(query, answers[query.id])] == []


@pytest.mark.parametrize("name", [name for name in SIZES if "live" in name and "irrelevance" not in name])
def test_live_answers_are_right_but_for_those_that_nobody_can_give(
    name: str, published: Callable[[str, str, list[Call]], bool]
) -> None:
    """Three entries want an argument that they list no value for, two list one that the tool has not."""
    rng = random.Random(1)
    answers = {query.id: choose_gold(source(name)[query.id], rng) for query in queries(name)}
    refused = {q.id for q in queries(name) if not published(name, q.id, answers[q.id])}
    wrong = {q.id for q in queries(name) if not ours(q, answers[q.id])}
    assert wrong <= refused
    assert len(refused) == {"bfcl_live_simple": 2, "bfcl_live_multiple": 3}.get(name, 0)


def test_our_verdict_is_the_published_one(published: Callable[[str, str, list[Call]], bool]) -> None:
    rng = random.Random(2)
    judged, right, differ = 0, 0, Counter[tuple[str, bool]]()
    for name in JUDGED:
        for query in queries(name):
            row = source(name)[query.id]
            for _ in range(4):
                kind, calls = mutate(choose_gold(row, rng), row, rng)
                theirs, mine = published(name, query.id, calls), ours(query, calls)
                judged, right = judged + 1, right + theirs
                if mine != theirs:
                    differ[kind, theirs] += 1
    assert judged == 4000
    assert 0.2 < right / judged < 0.6  # neither side is trivial
    # Theirs gives each answer the first call that fits, ours looks for a way to give every answer one.
    # In a list of floats theirs refuses a whole number.
    assert differ.keys() <= {("order", False), ("value list item number as int", False)}
    assert differ.total() <= judged / 100


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "bfcl_eval", raising=False)
    with pytest.raises(
        StageError, match=r"^suite bfcl_simple is read from the package bfcl-eval, which is not"
    ):
        load_suite("bfcl_simple")
