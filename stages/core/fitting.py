"""Whether the accepted calls of a suite can be right at all: its rules against the types of its tools.

A rule that no value of a parameter's type fits makes every reply wrong, and looks like a model's failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.core.dialects.schema import ALIASES
from stages.core.matcher import JSON_TYPES
from stages.core.query import Calls, Expected, Query

_ELSEWHERE = ("$ref", "anyOf", "oneOf", "allOf")  # a type that is said there, and not looked for


def find_misfit(query: Query) -> str:
    """The first rule that no value fits which its tool takes, with its place; empty where there is none."""
    for place, expected in _list_expected(query):
        for name, matcher in expected.arguments.items():
            taken = _types_taken(query, expected.function, name)
            if matcher.types & taken:
                continue
            where = f"{place}.arguments.{name}"
            if not matcher.types:
                return f"{where}: no value fits this rule"
            return (
                f"{where}: the rule is for {_name(matcher.types)}, and {expected.function} takes "
                f"{_name(taken)} there: nothing could match"
            )
    return ""


def _list_expected(query: Query) -> Iterator[tuple[str, Expected]]:
    """Every accepted call with its place in the query."""
    for number, accepted in enumerate(query.accept):
        calls = accepted.calls if isinstance(accepted, Calls) else (accepted,)
        for i, expected in enumerate(calls):
            yield f"accept.{number}" + (f".calls.{i}" if isinstance(accepted, Calls) else ""), expected


def _types_taken(query: Query, function: str, name: str) -> frozenset[str]:
    """The JSON types that a parameter takes; all of them where its definition does not plainly say it.

    One that may be left out takes null: many models fill it in.
    """
    if query.code_mode:
        return frozenset({"string"})
    schema = query.toolbox.schemas[function]
    properties = schema.get("properties")
    part = properties.get(name) if isinstance(properties, Mapping) else None
    said = _types_said(part) if isinstance(part, Mapping) else frozenset[str]()
    if not said or not said <= JSON_TYPES:
        return JSON_TYPES
    required = schema.get("required")
    must = isinstance(required, list) and name in required
    return said | ({"integer"} if "number" in said else set()) | (set() if must else {"null"})


def _types_said(part: Mapping[str, Any]) -> frozenset[str]:
    said = part.get("type")
    names = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    if part.get("nullable") is True:
        names = [*names, "null"] if names else []
    if any(key in part for key in _ELSEWHERE) or not all(isinstance(name, str) for name in names):
        return frozenset()
    return frozenset(ALIASES.get(name.lower(), name.lower()) for name in names)


def _name(types: frozenset[str]) -> str:
    """Types in words; an integer is a number anyway."""
    shown = types - {"integer"} if "number" in types else types
    return " or ".join(sorted(shown))
