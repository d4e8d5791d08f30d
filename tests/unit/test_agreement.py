"""What in a call disagrees with the definition of its tool, and what in a definition cannot be meant."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.agreement import Signature, find_faults
from stages.core.definitions import read_definitions, read_tools_file
from stages.core.errors import StageError

INT, TEXT = {"type": "integer"}, {"type": "string"}
POINT = {"type": "object", "properties": {"x": {"type": "number"}, "y": INT}, "required": ["x"]}
TREE = {
    "type": "object",
    "properties": {"value": INT, "next": {"$ref": "#/$defs/tree"}},
    "required": ["value"],
}


def compare(parts: dict[str, Any], arguments: dict[str, Any], **more: Any) -> list[str]:
    found = Signature({"type": "object", "properties": parts, **more}).compare(arguments)
    return [f"{path}: {why}" for path, why in found]


@pytest.mark.parametrize(
    ("part", "right", "wrong", "why"),
    [
        (INT, [3, -2, 5.0, None], ["3", 0.5, True, [3], {}], "instead of integer"),
        ({"type": "number"}, [3, 0.5, None], ["3", False], "instead of number"),
        (TEXT, ["", "3", None], [3, True, ["a"]], "instead of string"),
        ({"type": "boolean"}, [True, False], [0, 1, "true"], "instead of boolean"),
        ({"type": "null"}, [None], [0, ""], "instead of null"),
        ({"type": ["string", "integer"]}, ["a", 3], [0.5, True, {}], "instead of string or integer"),
        ({"type": "str"}, ["a"], [3], "instead of string"),
        ({"type": "List[int]"}, [[]], [3], "instead of array"),
        ({"anyOf": [TEXT, {"type": "null"}]}, ["a", None], [3, []], "instead of string or null"),
        ({"oneOf": [INT, {"type": "array", "items": INT}]}, [3, [3]], ["a"], "instead of integer or array"),
        ({"allOf": [{"type": ["string", "integer"]}, INT]}, [3], ["a"], "instead of integer"),
        ({"type": "array", "items": INT}, [[], [1, 2]], ["a", {}], "instead of array"),
        ({"type": "object"}, [{}, {"any": 1}], ["{}", []], "instead of object"),
        ({"$ref": "#/$defs/point"}, [{"x": 1}], ["a"], "instead of object"),
        ({"type": "integer", "nullable": True}, [None, 3], ["a"], "instead of integer"),
        ({}, [3, "a", None, [], {}], [], ""),
        ({"description": "whatever"}, [3, "a", []], [], ""),
        ({"type": "any"}, [3, "a", []], [], ""),
        ({"type": "strng"}, [3, "a"], [], ""),
        (True, [3, "a"], [], ""),
        ({"$ref": "https://example.org/schema"}, [3, "a", {}], [], ""),
        ({"enum": ["a", "b"]}, ["a", "c"], [], ""),
    ],
)
def test_a_value_is_of_its_type(part: Any, right: list[Any], wrong: list[Any], why: str) -> None:
    more = {"$defs": {"point": POINT}}
    for value in right:
        assert compare({"a": part}, {"a": value}, **more) == [], value
    for value in wrong:
        (said,) = compare({"a": part}, {"a": value}, **more)
        assert said.startswith("a: "), said
        assert said.endswith(why), said


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (POINT, {"y": 1}, "a.x: required and missing"),
        (POINT, {"x": "1"}, "a.x: string instead of number"),
        (POINT, {"x": 1, "y": 0.5}, "a.y: number instead of integer"),
        ({"type": "array", "items": POINT}, [{"x": 1}, {"x": []}], "a[].x: array instead of number"),
        ({"type": "array", "items": INT}, [1, "2"], "a[]: string instead of integer"),
        ({"anyOf": [POINT, {"type": "null"}]}, {"x": "1"}, "a.x: string instead of number"),
        ({**POINT, "additionalProperties": False}, {"x": 1, "z": 1}, "a.z: not among its arguments"),
        ({"type": "object", "additionalProperties": INT}, {"k": "v"}, "a.k: string instead of integer"),
        (
            {"$ref": "#/$defs/tree"},
            {"value": 1, "next": {"value": "2"}},
            "a.next.value: string instead of integer",
        ),
    ],
)
def test_the_place_within_a_value_is_named(part: Any, value: Any, said: str) -> None:
    assert compare({"a": part}, {"a": value}, **{"$defs": {"tree": TREE}}) == [said]


def test_within_a_value_what_is_left_out_or_null_is_right() -> None:
    assert compare({"a": POINT}, {"a": {"x": 1, "y": None, "other": 3}}) == []
    assert compare({"a": {**POINT, "properties": {"x": {"default": 3}}}}, {"a": {}}) == []


def test_arguments_that_are_unknown_or_missing() -> None:
    parts = {"city": TEXT, "days": INT, "unit": {**TEXT, "default": "C"}}
    asked = {"required": ["city", "unit"]}
    assert compare(parts, {"city": "Oslo", "days": 3}, **asked) == []
    assert compare(parts, {"dayz": 3}, **asked) == [
        "dayz: not among its arguments",
        "city: required and missing",
    ]
    assert compare(parts, {"city": None}, **asked) == ["city: null instead of string"]
    assert compare({}, {"a": 1}) == ["a: not among its arguments"]
    for others in (True, {}, TEXT):
        assert compare(parts, {"city": "Oslo", "more": "a"}, additionalProperties=others, **asked) == []
    assert compare(parts, {"more": 1}, additionalProperties=TEXT) == ["more: integer instead of string"]
    assert compare(parts, {"more": 1}, additionalProperties=False) == ["more: not among its arguments"]
    assert compare(parts, {"x-more": 1}, patternProperties={"^x-": INT}) == []


def test_parameters_of_several_schemas_are_those_of_all() -> None:
    either = {"anyOf": [{"properties": {"id": INT}, "required": ["id"]}, {"properties": {"name": TEXT}}]}
    assert Signature(either).compare({"name": "a"}) == []
    assert Signature(either).compare({"nam": "a"})[0].path == "nam"
    both = {"$ref": "#/$defs/point", "$defs": {"point": POINT}, "allOf": [{"properties": {"z": TEXT}}]}
    assert [m.path for m in Signature(both).compare({"z": 1})] == ["z", "x"]
    assert Signature({"$ref": "elsewhere"}).compare({"a": 1}) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
WORDS = [
    "type",
    "properties",
    "items",
    "anyOf",
    "allOf",
    "$ref",
    "required",
    "additionalProperties",
    "integer",
    "#",
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*WORDS, "a"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(
    st.dictionaries(st.sampled_from(WORDS), ANYTHING, max_size=4),
    st.dictionaries(st.sampled_from("abc"), JSON),
)
def test_no_schema_and_no_value_makes_it_raise(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    Signature(schema).compare(arguments)
    find_faults("f", schema)


def test_a_schema_that_leads_to_itself_in_many_ways_ends() -> None:
    both = {
        "anyOf": [
            {"$ref": "#/$defs/both"},
            {"$ref": "#/$defs/both"},
            {"properties": {"a": {"$ref": "#/$defs/both"}}},
        ]
    }
    schema = {
        "properties": {"a": {"$ref": "#/$defs/both"}},
        "$defs": {"both": {**both, "allOf": both["anyOf"]}},
    }
    value: Any = {"a": 1}
    for _ in range(90):
        value = {"a": value}
    start = time.process_time()
    Signature(schema).compare({"a": value})
    assert time.process_time() - start < 2


# Definitions


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ({"name": "get weather!", "parameters": {}}, "'get weather!' is no name for a tool"),
        (
            {"name": "f", "parameters": {"properties": {"a": {"type": "strng"}}}},
            "f.a is of type 'strng', which",
        ),
        (
            {"name": "f", "parameters": {"properties": {"a": {"items": {"type": ["int", "nul"]}}}}},
            r"f\.a\[\] is of type 'nul', which",
        ),
        (
            {"name": "f", "parameters": {"properties": {"city": TEXT}, "required": ["cty"]}},
            "f requires 'cty'",
        ),
        (
            {"name": "f", "parameters": {"properties": {"a": {**POINT, "required": ["z"]}}}},
            r"f\.a requires 'z', which it does not define",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(tool: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    with pytest.raises(StageError, match=said) as error:
        read_tools_file(tmp_path / "tools.json")
    assert "\n" not in str(error.value)
    assert len(read_definitions([tool]).faults) == 1, "a row's own tools are read all the same"


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "server:files/read.text-2", "parameters": {"properties": {"type": {"type": "str"}}}},
        {"name": "wetter_für", "parameters": {"properties": {"required": TEXT}, "required": ["required"]}},
        {"name": "f", "parameters": {"allOf": [{"properties": {"a": INT}}], "required": ["a"]}},
        {"name": "f", "parameters": {"properties": {"a": {"type": "any"}, "b": {"type": "List[int]"}}}},
        {"name": "f", "parameters": {"a": {"type": "str, optional"}, "b": {"type": "Dict[str, Any]"}}},
    ],
)
def test_what_is_usual_is_no_fault(tool: dict[str, Any]) -> None:
    assert read_definitions([tool]).faults == ()
