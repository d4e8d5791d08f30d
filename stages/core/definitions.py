"""Tool definitions in whatever shape a row or a file gives them, as the OpenAI shape.

Understood are a list or JSON text of OpenAI tools, bare functions, functions with `input_schema`,
and parameters given by name without the JSON Schema around them, as some data sets have them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import orjson

from stages.core.agreement import find_faults
from stages.core.chat import Tool
from stages.core.dialects import Toolbox
from stages.core.dialects.json_calls import walk_values
from stages.core.dialects.literals import NotLiteral
from stages.core.dialects.scanning import skip_separator
from stages.core.dialects.schema import ALIASES
from stages.core.errors import StageError
from stages.core.exact import load_json
from stages.core.tools import EXECUTE_CODE
from stages.core.words import name_some

Definition = dict[str, Any]
"""`{"type": "function", "function": {"name", "description", "parameters", …}}`."""

SCHEMA_MADE = "parameters of a tool made a JSON Schema"
NULLS_DROPPED = "foreign nulls dropped from a tool's definition"

_DEEPEST = 100  # levels of objects and lists in a definition; no tool has a fifth of it
_WRAPPING = frozenset(("type", "function"))
_UNTYPED = frozenset(("description", "title", "default", "examples"))
_SAYS_TYPE = frozenset(("$ref", "anyOf", "oneOf", "allOf", "enum", "const", "properties", "items"))
_NULLABLE = frozenset(("default", "const", "example"))
_ITEMS = re.compile(r"(?:list|array|sequence|tuple|set)\[(.*)\]", re.IGNORECASE | re.DOTALL)
_OPTIONAL = re.compile(r"optional\[(.*)\]", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, eq=False)
class Definitions:
    """The tools of a row, and what had to be changed in them. Rows with the same tools share one."""

    tools: tuple[Definition, ...] = ()
    changes: tuple[str, ...] = ()

    @cached_property
    def box(self) -> Toolbox:
        """The tools as the parsers take them."""
        return Toolbox(self.tools)

    @cached_property
    def typed(self) -> dict[str, frozenset[str]]:
        """The parameters of each tool whose type the definition says."""
        return {name: find_typed(schema) for name, schema in self.box.schemas.items()}

    @cached_property
    def encoded(self) -> bytes:
        """The tools as JSON."""
        return orjson.dumps(self.tools)

    @cached_property
    def faults(self) -> tuple[str, ...]:
        """What in them cannot be meant."""
        functions = (tool["function"] for tool in self.tools)
        return tuple(fault for f in functions for fault in find_faults(f["name"], f["parameters"]))

    @cached_property
    def is_code_mode(self) -> bool:
        """Whether they are Code Mode's one tool, as a row that was converted before has it."""
        return self.tools == (EXECUTE_CODE.to_json(),)


def find_typed(schema: Mapping[str, Any]) -> frozenset[str]:
    """The parameters to which a schema gives a type."""
    properties = schema.get("properties")
    return frozenset(
        name
        for name, part in (properties.items() if isinstance(properties, Mapping) else ())
        if isinstance(part, Mapping) and not _UNTYPED.issuperset(part)
    )


NONE = Definitions()


def read_definitions(value: Any) -> Definitions:
    """The tools that a row's column holds. Rows that share their tools share the objects.

    Raises ValueError with the reason when it holds something else.
    """
    if value is None or value in ("", [], {}):
        return NONE
    try:
        return _read_json(value if isinstance(value, str | bytes) else orjson.dumps(value))
    except TypeError as error:
        raise ValueError(f"tools: {error}") from None


def read_tools_file(path: Path) -> tuple[Tool, ...]:
    """The tools of a `tools.json`, none for `[]`. Raises StageError when it is missing or unusable."""
    try:
        text = path.read_text("utf-8-sig")
        read = read_definitions(text)
    except (FileNotFoundError, IsADirectoryError):
        raise StageError(f"no file {path}: --tools takes a JSON file with a list of tools") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise StageError(f"{path}: {error}: --tools takes a JSON list of tools in OpenAI shape") from None
    tools = read.tools
    if not tools and "".join(text.split()) != "[]":
        raise StageError(
            f"{path} defines no tool: --tools takes a JSON list of tools in OpenAI shape, [] for none"
        )
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise StageError(f"{path} defines {twice!r} twice: keep one of the definitions")
    if read.faults:
        raise StageError(f"{path}: {name_some(read.faults, 3, '; ')}: correct it there")
    return tuple(map(Tool.from_json, tools))


@lru_cache(maxsize=512)
def _read_json(text: str | bytes) -> Definitions:
    try:
        value = load_json(text)
    except ValueError:
        return adopt(read_values(text.decode() if isinstance(text, bytes) else text))
    if isinstance(value, str):
        return _read_json(value)
    return adopt(value if isinstance(value, list) else [value])


def read_values(text: str) -> list[Any]:
    """The objects in a text of JSON objects or lists one after the other, Python's quotes included.

    Raises ValueError where it holds anything else.
    """
    values, end = read_objects(text, skip_separator(text, 0), "tools are")
    if end < len(text):
        raise ValueError(f"tools are not JSON: no object or list at character {end}")
    return values


def read_objects(text: str, start: int, said: str) -> tuple[list[Any], int]:
    """The objects, or those in lists, from `start` on, and the position behind the last and its white space.

    Raises ValueError, beginning with what is `said` of them, where one is no JSON.
    """
    found: list[Any] = []
    end = start
    try:
        for written in walk_values(text, start):
            value, end = written.value, written.end
            found += value if isinstance(value, list) else [value]
    except NotLiteral as error:
        raise ValueError(f"{said} not JSON: {error} at character {error.pos}") from None
    return found, skip_separator(text, end) if end > start else start


