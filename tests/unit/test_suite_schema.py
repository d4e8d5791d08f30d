"""Suite files: a user's own is read, a wrong one is explained in one line before any model runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import StageError
from stages.core.suite import SUITES, load_suite, load_suites

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
        (TOOL | {"kind": "maybe"}, "query t, kind = 'maybe': use 'tool' or 'direct'"),
        (TOOL | {"hint": "x"}, "query t, hint: no such key"),
        ({k: v for k, v in TOOL.items() if k != "query"}, "query t, query: this key is missing"),
        (TOOL | {"query": 3}, "query t, query = 3: use a text"),
        (accept(), "exactly one of"),
        (accept(exact="a", path="a"), "exactly one of"),
        (accept(glob="*"), "query t, accept.0.arguments.path.glob: no such key"),
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
    assert f"own.json: query {query['id']}" in text
    assert reason in text


def test_a_wrong_file_is_explained(tmp_path: Path) -> None:
    assert "the same id" in complaint(write_suite(tmp_path, TOOL, DIRECT | {"id": "t"}))
    assert complaint(write_suite(tmp_path)).endswith("own.json: queries: name at least 1")
    assert "version = 'new': use a whole number" in complaint(write_suite(tmp_path, TOOL, version="new"))
    assert "name = '../x': use a text that fits ^" in complaint(write_suite(tmp_path, TOOL, name="../x"))
    nameless = {key: value for key, value in TOOL.items() if key != "id"}
    assert "query number 2, id: this key is missing" in complaint(write_suite(tmp_path, DIRECT, nameless))
    path = tmp_path / "broken.json"
    path.write_text('{"name": "own",\n "version": }')
    assert "broken.json is not valid JSON: " in complaint(str(path))
    assert "line 2 column 13" in complaint(str(path))
    path.write_text("[]")
    assert complaint(str(path)).endswith("broken.json: use a table of keys and values")


def test_two_suites_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    own, other = write_suite(tmp_path, TOOL), write_suite(tmp_path / "other", DIRECT)
    assert [suite.name for suite in load_suites(["core20", own])] == ["core20", "own"]
    with pytest.raises(StageError, match=r"^two of the suites are named own: change the name"):
        load_suites([own, "core20", other])
