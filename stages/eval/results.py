"""Typed results as code in the sandbox sees them, and which of their fields it reads.

A field that crosses with the result is read without a word to this side; a field that stays here is
asked for by name each time. The first way always works, the second tells what was read but fails inside
functions that the interpreter itself calls back, such as the key of a sort. So code runs with the
fields sent along, and a second time with those held back that can be, only to see what it asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_monty import ClassInstance

from stages.core.tools import FUNCTIONS

METHODS = ("model_dump", "model_dump_json")  # what code may call on a result, besides reading its fields
WIDEST = 8  # columns of an indent: methods run on this side, where a large one would fill the memory
LOST = re.compile(r"'(\w+)' object has no attribute '(\w+)'")


@dataclass
class Reads:
    """The fields that code asked for, as `TYPE.FIELD`; `held` are those that stay on this side."""

    held: frozenset[str] = frozenset()
    used: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)

    def note(self, result: BaseModel, name: str) -> None:
        """Code asked for a name. Names that every such object has are neither used nor missing."""
        if name in type(result).model_fields:
            self.used.add(f"{type(result).__name__}.{name}")
        elif not hasattr(BaseModel, name):
            self.missing.add(f"{type(result).__name__}.{name}")


class TypedResult(ClassInstance):
    """A result, or a finding in one, that notes what code asks of it."""

    def __init__(self, value: BaseModel, reads: Reads) -> None:
        fields = type(value).model_fields
        self.reads = reads
        sent = [name for name in fields if f"{type(value).__name__}.{name}" not in reads.held]
        super().__init__(value, eager_attrs=sent, lazy_attrs=list(fields), allowed_methods=METHODS)

    def convert_value(self, /, name: str, value: Any) -> Any:
        """A list of findings becomes a list of results like this one; other values are plain."""
        if isinstance(value, list):
            return [TypedResult(item, self.reads) if isinstance(item, BaseModel) else item for item in value]
        return value

    def lookup_lazy_attrs(self, name: str) -> Any:
        """A field that was held back, or a name that is no field. Raises AttributeError for the latter."""
        self.reads.note(self.value, name)
        return super().lookup_lazy_attrs(name)

    def call_method(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One of METHODS, with a mode or an indent. Raises AttributeError for any other name."""
        if name not in METHODS:
            self.reads.note(self.value, name)
        elif args or not all(_is_harmless(key, value) for key, value in kwargs.items()):
            raise NotImplementedError(f"{name}() takes nothing here but a mode and a small indent")
        return super().call_method(name, args, kwargs)


def _is_harmless(key: str, value: Any) -> bool:
    if key == "indent":
        return isinstance(value, int) and 0 <= value <= WIDEST
    return key == "mode" and value in ("json", "python")


@cache
def all_fields() -> frozenset[str]:
    """Every field of every typed result, as `TYPE.FIELD`."""
    found: set[str] = set()
    for function in FUNCTIONS.values():
        if function.result is not None:
            found |= _fields(function.result)
    return frozenset(found)


def _fields(result: type[BaseModel]) -> set[str]:
    found = set()
    for name, info in result.model_fields.items():
        found.add(f"{result.__name__}.{name}")
        for item in getattr(info.annotation, "__args__", ()):
            if isinstance(item, type) and issubclass(item, BaseModel):
                found |= _fields(item)
    return found


def lost_field(message: str) -> str | None:
    """The field that an AttributeError says is not there although it is: it was held back."""
    found = LOST.search(message)
    name = f"{found[1]}.{found[2]}" if found else None
    return name if name in all_fields() else None
