"""Give the text of an XML parameter the type that the tool's JSON Schema asks for.

XML carries no types. A text is converted when its whole form is one of a declared type, and stays
text otherwise: a value is never invented, and "02134" under `string` is not a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.core.dialects.literals import NotLiteral, read_json, read_literal
from stages.core.dialects.problems import shorten

TEXT = frozenset(("string",))
_MAX_HOPS = 20

ALIASES = {
    "str": "string", "text": "string", "varchar": "string", "char": "string", "enum": "string",
    "int": "integer", "int32": "integer", "int64": "integer", "uint": "integer", "long": "integer",
    "short": "integer", "unsigned": "integer",
    "float": "number", "double": "number", "decimal": "number", "numeric": "number", "num": "number",
    "float32": "number", "float64": "number",
    "bool": "boolean", "binary": "boolean",
    "dict": "object", "map": "object", "mapping": "object",
    "list": "array", "tuple": "array", "arr": "array", "sequence": "array",
    "none": "null", "nil": "null",
}  # fmt: skip
_TYPES = frozenset(("string", "integer", "number", "boolean", "object", "array", "null"))
_PYTHON_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"),
    (list, "array"), (dict, "object"), (type(None), "null"),
)  # fmt: skip

_INTEGER = re.compile(r"[-+]?[0-9]+")
_EXACT = 2.0**53  # a float below it is the number that was written
_WHOLE = re.compile(r"([-+]?[0-9]+)\.0*")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


class Types(frozenset[str]):
    """The JSON types of a parameter, and the texts that its schema lists as such."""

    words: frozenset[str] = frozenset()


def find_types(schema: Mapping[str, Any], name: str) -> frozenset[str]:
    """The JSON types that a tool's parameter may have; `string` alone where the schema says nothing.

    Follows `$ref` inside the schema, `anyOf`, `oneOf`, `allOf`, `enum`, `const` and `nullable`. Texts that
    are listed beside values of another type are in `Types.words`.
    """
    properties = schema.get("properties")
    part = properties.get(name) if isinstance(properties, Mapping) else None
    if part is None:
        part = schema.get("additionalProperties")
    found = _Found()
    _collect_types(part, schema, found, _MAX_HOPS)
    if not found.types or found.types == TEXT:
        return TEXT
    types = Types(found.types)
    texts = {value for value in found.listed if isinstance(value, str)}
    others = {json.dumps(v) for v in found.listed if v is None or isinstance(v, int | float)}
    types.words = frozenset(texts - others)
    return types


@dataclass
class _Found:
    """What a schema says about one parameter."""

    types: set[str] = field(default_factory=set)
    listed: list[Any] = field(default_factory=list)
    """The values of its enums."""
    followed: set[str] = field(default_factory=set)
    """References: each is followed once, since it may lead to itself."""


def _collect_types(part: Any, root: Mapping[str, Any], found: _Found, hops: int) -> None:
    if not isinstance(part, Mapping) or hops == 0:
        return
    declared = part.get("type")
    for item in declared if isinstance(declared, list) else (declared,):
        if isinstance(item, str):
            lowered = item.strip().lower()
            lowered = ALIASES.get(lowered, lowered)
            found.types.add(lowered if lowered in _TYPES else "string")
    values = part.get("enum", [part["const"]] if "const" in part else [])
    found.listed += values if isinstance(values, list) else ()
    if declared is None:
        for value in values if isinstance(values, list) else ():
            found.types.update(name for kind, name in _PYTHON_TYPES if type(value) is kind)
        if not values and "properties" in part:
            found.types.add("object")
        elif not values and "items" in part:
            found.types.add("array")
    if part.get("nullable") is True:
        found.types.add("null")
    for key in ("anyOf", "oneOf", "allOf"):
        branches = part.get(key)
        for branch in branches if isinstance(branches, list) else ():
            _collect_types(branch, root, found, hops - 1)
    reference = part.get("$ref")
    if isinstance(reference, str) and reference not in found.followed:
        found.followed.add(reference)
        _collect_types(follow_reference(reference, root), root, found, hops - 1)


def follow_reference(reference: str, root: Mapping[str, Any]) -> Any:
    """What a local reference such as `#/$defs/Item` points at; None for any other."""
    here: Any = root
    if not reference.startswith("#"):
        return None
    for step in reference[1:].split("/")[1:]:
        here = here.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(here, Mapping) else None
    return here


def read_typed(text: str, types: frozenset[str]) -> tuple[Any, str]:
    """The value of a parameter's text, and a problem when it fits none of the types (then it is text).

    A text that an enum lists is that text. In a union the narrowest type that the whole text fits wins,
    whatever the order: null, boolean, integer, number, array or object, then string.
    """
    if types == TEXT or (isinstance(types, Types) and text in types.words):
        return text, ""
    word = text.strip()
    if _is_null(word, types):
        return None, ""
    if "boolean" in types and word.lower() in ("true", "false"):
        return word.lower() == "true", ""
    for name, read in (("integer", _read_integer), ("number", _read_number)):
        if name in types and (number := read(word)) is not None:
            return number, ""
    if word.startswith(("{", "[", "(")):
        value = _read_container(word)
        if ("object" if isinstance(value, dict) else "array" if isinstance(value, list) else "") in types:
            return value, ""
    if "string" in types:
        return text, ""
    return text, f"{shorten(text)} is not {' or '.join(sorted(types))} and stays text"


def _is_null(word: str, types: frozenset[str]) -> bool:
    """Beside text, only the two spellings that a template can write for null are null."""
    if "string" in types:
        return "null" in types and word in ("null", "None")
    return word.lower() in ("null", "none")


def _read_integer(word: str) -> int | None:
    whole = _WHOLE.fullmatch(word)
    word = whole[1] if whole else word
    if "e" in word.lower() and isinstance(number := _read_number(word), float) and number.is_integer():
        return int(number) if abs(number) < _EXACT else None
    if not _INTEGER.fullmatch(word) or len(word) > 4000:
        return None
    return int(word)


def _read_number(word: str) -> int | float | None:
    if _INTEGER.fullmatch(word):
        return int(word) if len(word) <= 4000 else None
    if not _NUMBER.fullmatch(word):
        return None
    value = float(word)
    return None if value in (float("inf"), float("-inf")) else value


def _read_container(word: str) -> Any:
    """A JSON array or object, or the Python spelling of one; None when the text is neither."""
    for read in (read_json, read_literal):
        try:
            value, end = read(word, 0)
        except NotLiteral:
            continue
        if end == len(word):
            return value
    return None
