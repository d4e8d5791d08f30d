"""Matchers over any JSON value, and accepted calls of tools of one's own."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.chat import ToolCall
from stages.core.matcher import Matcher, fits_all, same_json
from stages.core.query import Query
from stages.eval.matching import Match, match_calls
from stages.report.failures import describe_accepted, describe_matcher

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def rule(**fields: Any) -> Matcher:
    return Matcher.model_validate(fields)


@pytest.mark.parametrize(
    ("matcher", "right", "wrong"),
    [
        (rule(exact=5), [5, 5.0], [True, "5", 6, None, [5]]),
        (rule(exact=1), [1], [True]),
        (rule(exact=True), [True], [1, 1.0, "true", False]),
        (rule(exact=None), [None], [0, "", False, []]),
        (rule(exact=[1, {"a": [True]}]), [[1.0, {"a": [True]}]], [[1, {"a": [1]}], [1], [{"a": [True]}, 1]]),
        (rule(exact={"a": 1, "b": None}), [{"b": None, "a": 1}], [{"a": 1}, {"a": 1, "b": None, "c": 2}]),
        (rule(text="April 1, 2024"), ["april 1 2024", "April-1/2024"], ["April 2, 2024", 1, None]),
        (rule(text="it's"), ['It"s', "it\u2019s"], ["its"]),
        (rule(text='"x"'), ["\u201cx\u201d", "\xabx\xbb", "'x'"], ["x"]),
        (rule(text="caf\xe9"), ["cafe\u0301", "CAF\xc9"], ["cafe"]),
        (rule(contains=["a", "b"]), ["xaxb", ["b", "a", 3]], ["a", ["a"], {"a": 1, "b": 1}, 3]),
        (rule(contains=[1, [2]]), [[[2], 0, 1]], [[True, [2]], "1[2]", [1, 2]]),
        (rule(regex="^a+$"), ["aa"], ["b", 1, ["aa"]]),
        (rule(type="integer"), [3, -1], [3.0, True, "3", None]),
        (rule(type="number"), [3, 3.5], [True, "3"]),
        (rule(type="boolean"), [True, False], [0, "true"]),
        (rule(type="null"), [None], [False, 0, ""]),
        (rule(type="array"), [[]], ["[]", {}]),
        (rule(type="object"), [{}], [[], "{}"]),
        (rule(items=[{"exact": 1}, {"type": "string"}]), [[1, "x"]], [["x", 1], [1], [1, "x", 2], "1x"]),
        (
            rule(fields={"a": {"exact": 1}, "b": {"type": "string", "optional": True}}),
            [{"a": 1}, {"a": 1, "b": ""}],
            [{}, {"b": "x"}, {"a": 1, "b": 2}, {"a": 1, "c": 3}, [1]],
        ),
        (rule(any_of=[{"exact": 1}, {"type": "string"}]), [1, "x"], [2, None]),
        (rule(all_of=[{"type": "integer"}, {"exact": 5}]), [5], [5.0, 4]),
        (rule(path="a/b"), ["./a/b/"], [1, ["a/b"], None, " a/b", "a/b "]),
    ],
    ids=lambda value: str(value.model_dump()) if isinstance(value, Matcher) else "",
)  # fmt: skip
def test_rules(matcher: Matcher, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if not matcher.fits(value)] == []
    assert [value for value in wrong if matcher.fits(value)] == []


@given(value=JSON)
def test_every_value_is_itself_and_is_written_back(value: Any) -> None:
    matcher = rule(exact=value)
    assert matcher.fits(orjson.loads(orjson.dumps(value)))
    assert matcher.model_dump(mode="json") == {"exact": orjson.loads(orjson.dumps(value))}
    assert Matcher.model_validate(matcher.model_dump()) == matcher


@given(one=JSON, other=JSON)
def test_equality_is_that_of_json(one: Any, other: Any) -> None:
    assert same_json(one, other) == same_json(other, one)
    assert same_json(one, one)
    if orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS):
        assert same_json(one, other)


@pytest.mark.parametrize(
    "name", ["text", "path", "contains", "regex", "type", "items", "fields", "any_of", "all_of"]
)
def test_a_rule_without_a_value_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs a value"):
        rule(**{name: None})
    if name in ("contains", "any_of", "all_of"):
        with pytest.raises(ValueError, match=f"{name} needs at least one value"):
            rule(**{name: []})
    assert rule(exact=None).fits(None)


def test_what_is_no_json_value_never_fits() -> None:
    unknown = object()
    rules = [rule(exact=1), rule(type="string"), rule(path="a"), rule(any_of=[{"contains": ["a"]}])]
    assert not any(matcher.fits(unknown) for matcher in rules)


def test_arguments_may_be_left_out_or_forbidden() -> None:
    wanted = {"a": rule(exact=1), "b": rule(exact=2, optional=True)}
    for values, open_, closed in (
        ({"a": 1}, True, True),
        ({"a": 1, "b": 2}, True, True),
        ({"a": 1, "b": 3}, False, False),
        ({"b": 2}, False, False),
        ({"a": 1, "c": 3}, True, False),
    ):
        assert fits_all(wanted, values, closed=False) is open_
        assert fits_all(wanted, values, closed=True) is closed


# Calls


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def expect(function: str, **arguments: Any) -> dict[str, Any]:
    return {"function": function, "arguments": {name: {"exact": value} for name, value in arguments.items()}}


def query(*accept: Any, code_mode: bool = False) -> Query:
    tools = None if code_mode else [tool("f"), tool("g")]
    return Query.model_validate({"id": "q", "query": "?", "accept": list(accept), "tools": tools})


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


BOTH = {"calls": [expect("f", x=1), expect("g", x=2)]}
RIGHT, ARGUMENTS, TOOL = Match(True, True), Match(True, False), Match(False, False)


@pytest.mark.parametrize(
    ("accept", "calls", "match"),
    [
        ([expect("f", x=1)], [call("f", x=1)], RIGHT),
        ([expect("f", x=1)], [call("f", x=1, y=2)], RIGHT),
        ([expect("f", x=1) | {"closed": True}], [call("f", x=1, y=2)], ARGUMENTS),
        ([expect("f", x=1)], [call("f", x=1), call("f", x=1)], ARGUMENTS),
        ([expect("f", x=1)], [call("f", x=1), call("g")], TOOL),
        ([expect("f", x=1)], [call("h", x=1)], TOOL),
        ([expect("f", x=1)], [], TOOL),
        ([expect("f", x=1), expect("g")], [call("g", x=3)], RIGHT),
        ([BOTH], [call("g", x=2), call("f", x=1)], RIGHT),
        ([BOTH | {"ordered": True}], [call("f", x=1), call("g", x=2)], RIGHT),
        ([BOTH | {"ordered": True}], [call("g", x=2), call("f", x=1)], ARGUMENTS),
        ([BOTH], [call("f", x=1)], TOOL),
        ([BOTH], [call("f", x=1), call("g", x=2), call("g", x=2)], ARGUMENTS),
        ([{"calls": [expect("f"), expect("f", x=1)]}], [call("f", x=1), call("f", x=2)], RIGHT),
        ([{"calls": [expect("f"), expect("f", x=1)]}], [call("f", x=3), call("f", x=2)], ARGUMENTS),
        ([BOTH, expect("g", x=2)], [call("g", x=2)], RIGHT),
    ],
)
def test_calls_of_tools(accept: list[Any], calls: list[ToolCall], match: Match) -> None:
    assert match_calls(query(*accept), calls) == match


@pytest.mark.parametrize(
    ("code", "ordered", "match"),
    [
        ("ruff_check('src'); pytest_run('tests')", True, RIGHT),
        ("pytest_run('tests'); ruff_check('src')", False, RIGHT),
        ("pytest_run('tests'); ruff_check('src')", True, ARGUMENTS),
        ("ruff_check('src'); read_file('a'); pytest_run('tests')", True, RIGHT),
        ("ruff_check('src')", False, TOOL),
        ("ruff_check('.'); pytest_run('tests')", False, ARGUMENTS),
    ],
)
def test_code_may_call_more_than_what_is_wanted(code: str, ordered: bool, match: Match) -> None:
    wanted = {
        "calls": [expect("ruff_check", path="src"), expect("pytest_run", path="tests")],
        "ordered": ordered,
    }
    assert match_calls(query(wanted, code_mode=True), [call("execute_code", code=code)]) == match


def test_a_report_says_what_is_accepted() -> None:
    arguments = {"a": {"text": "x"}, "b": {"all_of": [{"type": "integer"}, {"exact": 5}], "optional": True}}
    accepted = query({"function": "f", "arguments": arguments}, BOTH, BOTH | {"ordered": True}).accept
    assert list(map(describe_accepted, accepted)) == [
        "f(a='x', [b]=any integer and 5)", "f(x=1) and g(x=2)", "f(x=1), then g(x=2)"
    ]  # fmt: skip
    nested = rule(any_of=[{"items": [{"regex": "a"}]}, {"fields": {"k": {"contains": ["a", 1]}}}])
    assert describe_matcher(nested) == "[/a/] or {k: …a…1…}"


@pytest.mark.parametrize("rules", [None, {}, {"type": "string"}, {"regex": "."}, {"contains": ["a"]},
                                   {"any_of": [{"type": "null"}, {"type": "string"}, {"type": "integer"}]},
                                   {"all_of": [{"type": "string"}, {"regex": "."}]}])  # fmt: skip
def test_what_no_tool_takes_is_wrong_whatever_a_rule_for_many_values_says(rules: Any) -> None:
    parts = {
        "room": {"type": "string", "enum": ["bath", "hall"]},
        "to": {"type": "array"},
        "who": {"type": "string"},
    }
    schema = {"type": "object", "properties": parts, "required": ["who"]}
    offered = {"type": "function", "function": {"name": "f", "parameters": schema}}

    def fits(name: str, value: Any) -> bool:
        wanted = {"who": {"type": "string"}} | ({name: rules} if rules else {})
        asked = {"id": "q", "query": "?", "tools": [offered]}
        accept = [{"function": "f", "arguments": wanted}]
        given = {"who": "a"} | {name: value}
        return match_calls(Query.model_validate(asked | {"accept": accept}), [call("f", **given)]) == RIGHT

    assert not fits("room", "garage")
    assert not fits("to", "ann@x.org")
    assert not fits("who", 5)
    assert not fits("who", None)
    assert fits("room", "bath")
    assert fits("who", "ann")
    assert fits("to", ["a"]) == (rules in (None, {}, {"contains": ["a"]}))


def test_a_rule_that_names_a_value_decides_alone() -> None:
    parts = {"room": {"type": "string", "enum": ["bath"]}}
    offered = {"type": "function", "function": {"name": "f", "parameters": {"properties": parts}}}
    for one in ({"exact": "hall"}, {"text": "Hall"}, {"any_of": [{"type": "integer"}, {"text": "Hall"}]}):
        accept = [{"function": "f", "arguments": {"room": one}}]
        asked = Query.model_validate({"id": "q", "query": "?", "tools": [offered], "accept": accept})
        assert match_calls(asked, [call("f", room="hall")]) == RIGHT
