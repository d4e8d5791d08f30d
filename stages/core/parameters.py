"""What the JSON Schema of a tool says of its parameters: which there are, which it needs, what each may be.

This is the one reading of a schema for whoever asks whether a call fits its tool. How strictly to take it is
theirs to say: `agreement.py` for rows of data, `fitting.py` for the rules of a suite, and eval's
`matching.py` for the calls of a reply.

References and unions are followed. A type that nobody knows forbids nothing, and what a schema asks beyond
names and types (`minimum`, `pattern`) is not looked at; the values that it lists are a question of their own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from stages.core.dialects.schema import ALIASES, follow_reference
from stages.core.matcher import same_json

UNKNOWN, MISSING = "not among its arguments", "required and missing"
UNIONS = ("anyOf", "oneOf", "allOf")

Schema = Mapping[str, Any]

_MOST_HOPS = 20  # references and branches on the way to one place
_MOST_STEPS = 10_000
_ANY = "any"
_KINDS: dict[type, str] = {
    str: "string", int: "integer", float: "number", bool: "boolean",
    list: "array", dict: "object", type(None): "null",
}  # fmt: skip
JSON_TYPES = frozenset(_KINDS.values())
_TYPES = JSON_TYPES | {_ANY}
PROBES: dict[str, Any] = {
    "string": "", "integer": 1, "number": 0.5, "boolean": True, "array": [], "object": {}, "null": None,
}  # fmt: skip


class Misfit(NamedTuple):
    """A place in a value that its schema does not allow, and why."""

    path: str
    why: str


class Parameters:
    """The parameters of one tool."""

    __slots__ = ("_root", "others", "parts", "required")

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self.parts: dict[str, Any] = {}
        """The schema of each that is named."""
        self.required: dict[str, None] = {}
        """Those that every call must have, in their order; one with a default is none of them."""
        self.others: Any = False
        """What else may be given: nothing (False), anything, or what this schema says."""
        self._collect(schema, set(), required=True)

    def _collect(self, schema: Any, seen: set[int], *, required: bool) -> None:
        if not isinstance(schema, Mapping):
            self.others = True  # a reference that leads nowhere: anything may be meant
            return
        if id(schema) in seen:
            return
        seen.add(id(schema))
        self.parts = {**read_parts(schema), **self.parts}
        if required:
            self.required |= dict.fromkeys(_read_needed(schema))
        more = schema.get("additionalProperties", "patternProperties" in schema)
        self.others = self.others if more is False else more
        if isinstance(reference := schema.get("$ref"), str):
            self._collect(follow_reference(reference, self._root), seen, required=required)
        for key in UNIONS:
            for branch in read_list(schema, key):
                self._collect(branch, seen, required=required and key == "allOf")

    def find_missing(self, given: Container[str]) -> list[str]:
        """The required ones that are not given."""
        return [name for name in self.required if name not in given]

    def find_misfit(self, name: str, value: Any, *, partial: bool = False) -> Misfit | None:
        """What is wrong with an argument, None where it fits; null fits one that may be left out.

        A `partial` one is not whole: the objects in it may lack what they require.
        """
        if name not in self.parts and self.others is False:
            return Misfit(name, UNKNOWN)
        if value is None and name in self.parts and name not in self.required:
            return None
        return _Search(self._root, partial).find(value, self.parts.get(name, self.others), name)

    def lists(self, name: str, value: Any) -> bool:
        """Whether an argument is one of the values that its own schema lists, if it lists any."""
        part = self.parts.get(name)
        if not isinstance(part, Mapping) or value is None:
            return True
        listed = [part["const"]] if "const" in part else read_list(part, "enum")
        return not listed or any(same_json(value, one) for one in listed)


class _Search:
    """The search for the first place in a value that its schema does not allow.

    A schema that leads to itself in many ways could be followed for ever: after enough steps all fits.
    """

    __slots__ = ("_left", "_partial", "_root")

    def __init__(self, root: Schema, partial: bool) -> None:
        self._root, self._partial = root, partial
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
        together = read_list(schema, "allOf")
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
            branches = read_list(schema, key)
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
        parts, required = read_parts(schema), _read_needed(schema)
        others = schema.get("additionalProperties", True)
        missing = next((name for name in required if name not in value), None)
        if missing is not None and not self._partial:
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
    names = [read_type(name) for name in list_types(schema)]
    return [] if None in names else [name for name in names if name]


def list_types(schema: Schema) -> list[Any]:
    """What a schema has under `type`, as a list."""
    declared = schema.get("type")
    return declared if isinstance(declared, list) else [] if declared is None else [declared]


def read_type(name: Any) -> str | None:
    """A type in JSON Schema's words, None where nobody knows it: `str` and `List[int]` are understood too."""
    if not isinstance(name, str):
        return None
    word = name.strip().lower().partition("[")[0]
    word = ALIASES.get(word, word)
    return word if word in _TYPES else None


def read_required(schema: Schema) -> list[str]:
    """The names under `required`."""
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []


def _read_needed(schema: Schema) -> list[str]:
    """What is required of an object and has no default."""
    parts = read_parts(schema)
    return [name for name in read_required(schema) if not _has_default(parts.get(name))]


def _has_default(part: Any) -> bool:
    return isinstance(part, Mapping) and "default" in part


def read_parts(schema: Schema) -> Mapping[str, Any]:
    """The schemas under `properties`."""
    parts = schema.get("properties")
    return parts if isinstance(parts, Mapping) else {}


def read_list(schema: Schema, key: str) -> list[Any]:
    """The list under a key, such as the branches of a union; empty where there is none."""
    value = schema.get(key)
    return value if isinstance(value, list) else []
