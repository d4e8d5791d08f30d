"""Suite files: a user's own is read, a wrong one is explained in one line before any model runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import StageError
from stages.core.suite import SUITES, load_suite

TOOL = {"id": "t", "category": "typecheck", "kind": "tool", "query": "Types ok?",
        "accept": [{"function": "typecheck", "arguments": {"path": {"path": "src"}}}]}  # fmt: skip
DIRECT = {
    "id": "d",
    "category": "concept",
    "kind": "direct",
    "query": "What is a tuple?",
    "terms": ["immutable"],
}


def write_suite(folder: Path, *queries: dict[str, Any], **more: Any) -> str:
    path = folder / "own.json"
    data = {"name": "own", "version": 1, "description": "mine", "queries": list(queries)} | more
    path.write_text(json.dumps(data), "utf-8")
    return str(path)


def complaint(name: str) -> str:
    with pytest.raises(StageError) as error:
        load_suite(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def accept(**matcher: Any) -> dict[str, Any]:
    return TOOL | {"accept": [{"function": "typecheck", "arguments": {"path": matcher}}]}


def test_an_own_suite(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, TOOL, DIRECT))
    assert [query.id for query in suite.queries] == ["t", "d"]
    matcher = suite.queries[0].accept[0].arguments["path"]
    assert (matcher.path, matcher.exact, matcher.regex) == ("src", None, None)


def test_matchers_may_nest(tmp_path: Path) -> None:
    query = accept(any_of=[{"exact": "a"}, {"any_of": [{"contains": ["b", "c"]}, {"regex": "^d+$"}]}])
    matcher = load_suite(write_suite(tmp_path, query)).queries[0].accept[0].arguments["path"]
    assert matcher.any_of is not None
    assert matcher.any_of[1].any_of is not None
    assert matcher.any_of[1].any_of[0].contains == ("b", "c")


def test_an_unknown_suite_names_the_known(tmp_path: Path) -> None:
    text = complaint("core21")
    assert "'core21'" in text
    assert all(path.stem in text for path in SUITES.glob("*.json"))
    assert "no suite" in complaint(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (TOOL | {"accept": []}, "a tool query has accepted calls"),
        (DIRECT | {"accept": TOOL["accept"]}, "a direct one has none"),
        (TOOL | {"kind": "maybe"}, "queries.0.kind"),
        (TOOL | {"hint": "x"}, "queries.0.hint"),
        (accept(), "exactly one of"),
        (accept(exact="a", path="a"), "exactly one of"),
        (accept(glob="*"), "queries.0.accept.0.arguments.path"),
        (accept(regex="(unclosed"), "the regex '(unclosed' is not valid"),
        (accept(any_of=[{"regex": "["}]), "the regex '[' is not valid"),
        (TOOL | {"accept": [{"function": "typechek"}]}, "no function 'typechek': use one of read_file"),
        (
            TOOL | {"accept": [{"function": "typecheck", "arguments": {"file": {"exact": "a"}}}]},
            "has no parameter file",
        ),
    ],
)
def test_a_wrong_query_is_explained(query: dict[str, Any], reason: str, tmp_path: Path) -> None:
    text = complaint(write_suite(tmp_path, query))
    assert "own.json is not valid at queries.0" in text
    assert reason in text


def test_a_wrong_file_is_explained(tmp_path: Path) -> None:
    assert "the same id" in complaint(write_suite(tmp_path, TOOL, DIRECT | {"id": "t"}))
    assert "at queries" in complaint(write_suite(tmp_path))
    assert "at version" in complaint(write_suite(tmp_path, TOOL, version="new"))
    path = tmp_path / "broken.json"
    path.write_text('{"name": ')
    assert "broken.json is not valid at top" in complaint(str(path))
