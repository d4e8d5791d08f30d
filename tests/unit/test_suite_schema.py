"""Suite files: a user's own is read, a wrong one is explained in one line before any model runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import StageError
from stages.core.matcher import Matcher
from stages.core.query import Calls, Expected, Query
from stages.core.suite import SUITES, load_suite, load_suites

TOOL: dict[str, Any] = {"id": "t", "category": "typecheck", "kind": "tool", "query": "Types ok?",
        "accept": [{"function": "typecheck", "arguments": {"path": {"path": "src"}}}]}  # fmt: skip
DIRECT = {
    "id": "d",
    "category": "concept",
    "kind": "direct",
    "query": "What is a tuple?",
    "terms": ["immutable"],
}


SEARCH = {"type": "function", "function": {"name": "search", "description": "Search.", "parameters": {
    "type": "object", "properties": {"text": {"type": "string"}, "limit": {"type": "integer"}}}}}  # fmt: skip


def search(**matchers: dict[str, Any]) -> dict[str, Any]:
    """A query that wants the tool `search`, which requires a text."""
    required = json.loads(json.dumps(SEARCH))
    required["function"]["parameters"]["required"] = ["text"]
    required["function"]["parameters"]["properties"] |= {
        "kind": {"type": "string", "enum": ["file", "line"]},
        "names": {"type": "array", "items": {"type": "string"}},
        "area": {"type": "object", "properties": {"top": {"type": "integer"}}},
    }
    return TOOL | {"tools": [required], "accept": [{"function": "search", "arguments": matchers}]}


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


def matcher_of(query: Query) -> Matcher:
    (accepted,) = query.accept
    assert isinstance(accepted, Expected)
    return accepted.arguments["path"]


def test_an_own_suite(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, TOOL, DIRECT))
    assert [query.id for query in suite.queries] == ["t", "d"]
    matcher = matcher_of(suite.queries[0])
    assert (matcher.path, matcher.exact, matcher.regex) == ("src", None, None)


@pytest.mark.parametrize(
    ("kind", "matcher"),
    [
        ({"type": "integer"}, {"exact": 3.0}),
        ({"type": "integer"}, {"type": "number"}),
        ({"type": "integer"}, {"exact": None}),
        ({"type": "int"}, {"exact": 3}),
        ({"type": "number"}, {"type": "integer"}),
        ({"type": ["string", "boolean"]}, {"exact": True}),
        ({"type": "string"}, {"any_of": [{"exact": 3}, {"regex": "^3"}]}),
        ({"type": "array"}, {"contains": ["a"]}),
        ({"type": "any"}, {"exact": 3}),
        ({"description": "Any."}, {"exact": 3}),
        ({"type": "string", "anyOf": [{"type": "integer"}]}, {"exact": 3}),
        ({"$ref": "#/$defs/count"}, {"exact": 3}),
    ],
)
def test_a_rule_that_some_value_fits_is_taken(
    kind: dict[str, Any], matcher: dict[str, Any], tmp_path: Path
) -> None:
    parameters = {"type": "object", "properties": {"limit": kind}}
    tool = {"type": "function", "function": {"name": "search", "parameters": parameters}}
    accepted = [{"function": "search", "arguments": {"limit": matcher}}]
    load_suite(write_suite(tmp_path, TOOL | {"tools": [tool], "accept": accepted}))


NAMED = {"type": "object", "properties": {"a": {"type": "string"}, "ab": {"type": "string"}},
         "required": ["a", "ab"]}  # fmt: skip
NUMBERED = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize("kind", [NAMED, {"anyOf": [NAMED, NUMBERED]}, {"anyOf": [NUMBERED, NAMED]}])
def test_what_an_object_requires_beside_a_field_is_no_mistake_of_its_rule(
    kind: dict[str, Any], tmp_path: Path
) -> None:
    def suite(first: Any) -> str:
        matcher = {"fields": {"a": {"exact": first}, "ab": {"exact": "y"}}}
        tool = {"function": {"name": "search", "parameters": {"properties": {"area": kind}}}}
        accepted = [{"function": "search", "arguments": {"area": matcher}}]
        return write_suite(tmp_path, TOOL | {"tools": [tool | {"type": "function"}], "accept": accepted})

    load_suite(suite("x"))
    assert "area.fields.a: the rule is for boolean, and search takes" in complaint(suite(True))


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer or null"),
        ({"$ref": "#/$defs/count"}, "integer or null"),
        ({"type": "integer", "default": 3}, "integer or null"),
        ({"allOf": [{"type": ["string", "integer"]}, {"type": "number"}]}, "integer or null"),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, "null or object"),
    ],
)
def test_a_rule_is_held_to_the_type_wherever_the_definition_says_it(
    kind: dict[str, Any], taken: str, tmp_path: Path
) -> None:
    parameters = {"properties": {"limit": kind}, "$defs": {"count": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "search", "parameters": parameters}}
    accepted = [{"function": "search", "arguments": {"limit": {"exact": "3"}}}]
    with pytest.raises(StageError, match=f"the rule is for string, and search takes {taken} there"):
        load_suite(write_suite(tmp_path, TOOL | {"tools": [tool], "accept": accepted}))


def test_a_mark_of_the_encoding_is_none_of_the_suite(tmp_path: Path) -> None:
    path = Path(write_suite(tmp_path, TOOL, DIRECT))
    plain = load_suite(str(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_suite(str(path)) == plain


def test_matchers_may_nest(tmp_path: Path) -> None:
    query = accept(any_of=[{"exact": "a"}, {"any_of": [{"contains": ["b", "c"]}, {"regex": "^d+$"}]}])
    matcher = matcher_of(load_suite(write_suite(tmp_path, query)).queries[0])
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
        (TOOL | {"hint": "x"}, "query t, hint: no such key, use one of id, category, kind, "),
        ({k: v for k, v in TOOL.items() if k != "query"}, "query t: give `query`, or `messages` that end"),
        (TOOL | {"query": 3}, "query t, query = 3: use a text"),
        (TOOL | {"query": " \n"}, "query t: `query` is blank: give the user's text, or leave it out"),
        (DIRECT | {"terms": ["a", ""]}, "query d: one of the `terms` is blank, which any answer has"),
        (DIRECT | {"terms": [" "]}, "query d: one of the `terms` is blank, which any answer has"),
        (accept(), "exactly one of"),
        (accept(optional=True), "exactly one of"),
        (TOOL | {"accept": [{"function": "typecheck", "arguments": {"path": "src"}}]},
         "accept.0.arguments.path = 'src': a matcher is an object with one rule, such as {\"exact\": \"a\"}"),
        (TOOL | {"accept": [{"calls": []}]}, "query t, accept.0.calls: name at least 1"),
        (TOOL | {"accept": [{"calls": [{"function": "lint"}]}]}, "no function 'lint': use one of read_file"),
        (TOOL | {"tools": []}, "no function 'typecheck': this query offers no tool"),
        (TOOL | {"tools": [SEARCH]}, "no function 'typecheck': use one of search"),
        (TOOL | {"tools": [SEARCH, SEARCH]}, "two tools are named search: keep one of them"),
        (TOOL | {"tools": [{"type": "function"}]}, "query t, tools: a tool needs a name"),
        (TOOL | {"tools": SEARCH}, "tools: use a list of tool definitions"),
        (TOOL | {"tools": [SEARCH], "accept": [{"function": "search", "arguments": {"q": {"exact": 1}}}]},
         "search has no parameter q"),
        (DIRECT | {"messages": [{"role": "robot", "content": "x"}]}, "a message needs a role of"),
        (DIRECT | {"messages": [{"role": "system", "content": "x"}]}, "Code Mode has a system text of its"),
        (DIRECT | {"query": "", "messages": [{"role": "assistant", "content": "x"}]}, "give `query`, or"),
        (DIRECT | {"tools": [SEARCH], "messages": [{"role": "user", "content": "x"},
                                                   {"role": "system", "content": "x"}]},
         "only the first of the `messages` may be a system text"),
        (DIRECT | {"messages": [{"role": "assistant", "tool_calls": [
            {"function": {"name": "execute_code", "arguments": "{code"}}]}]},
         "the arguments of a given call are a text that is no JSON"),
        (accept(exact="a", path="a"), "exactly one of"),
        (accept(glob="*"), "query t, accept.0.arguments.path.glob: no such key, use one of exact, "),
        (TOOL | {"accept": [{"function": "typecheck", "exakt": 1}]},
         "query t, accept.0.exakt: no such key, use one of function, arguments, closed"),
        (TOOL | {"accept": [{"calls": [{"function": "typecheck", "n": 1}]}]},
         "query t, accept.0.calls.0.n: no such key, use one of function, arguments, closed"),
        (TOOL | {"accept": [{"calls": [{"function": "typecheck"}], "order": True}]},
         "query t, accept.0.order: no such key, use one of calls, ordered"),
        (accept(path="a", optional="yes"), "accept.0.arguments.path.optional = 'yes': use true or false"),
        (TOOL | {"accept": [TOOL["accept"][0] | {"closed": 1}]}, "accept.0.closed = 1: use true or false"),
        (DIRECT | {"tools": [SEARCH], "messages": [{"role": "tool", "content": "3 found"}]},
         "query d, messages: a tool result in `messages` has no call before it: give the turn that made it"),
        (accept(type="integer"), "query t, accept.0.arguments.path: the rule is for number, and "
         "typecheck takes string there: nothing could match"),
        (search(limit={"exact": "3"}), "accept.0.arguments.limit: the rule is for string, and search takes "
         "integer or null there: nothing could match"),
        (search(limit={"exact": 2.5}), "the rule is for number, and search takes integer or null there"),
        (search(limit={"exact": True}), "the rule is for boolean, and search takes integer or null there"),
        (search(text={"type": "integer"}), "the rule is for number, and search takes string there"),
        (search(text={"contains": ["a", 1]}), "the rule is for array, and search takes string there"),
        (search(text={"exact": None}), "the rule is for null, and search takes string there"),
        (search(text={"any_of": [{"items": []}, {"fields": {}}]}), "for array or object, and search takes"),
        (search(text={"all_of": [{"type": "string"}, {"type": "null"}]}), "text: no value fits this"),
        (TOOL | {"tools": [SEARCH], "accept": [
            {"calls": [{"function": "search"}, {"function": "search", "arguments": {"text": {"exact": 1}}}]},
        ]}, "accept.0.calls.1.arguments.text: the rule is for number, and search takes null or string there"),
        (search() | {"accept": [{"function": "search", "closed": True, "arguments": {}}]},
         "query t, accept.0: search requires text, which `arguments` do not name and `closed`"),
        (search(kind={"exact": "folder"}), "kind: search does not take this value there: nothing could"),
        (search(names={"items": [{"exact": "a"}, {"exact": 1}]}), "arguments.names.items.1: the rule "
         "is for number, and search takes string there: nothing could match"),
        (search(names={"exact": ["a", 1]}), "names: search does not take this value there: nothing could"),
        (search(names={"any_of": [{"items": [{"exact": 1}]}]}), "names.any_of.0.items.0: the rule is for"),
        (search(area={"fields": {"top": {"exact": "1"}}}), "area.fields.top: the rule is for string, and"),
        (accept(regex="(unclosed"), "the regex '(unclosed' is not valid"),
        (accept(any_of=[{"regex": "["}]), "the regex '[' is not valid"),
        (TOOL | {"accept": [{"function": "typechek"}]}, "no function 'typechek': use one of read_file"),
        (
            TOOL | {"accept": [{"function": "typecheck", "arguments": {"file": {"exact": "a"}}}]},
            "has no parameter file",
        ),
    ],
)  # fmt: skip
def test_a_wrong_query_is_explained(query: dict[str, Any], reason: str, tmp_path: Path) -> None:
    text = complaint(write_suite(tmp_path, query))
    assert f"own.json: query {query['id']}" in text
    assert reason in text


def test_a_wrong_file_is_explained(tmp_path: Path) -> None:
    twice = complaint(write_suite(tmp_path, TOOL, DIRECT | {"id": "t"}))
    assert twice.endswith("own.json: query t: queries 1 and 2 have the same id 't': give each its own")
    assert complaint(write_suite(tmp_path)).endswith(
        "own.json has no query: write at least one, in a list under `queries`"
    )
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


# JSON lines


def write_lines(folder: Path, *lines: Any, name: str = "my suite.jsonl") -> str:
    path = folder / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return str(path)


def test_one_query_a_line(tmp_path: Path) -> None:
    suite = load_suite(write_lines(tmp_path, TOOL, "", DIRECT))
    assert (suite.name, suite.version) == ("my-suite", 1)
    assert suite.fingerprint == load_suite(write_suite(tmp_path, TOOL, DIRECT)).fingerprint
    header = {"name": "mine", "version": 3, "description": "Mine."}
    named = load_suite(write_lines(tmp_path, header, TOOL, DIRECT))
    assert (named.name, named.version, named.description) == ("mine", 3, "Mine.")
    assert named.fingerprint == suite.fingerprint
    marked = load_suite(write_lines(tmp_path, "\ufeff" + json.dumps(header) + "\r", json.dumps(TOOL) + "\r"))
    assert (marked.name, len(marked.queries)) == ("mine", 1)


def test_kind_and_category_follow_from_what_is_accepted(tmp_path: Path) -> None:
    bare = [{"id": "a", "query": "?", "accept": TOOL["accept"]}, {"id": "b", "query": "?"},
            {"id": "c", "query": "?", "accept": [{"calls": TOOL["accept"] * 2}]}]  # fmt: skip
    queries = load_suite(write_lines(tmp_path, *bare)).queries
    assert [(query.kind, query.category) for query in queries] == [
        ("tool", "typecheck"), ("direct", "direct"), ("tool", "typecheck")
    ]  # fmt: skip
    assert isinstance(queries[2].accept[0], Calls)
    assert not queries[2].accept[0].ordered


def test_tools_may_be_given_once_for_all_queries(tmp_path: Path) -> None:
    ask = {"id": "a", "query": "Tea?", "accept": [{"function": "search"}]}
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    own = ask | {"id": "b", "tools": [other], "accept": [{"function": "other"}]}
    code = TOOL | {"tools": None}
    for path in (
        write_lines(tmp_path, {"tools": [SEARCH]}, ask, own, code),
        write_suite(tmp_path, ask, own, code, tools=[SEARCH]),
    ):
        queries = load_suite(path).queries
        assert [[tool["function"]["name"] for tool in query.tools or ()] for query in queries] == [
            ["search"], ["other"], []
        ]  # fmt: skip
        assert [query.code_mode for query in queries] == [False, False, True]
    apart = load_suite(write_lines(tmp_path, ask | {"tools": [SEARCH]}, own, code))
    assert apart.fingerprint == load_suite(path).fingerprint


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "{",
            "line 2 is not valid JSON (unexpected end of data: line 1 column 2 (char 1)): write",
        ),
        ("[]", "line 2 is no object: write one query a line"),
        (DIRECT | {"query": 3}, "line 2, query = 3: use a text"),
        (DIRECT | {"hint": 3}, "line 2, hint: no such key"),
        ({"id": "x"}, "line 2: give `query`, or `messages` that end with a turn of the user or a tool"),
        ({"query": "x"}, "line 2, id: this key is missing"),
        (
            accept(exact=3),
            "line 2, accept.0.arguments.path: the rule is for number, and typecheck takes string",
        ),
        (TOOL, "line 2: queries 1 and 2 have the same id 't': give each its own"),
        ({"name": "late"}, "line 2, name: no such key"),
    ],
)
def test_a_wrong_line_is_named(line: Any, reason: str, tmp_path: Path) -> None:
    text = complaint(write_lines(tmp_path, TOOL, line))
    assert text.startswith(f"suite {tmp_path}/my suite.jsonl: {reason}")


def test_a_wrong_header_is_named(tmp_path: Path) -> None:
    assert complaint(write_lines(tmp_path, {"version": "new"}, TOOL)).endswith(
        "my suite.jsonl: version = 'new': use a whole number"
    )
    assert complaint(write_lines(tmp_path, {"tools": [3]}, TOOL)).endswith("tools: a tool needs a name")
    assert complaint(write_lines(tmp_path, {"name": "x"})).endswith(
        "no query: write at least one, one a line"
    )
    assert complaint(str(tmp_path / "none.jsonl")).endswith("or the path of a .json or .jsonl file")
    (tmp_path / "dir.jsonl").mkdir()
    assert complaint(str(tmp_path / "dir.jsonl")).endswith("is a folder: name the .json or .jsonl file in it")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"id": "\xff"}')
    assert "line 1 is not valid JSON" in complaint(str(tmp_path / "bytes.jsonl"))


def test_the_example_of_the_card_is_a_suite(tmp_path: Path) -> None:
    card = (SUITES / "README.md").read_text("utf-8")
    (example,) = [block for block in card.split("```") if block.lstrip().startswith('{"tools"')]
    (query,) = load_suite(write_lines(tmp_path, example.strip(), name="my.jsonl")).queries
    assert (query.kind, query.category, list(query.parameters)) == ("tool", "get_weather", ["get_weather"])


def test_the_shipped_suites_keep_their_fingerprints() -> None:
    """Published results are compared by these; a new kind of rule must not change them."""
    assert load_suite("core20").fingerprint == (
        "b1d46b86134a9f0de63da080d310a8c8791a05bb17332d5e47d2bc3ecae9caa9"
    )
    assert load_suite("extended").fingerprint == (
        "6b25b9aacb7595c2de30eae221820a09be068ae93250bd812eb28fece09629e6"
    )
