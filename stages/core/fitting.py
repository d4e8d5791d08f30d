"""Whether the accepted calls of a suite can be right at all: its rules against the types of its tools.

A rule that no value of a parameter's type fits makes every reply wrong, and looks like a model's failure.
"""

from __future__ import annotations

from collections.abc import Iterator

from stages.core.parameters import JSON_TYPES, Parameters
from stages.core.query import Calls, Expected, Query


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
    """The JSON types that a parameter takes.

    All where by its definition nothing could be given there: one that contradicts itself, or names no
    parameters, is no mistake of the rule.
    """
    if query.code_mode:
        return frozenset({"string"})
    types = Parameters(query.toolbox.schemas[function]).find_types(name)
    return types if types - {"null"} else JSON_TYPES


def _name(types: frozenset[str]) -> str:
    """Types in words; an integer is a number anyway."""
    shown = types - {"integer"} if "number" in types else types
    return " or ".join(sorted(shown))
