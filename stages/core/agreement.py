"""Whether a call agrees with the definition of its tool, and a definition with itself.

A call disagrees that has an argument which its definition does not know, lacks a required one, or has a value
of another type, at any depth. Each is told with its place, since the card of a conversion counts them. A
definition that names no parameters has none: a row whose call gives one would teach a model to make it up.
Values beside those that a definition lists are left alone: such a list is often older than the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stages.core.parameters import (
    MISSING,
    UNIONS,
    Misfit,
    Parameters,
    Schema,
    list_types,
    read_list,
    read_parts,
    read_required,
    read_type,
)

_NAME = re.compile(r"[\w.:/-]{1,128}")
# The fit of one is that of its type; 5.0 is looked at where 0.5 does not fit.
_SCALARS = ("", 1, 0.5, True, None)
_BY_TYPE = frozenset((str, int, bool, type(None)))
_PLAIN: tuple[Any, ...] = (*_SCALARS, [], {})  # where no schema says what is in them
_SAYS_MORE = frozenset(("$ref", *UNIONS, "properties", "required", "additionalProperties", "items"))


class Signature:
    """The parameters of one tool, read once for the calls of many rows."""

    __slots__ = ("_fitting", "_fitting_lists", "_parameters")

    def __init__(self, schema: Schema) -> None:
        self._parameters = Parameters(schema)
        self._fitting_lists: set[tuple[str, frozenset[type]]] = set()
        self._fitting = {name: self._find_fitting(name) for name in self._parameters.parts}

    def _find_fitting(self, name: str) -> frozenset[type]:
        part = self._parameters.parts[name]
        probes = _SCALARS if isinstance(part, Mapping) and not _SAYS_MORE.isdisjoint(part) else _PLAIN
        return frozenset(type(value) for value in probes if self._find_misfit(name, value) is None)

    def _find_misfit(self, name: str, value: Any) -> Misfit | None:
        if type(value) is not list:
            return self._parameters.find_misfit(name, value)
        kinds = frozenset(map(type, value))
        if (name, kinds) in self._fitting_lists:
            return None
        misfit = self._parameters.find_misfit(name, value)
        if misfit is None and name in self._parameters.parts and kinds <= _BY_TYPE:
            self._fitting_lists.add((name, kinds))
        return misfit

    def compare(self, arguments: Mapping[str, Any]) -> list[Misfit]:
        """What in the arguments of a call disagrees, in their order, and then what is missing."""
        found: list[Misfit] = []
        for name, value in arguments.items():
            fitting = self._fitting.get(name)
            if (fitting is None or type(value) not in fitting) and (misfit := self._find_misfit(name, value)):
                found.append(misfit)
        return found + [Misfit(name, MISSING) for name in self._parameters.find_missing(arguments)]


def find_faults(name: str, parameters: Schema) -> list[str]:
    """What in a tool's definition cannot be meant: its name, an unknown type, a required nothing."""
    faults = []
    if not _NAME.fullmatch(name):
        faults.append(f"{name[:60]!r} is no name for a tool: use up to 128 letters, digits, _ - . : /")
    for path, schema in _walk(name, parameters):
        unknown = [str(kind)[:40] for kind in list_types(schema) if read_type(kind) is None]
        faults += [f"{path} is of type {kind!r}, which JSON Schema does not have" for kind in unknown]
        if not any(key in schema for key in ("$ref", "patternProperties", *UNIONS)):
            missing = [key for key in read_required(schema) if key not in read_parts(schema)]
            faults += [f"{path} requires {key[:40]!r}, which it does not define" for key in missing]
    return faults


def _walk(path: str, schema: Any) -> Iterator[tuple[str, Schema]]:
    """A schema and all within it, each with its place."""
    waiting = [(path, schema)]
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, Mapping):
            continue
        yield path, schema
        inner: list[tuple[str, Any]] = []
        for key in ("properties", "$defs", "definitions"):
            if isinstance(parts := schema.get(key), Mapping):
                inner += [(f"{path}.{name}", part) for name, part in parts.items()]
        inner += [(f"{path}[]", schema.get("items")), (f"{path}.*", schema.get("additionalProperties"))]
        inner += [(path, branch) for key in UNIONS for branch in read_list(schema, key)]
        waiting += reversed(inner)
