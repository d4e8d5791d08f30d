"""The tools that a reply may call, with their schemas read once for many texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from stages.core.chat import Tool
from stages.core.dialects.schema import find_types

Tools = Iterable[Tool | Mapping[str, Any]] | None

_MOST_TYPES = 10_000


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
