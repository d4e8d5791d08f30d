"""Whether the accepted calls of a suite can be right at all: its rules against the types of its tools.

A rule that no value of a parameter's type fits makes every reply wrong, and looks like a model's failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

from stages.core.matcher import Matcher
from stages.core.parameters import JSON_TYPES, PROBES, Parameters
from stages.core.query import Calls, Expected, Query


def find_misfit(query: Query) -> str:
    """What no reply could be right by, with its place; empty where there is none.

    That is a rule that no value fits which its tool takes, or a closed call without what the tool requires.
    """
    for place, expected in _list_expected(query):
        if missing := _find_excluded(query, expected):
            why = "which `arguments` do not name and `closed` forbids: nothing could match"
            return f"{place}: {expected.function} requires {missing}, {why}"
        for name, matcher in expected.arguments.items():
            if misfit := _find_in_rule(matcher, f"{place}.arguments.{name}", _Spot(query, expected, name)):
                return misfit
    return ""


def _find_excluded(query: Query, expected: Expected) -> str:
    """What a tool requires and a closed call forbids; empty where there is nothing."""
    if query.code_mode or not expected.closed:
        return ""
    parameters = Parameters(query.toolbox.schemas[expected.function])
    return ", ".join(parameters.find_missing(expected.arguments))


class _Spot:
    """A place in the arguments of a tool: a parameter, or something within its value."""

    def __init__(self, query: Query, expected: Expected, name: str) -> None:
        self.function = expected.function
        self._name = self._path = name
        self._around: tuple[str | None, ...] = ()  # keys of the objects around it, None for a list
        self._parameters = None if query.code_mode else Parameters(query.toolbox.schemas[expected.function])

    def within(self, key: str | None) -> _Spot:
        """The place under a key of an object here, or without one in a list."""
        inner = copy(self)
        inner._around = (*self._around, key)
        inner._path = f"{self._path}[]" if key is None else f"{self._path}.{key}"
        return inner

    def find_types(self) -> frozenset[str]:
        """The JSON types that a tool takes here, which in Code Mode is text.

        All where by its definition nothing could be given here: one that contradicts itself, or names no
        parameters, is no mistake of a rule.
        """
        if self._parameters is None:
            return frozenset({"string"})
        types = self._find_types()
        return types if types - {"null"} else JSON_TYPES

    def _find_types(self) -> frozenset[str]:
        return frozenset(kind for kind, probe in PROBES.items() if self._misfit(probe) != self._path)

    def takes(self, value: Any) -> bool:
        """Whether a tool takes a value of a fitting type here."""
        if self._parameters is None or not self._find_types() - {"null"}:
            return True
        listed = bool(self._around) or self._parameters.lists(self._name, value)
        return listed and not self._misfit(value).startswith(self._path)

    def _misfit(self, value: Any) -> str:
        """Where a value that has this one, and no more, is not as the definition says; empty where it is."""
        for key in reversed(self._around):
            value = [value] if key is None else {key: value}
        if self._parameters is None:
            return ""
        misfit = self._parameters.find_misfit(self._name, value, partial=bool(self._around))
        return misfit.path if misfit else ""


def _find_in_rule(matcher: Matcher, where: str, spot: _Spot) -> str:
    """What is wrong with a rule, or one within it; empty where nothing is."""
    taken = spot.find_types()
    if not matcher.types:
        return f"{where}: no value fits this rule"
    if not matcher.types & taken:
        types = f"the rule is for {_name(matcher.types)}, and {spot.function} takes {_name(taken)} there"
        return f"{where}: {types}: nothing could match"
    if matcher.rule == "exact" and not spot.takes(matcher.wanted):
        return f"{where}: {spot.function} does not take this value there: nothing could match"
    wanted = matcher.wanted
    if matcher.rule == "any_of":
        found = [_find_in_rule(inner, f"{where}.any_of.{i}", spot) for i, inner in enumerate(wanted)]
        return found[0] if all(found) else ""
    if matcher.rule == "all_of":
        found = [_find_in_rule(inner, f"{where}.all_of.{i}", spot) for i, inner in enumerate(wanted)]
    elif matcher.rule == "items":
        inside = spot.within(None)
        found = [_find_in_rule(inner, f"{where}.items.{i}", inside) for i, inner in enumerate(wanted)]
    elif matcher.rule == "fields":
        found = [_find_in_rule(one, f"{where}.fields.{key}", spot.within(key)) for key, one in wanted.items()]
    else:
        return ""
    return next(filter(None, found), "")


def _list_expected(query: Query) -> Iterator[tuple[str, Expected]]:
    """Every accepted call with its place in the query."""
    for number, accepted in enumerate(query.accept):
        calls = accepted.calls if isinstance(accepted, Calls) else (accepted,)
        for i, expected in enumerate(calls):
            yield f"accept.{number}" + (f".calls.{i}" if isinstance(accepted, Calls) else ""), expected


def _name(types: frozenset[str]) -> str:
    """Types in words; an integer is a number anyway."""
    shown = types - {"integer"} if "number" in types else types
    return " or ".join(sorted(shown))
