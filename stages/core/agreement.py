"""Whether a call agrees with the definition of its tool, and a definition with itself.

A call disagrees that has an argument which its definition does not know, lacks a required one, or has a value
of another type, at any depth. What a schema asks beyond that (`enum`, `minimum`, `pattern`) is not looked at,
and a type that nobody knows forbids nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from stages.core.dialects.schema import ALIASES, follow_reference

UNKNOWN, MISSING = "not among its arguments", "required and missing"

Schema = Mapping[str, Any]

_MOST_HOPS = 20  # references and branches on the way to one place
_MOST_STEPS = 10_000
_NAME = re.compile(r"[\w.:/-]{1,128}")
_BRANCHES = ("anyOf", "oneOf", "allOf")
_ANY = "any"
_KINDS: dict[type, str] = {
    str: "string", int: "integer", float: "number", bool: "boolean",
    list: "array", dict: "object", type(None): "null",
}  # fmt: skip
_TYPES = frozenset((*_KINDS.values(), _ANY))
# The fit of one is that of its type; 5.0 is looked at where 0.5 does not fit.
_SCALARS = ("", 1, 0.5, True, None)
_BY_TYPE = frozenset((str, int, bool, type(None)))
_PLAIN: tuple[Any, ...] = (*_SCALARS, [], {})  # where no schema says what is in them
_SAYS_MORE = frozenset(("$ref", *_BRANCHES, "properties", "required", "additionalProperties", "items"))


class Misfit(NamedTuple):
    """A place in a value that its schema does not allow, and why."""

    path: str
    why: str


class Signature:
    """The parameters of one tool, read once for the calls of many rows."""

    __slots__ = ("_fitting", "_fitting_lists", "_others", "_parts", "_required", "_root")

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._parts: dict[str, Any] = {}
        self._required: dict[str, None] = {}
        self._others: Any = False
        self._collect(schema, set(), required=True)
        self._fitting_lists: set[tuple[str, frozenset[type]]] = set()
        self._fitting = {name: self._find_fitting(name) for name in self._parts}

    def _collect(self, schema: Any, seen: set[int], *, required: bool) -> None:
        if not isinstance(schema, Mapping):
            self._others = True  # a reference that leads nowhere: anything may be meant
            return
        if id(schema) in seen:
            return
        seen.add(id(schema))
        self._parts = {**_read_parts(schema), **self._parts}
        if required:
            self._required |= dict.fromkeys(_read_needed(schema))
        more = schema.get("additionalProperties", "patternProperties" in schema)
        self._others = self._others if more is False else more
        if isinstance(reference := schema.get("$ref"), str):
            self._collect(follow_reference(reference, self._root), seen, required=required)
        for key in _BRANCHES:
            for branch in _read_list(schema, key):
                self._collect(branch, seen, required=required and key == "allOf")

    def _find_fitting(self, name: str) -> frozenset[type]:
        part = self._parts[name]
        probes = _SCALARS if isinstance(part, Mapping) and not _SAYS_MORE.isdisjoint(part) else _PLAIN
        fitting = {type(value) for value in probes if self._find_misfit(name, value) is None}
        return frozenset(fitting if name in self._required else {*fitting, type(None)})

    def _find_misfit(self, name: str, value: Any) -> Misfit | None:
        if type(value) is not list:
            return _Search(self._root).find(value, self._parts.get(name, self._others), name)
        kinds = frozenset(map(type, value))
        if (name, kinds) in self._fitting_lists:
            return None
        misfit = _Search(self._root).find(value, self._parts.get(name, self._others), name)
        if misfit is None and name in self._parts and kinds <= _BY_TYPE:
            self._fitting_lists.add((name, kinds))
        return misfit

    def compare(self, arguments: Mapping[str, Any]) -> list[Misfit]:
        """What in the arguments of a call disagrees, in their order, and then what is missing."""
        found: list[Misfit] = []
        for name, value in arguments.items():
            fitting = self._fitting.get(name)
            if fitting is None and self._others is False:
                found.append(Misfit(name, UNKNOWN))
            elif (fitting is None or type(value) not in fitting) and (
                misfit := self._find_misfit(name, value)
            ):
                found.append(misfit)
        found += [Misfit(name, MISSING) for name in self._required if name not in arguments]
        return found


class _Search:
    """The search for the first place in a value that its schema does not allow.

    A schema that leads to itself in many ways could be followed for ever: after enough steps all fits.
    """

    __slots__ = ("_left", "_root")

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._left = _MOST_STEPS

    def find(self, value: Any, schema: Any, path: str, hops: int = _MOST_HOPS) -> Misfit | None:
        """That place, None where all of the value is allowed."""
        self._left -= 1
        if not isinstance(schema, Mapping) or not hops or self._left < 0:
            return None
        if value is None and schema.get("nullable") is True:
            return None
        types = _read_types(schema)
        if types and not any(_is_of_type(value, name) for name in types):
            return Misfit(path, _name_misfit(value, types))
        together = _read_list(schema, "allOf")
        if isinstance(reference := schema.get("$ref"), str):
            together = [follow_reference(reference, self._root), *together]
        found = (self.find(value, branch, path, hops - 1) for branch in together)
        if misfit := next(filter(None, found), None) or self._find_in_union(value, schema, path, hops):
            return misfit
        if isinstance(value, dict):
            return self._find_in_object(value, schema, path, hops)
        if isinstance(value, list):
            found = (self.find(item, schema.get("items"), f"{path}[]", hops) for item in value)
            return next(filter(None, found), None)
        return None

    def _find_in_union(self, value: Any, schema: Schema, path: str, hops: int) -> Misfit | None:
        for key in ("anyOf", "oneOf"):
            branches = _read_list(schema, key)
            misfits = [m for branch in branches if (m := self.find(value, branch, path, hops - 1))]
            if not misfits or len(misfits) < len(branches):
                continue
            deepest = max(misfits, key=lambda misfit: len(misfit.path))
            if len(deepest.path) > len(path):
                return deepest
            return Misfit(
                path, _name_misfit(value, [misfit.why.partition(" instead of ")[2] for misfit in misfits])
            )
        return None

    def _find_in_object(
        self, value: Mapping[str, Any], schema: Schema, path: str, hops: int
    ) -> Misfit | None:
        """The same for an object's fields; others than those named are forbidden where the schema says so."""
        parts, required = _read_parts(schema), _read_needed(schema)
        others = schema.get("additionalProperties", True)
        if missing := next((name for name in required if name not in value), None):
            return Misfit(f"{path}.{missing}", MISSING)
        for name, inner in value.items():
            if name not in parts and others is False and "patternProperties" not in schema:
                return Misfit(f"{path}.{name}", UNKNOWN)
            if inner is None and name not in required:
                continue
            if misfit := self.find(inner, parts.get(name, others), f"{path}.{name}", hops):
                return misfit
        return None


