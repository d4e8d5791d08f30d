"""The tools that a reply may call, with their schemas read once for many texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from stages.core.chat import Tool
from stages.core.dialects.schema import find_types

Tools = Iterable[Tool | Mapping[str, Any]] | None

NAME = r"[^\W\d][\w.\-]*+"
"""The name of a tool that Python's calls can hold, dots and strokes in it."""
KEY = r"[^\W\d]\w*+"
"""The name of an argument that they can hold."""

_MOST_TYPES = 10_000
_NAME, _KEY = re.compile(NAME), re.compile(KEY)


class Toolbox(tuple[Tool | Mapping[str, Any], ...]):
    """Tools whose schemas are read once: for many texts, hand a Toolbox and no list to the parsers.

    An empty one says that no tools are offered.
    """

    known = True
    """Whether it is known what is offered."""

    @cached_property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """The JSON Schema of the parameters by tool name; an entry without a name is no function."""
        schemas = dict(map(_read_schema, self))
        schemas.pop("", None)
        return schemas

    @cached_property
    def odd_keys(self) -> dict[str, tuple[str, ...]]:
        """The arguments that Python's calls could not name, longest first, of every tool that has one or
        has such a name itself."""
        odd: dict[str, tuple[str, ...]] = {}
        for name, schema in self.schemas.items():
            properties = schema.get("properties")
            known = properties if isinstance(properties, Mapping) else ()
            keys = [key for key in known if isinstance(key, str) and key and _KEY.fullmatch(key) is None]
            if keys or _NAME.fullmatch(name) is None:
                odd[name] = tuple(sorted(keys, key=len, reverse=True))
        return odd

    @cached_property
    def odd_names(self) -> tuple[str, ...]:
        """The tools of `odd_keys`, longest first: their calls are known by the name as it is written."""
        return tuple(sorted(self.odd_keys, key=len, reverse=True))

    @cached_property
    def _types(self) -> dict[tuple[str, str], frozenset[str]]:
        return {}

    def find_types(self, name: str, key: str) -> frozenset[str]:
        """The JSON types of a tool's parameter; empty where the tool has no schema."""
        types = self._types.get((name, key)) if self else frozenset()
        if types is None:
            schema = self.schemas.get(name)
            types = find_types(schema, key) if schema else frozenset()
            if len(self._types) < _MOST_TYPES:  # a model may invent names without end
                self._types[name, key] = types
        return types


class _Unknown(Toolbox):
    known = False


UNKNOWN = _Unknown()
"""In place of tools that are not known."""


def open_toolbox(tools: Tools) -> Toolbox:
    """The tools as a Toolbox; None stands for tools that are not known."""
    if tools is None:
        return UNKNOWN
    return tools if isinstance(tools, Toolbox) else Toolbox(tools)


def _read_schema(tool: Tool | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(tool, Tool):
        return tool.name, tool.parameters
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return "", {}
    parameters = function.get("parameters")
    return function["name"], dict(parameters) if isinstance(parameters, Mapping) else {}