def adopt(items: Iterable[Any]) -> Definitions:
    """Tools in any understood shape as the OpenAI shape.

    Raises ValueError for what is none, and for what a row of JSON cannot hold.
    """
    changes: dict[str, None] = {}
    given = [_open_text(item) for item in items]
    _refuse_unwritable(given)
    tools = tuple(_adopt_one(item, changes) for item in given)
    if len({tool["function"]["name"] for tool in tools}) < len(tools):
        changes["a tool of the row defined twice"] = None
    own = Definitions(tools, tuple(changes))
    try:
        _ = own.encoded
    except TypeError as error:  # half of a surrogate pair, an integer beyond 64 bits
        raise ValueError(f"tools: text or a number that JSON cannot hold: {error}") from None
    return own


def _open_text(item: Any) -> Any:
    """A definition, or the one in a JSON text."""
    if not isinstance(item, str):
        return item
    try:
        return _load_text(item)
    except json.JSONDecodeError:
        return item


def _load_text(text: str) -> Any:
    """The value of a JSON text in a definition. Raises ValueError as `_refuse_unwritable` does."""
    value = load_json(text)
    _refuse_unwritable(value)
    return value


def _refuse_unwritable(given: Any) -> None:
    """Raise ValueError for a number that would become null, and for nesting that cannot be written."""
    waiting: list[tuple[Any, int]] = [(given, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"tools: nested more than {_DEEPEST} levels deep")
        if isinstance(item, Mapping):
            waiting += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list | tuple):
            waiting += [(inner, depth + 1) for inner in item]
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("tools: a number that is not finite, which JSON cannot hold")


def _adopt_one(item: Any, changes: dict[str, None]) -> Definition:
    function = _open_text(item.get("function", item)) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError("tools: a tool needs a name")
    if function is not item:
        for key, value in item.items():
            if key not in _WRAPPING and value not in (None, "", [], {}):
                changes[f"{str(key)[:40]} beside a tool's function not kept"] = None
    else:
        function = {key: value for key, value in item.items() if (key, value) != ("type", "function")}
    if "parameters" not in function and "input_schema" in function:
        function = {("parameters" if k == "input_schema" else k): v for k, v in function.items()}
        changes[SCHEMA_MADE] = None
    written = _without_nulls(function, changes)
    written["parameters"] = _read_parameters(written, changes)
    written.setdefault("description", "")
    ordered = {key: written.pop(key) for key in ("name", "description", "parameters")}
    return {"type": "function", "function": ordered | written}


def _read_parameters(function: Mapping[str, Any], changes: dict[str, None]) -> dict[str, Any]:
    parameters = function.get("parameters")
    if isinstance(parameters, str):
        try:
            parameters = _load_text(parameters or "{}")
        except json.JSONDecodeError:
            raise ValueError(f"tools: the parameters of {function['name']} are no JSON") from None
        changes[SCHEMA_MADE] = None
    if parameters in (None, {}, []):
        return {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise ValueError(f"tools: the parameters of {function['name']} must be an object")
    if isinstance(parameters.get("properties"), Mapping):
        if parameters.get("type") in ("object", None):
            return {"type": "object", **parameters}
        changes[SCHEMA_MADE] = None  # `"type": "dict"`
        return {**parameters, "type": "object"}
    if any(key in parameters for key in ("$ref", "anyOf", "oneOf", "allOf")):
        return dict(parameters)
    if all(isinstance(part, Mapping) for part in parameters.values()):
        changes[SCHEMA_MADE] = None
        return _wrap_parameters(parameters)
    return {"type": "object", "properties": {}, **parameters}


def _wrap_parameters(parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`{"city": {"type": "str, optional", …}}` as a JSON Schema; whatever is not optional is required."""
    properties, required = {}, []
    for name, part in parameters.items():
        kind, optional = _read_type(part)
        properties[name] = {**part, **kind}
        if not optional and "default" not in part and part.get("required") is not False:
            required.append(name)
        if isinstance(part.get("required"), bool):
            properties[name].pop("required")
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _read_type(part: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """What the type of a parameter is in JSON Schema, and whether the parameter may be left out.

    Nothing where the schema says it in its own way: in a list of types, or in other words.
    """
    written = part.get("type", "")
    if not isinstance(written, str) or not (written or _SAYS_TYPE.isdisjoint(part)):
        return {}, False
    kind, *optional = written.rsplit(", optional", 1)
    if inner := _OPTIONAL.fullmatch(kind.strip()):
        kind, optional = inner[1], [""]
    return _name_type(kind), bool(optional)


def _name_type(kind: str, depth: int = 0) -> dict[str, Any]:
    """The JSON Schema of a type as Python writes it: `str`, `List[int]`, `Dict[str, Any]`."""
    kind = kind.strip()
    if depth < _DEEPEST and (items := _ITEMS.fullmatch(kind)) is not None:
        return {"type": "array", "items": _name_type(items[1].split(",")[0], depth + 1)}
    lowered = kind.split("[")[0].lower()
    return {"type": ALIASES.get(lowered, lowered if lowered in ALIASES.values() else "string")}


def _without_nulls(value: Any, changes: dict[str, None]) -> Any:
    """A definition without the nulls that columns of one type for all rows fill in."""
    if isinstance(value, list):
        return [_without_nulls(item, changes) if isinstance(item, dict | list) else item for item in value]
    kept = {}
    for key, inner in value.items():
        if inner is None and key not in _NULLABLE:
            changes[NULLS_DROPPED] = None
        elif key == "enum":
            kept[key] = inner
        else:
            kept[key] = _without_nulls(inner, changes) if isinstance(inner, dict | list) else inner
    return kept