def _name_misfit(value: Any, wanted: Iterable[str]) -> str:
    return f"{_KINDS.get(type(value), 'string')} instead of {' or '.join(dict.fromkeys(wanted))}"


def _is_of_type(value: Any, name: str) -> bool:
    """Whether a value is of a JSON type: every integer is a number, and 5.0 is an integer."""
    kind = _KINDS.get(type(value), "string")
    if kind == name or name == _ANY:
        return True
    return (kind == "integer" and name == "number") or (
        kind == "number" and name == "integer" and float(value).is_integer()
    )


def _read_types(schema: Schema) -> list[str]:
    """The JSON types that a schema names, none where one of them is unknown."""
    names = [_read_name(name) for name in _list_types(schema)]
    return [] if None in names else [name for name in names if name]


def _list_types(schema: Schema) -> list[Any]:
    declared = schema.get("type")
    return declared if isinstance(declared, list) else [] if declared is None else [declared]


def _read_name(name: Any) -> str | None:
    """A type in JSON Schema's words: `str` and `List[int]` are understood too."""
    if not isinstance(name, str):
        return None
    word = name.strip().lower().partition("[")[0]
    word = ALIASES.get(word, word)
    return word if word in _TYPES else None


def _read_required(schema: Schema) -> list[str]:
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []


def _read_needed(schema: Schema) -> list[str]:
    """What is required of an object and has no default."""
    parts = _read_parts(schema)
    return [name for name in _read_required(schema) if not _has_default(parts.get(name))]


def _has_default(part: Any) -> bool:
    return isinstance(part, Mapping) and "default" in part


def _read_parts(schema: Schema) -> Mapping[str, Any]:
    parts = schema.get("properties")
    return parts if isinstance(parts, Mapping) else {}


def _read_list(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def find_faults(name: str, parameters: Schema) -> list[str]:
    """What in a tool's definition cannot be meant: its name, an unknown type, a required nothing."""
    faults = []
    if not _NAME.fullmatch(name):
        faults.append(f"{name[:60]!r} is no name for a tool: use up to 128 letters, digits, _ - . : /")
    for path, schema in _walk(name, parameters):
        unknown = [str(kind)[:40] for kind in _list_types(schema) if _read_name(kind) is None]
        faults += [f"{path} is of type {kind!r}, which JSON Schema does not have" for kind in unknown]
        if not any(key in schema for key in ("$ref", "patternProperties", *_BRANCHES)):
            missing = [key for key in _read_required(schema) if key not in _read_parts(schema)]
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
        inner += [(path, branch) for key in _BRANCHES for branch in _read_list(schema, key)]
        waiting += reversed(inner)
