"""Tools from the calls of data that defines none: names, arguments, types, and how often each occurs.

A census counts the calls of rows without tools of their own. Censuses of shards are merged, so the
result does not depend on how the data was divided, samples and the order of tools aside. What it says
is a proposal: `tools_review.md` shows on what it rests and what is doubtful, `tools.json` is meant to
be corrected by hand and given as `--tools` then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from stages.convert_data.instructions import find_definitions
from stages.convert_data.shapes import SourceRow, read_row
from stages.core.chat import Tool, ToolCall
from stages.core.definitions import NONE, Definitions, read_definitions
from stages.core.dialects import parse_any
from stages.core.dialects.schema import read_typed
from stages.core.tools import EXECUTE_CODE, FUNCTIONS, is_code_mode_call

SAMPLES = 4  # of the values of an argument
MOST_TOOLS = 10_000
MOST_ARGUMENTS = 256  # of a tool or an object; a model's own words as keys are no parameters
_MANY_KEYS = 20
_STRAY = 0.02  # share of foreign calls that does not make Code Mode's data another's
_DEEPEST = 5
_LONGEST = 60  # characters of a sample

_JSON_TYPES = {
    bool: "boolean", int: "integer", float: "number", str: "string",
    list: "array", dict: "object", type(None): "null",
}  # fmt: skip
_NARROW = ("null", "boolean", "integer", "number", "array", "object")


@dataclass
class Values:
    """What was seen of one place for a value: an argument, a key of an object, an item of an array."""

    count: int = 0
    types: dict[str, int] = field(default_factory=dict)
    untyped: int = 0
    """Values out of XML that no schema gave a type: text whatever was meant."""
    looks: dict[str, int] = field(default_factory=dict)
    """What the untyped ones look like."""
    samples: list[str] = field(default_factory=list)
    """The first distinct values, as JSON, cut where long."""
    fields: dict[str, Values] = field(default_factory=dict)
    """Of objects: what was seen under each key."""
    items: Values | None = None
    """Of arrays: what was seen of their items."""

    def add(self, value: Any, *, untyped: bool = False, depth: int = 0) -> None:
        """Count one value."""
        self.count += 1
        kind = _JSON_TYPES.get(type(value), "string")
        if untyped:
            self.untyped += 1
            look = _JSON_TYPES.get(type(_guess(value)), "string")
            self.looks[look] = self.looks.get(look, 0) + 1
        else:
            self.types[kind] = self.types.get(kind, 0) + 1
        if len(self.samples) < SAMPLES:
            self._keep_sample(_write_sample(value))
        if depth >= _DEEPEST:
            return
        if kind == "object":
            for key, inner in value.items():
                if key in self.fields or len(self.fields) < MOST_ARGUMENTS:
                    self.fields.setdefault(key, Values()).add(inner, depth=depth + 1)
        elif kind == "array":
            self.items = self.items or Values()
            for inner in value:
                self.items.add(inner, depth=depth + 1)

    def _keep_sample(self, sample: str) -> None:
        if sample not in self.samples and len(self.samples) < SAMPLES:
            self.samples.append(sample)

    def merge(self, other: Values) -> None:
        """Add what another shard saw."""
        self.count += other.count
        self.untyped += other.untyped
        for mine, theirs in ((self.types, other.types), (self.looks, other.looks)):
            for kind, count in theirs.items():
                mine[kind] = mine.get(kind, 0) + count
        for sample in other.samples:
            self._keep_sample(sample)
        for key, values in other.fields.items():
            if key in self.fields or len(self.fields) < MOST_ARGUMENTS:
                self.fields.setdefault(key, Values()).merge(values)
        if other.items is not None:
            self.items = self.items or Values()
            self.items.merge(other.items)

    @property
    def is_map(self) -> bool:
        """Whether its objects have ever other keys, so that these are data and no names of fields."""
        objects = self.types.get("object", 0)
        commonest = max((values.count for values in self.fields.values()), default=0)
        return len(self.fields) >= MOST_ARGUMENTS or (
            len(self.fields) > _MANY_KEYS and 2 * commonest < objects
        )

    def to_schema(self) -> dict[str, Any]:
        """The JSON Schema of what was seen; values of unknown type count as text."""
        kinds = set(self.types) or {"string"}
        if "number" in kinds:
            kinds.discard("integer")
        named = sorted(kinds, key=lambda kind: (kind == "null", -self.types.get(kind, 0), kind))
        schema: dict[str, Any] = {"type": named[0] if len(named) == 1 else named}
        if "array" in kinds:
            schema["items"] = self.items.to_schema() if self.items is not None and self.items.count else {}
        if "object" in kinds and self.fields and not self.is_map:
            objects = self.types["object"]
            schema["properties"] = {key: values.to_schema() for key, values in self.fields.items()}
            always = [key for key, values in self.fields.items() if values.count == objects]
            if always:
                schema["required"] = always
        return schema


@dataclass
class Calls:
    """What was seen of one tool."""

    count: int = 0
    arguments: dict[str, Values] = field(default_factory=dict)
    dialects: dict[str, int] = field(default_factory=dict)
    foreign: int = 0
    """Calls that cannot be Code Mode's."""

    def add(self, call: ToolCall, dialect: str) -> None:
        """Count one call."""
        self.count += 1
        self.foreign += not is_code_mode_call(call)
        self.dialects[dialect] = self.dialects.get(dialect, 0) + 1
        for key, value in call.arguments.items():
            if key in self.arguments or len(self.arguments) < MOST_ARGUMENTS:
                self.arguments.setdefault(key, Values()).add(value, untyped=dialect == "qwen3_coder")

    def merge(self, other: Calls) -> None:
        """Add what another shard saw."""
        self.count += other.count
        self.foreign += other.foreign
        for dialect, count in other.dialects.items():
            self.dialects[dialect] = self.dialects.get(dialect, 0) + count
        for key, values in other.arguments.items():
            if key in self.arguments or len(self.arguments) < MOST_ARGUMENTS:
                self.arguments.setdefault(key, Values()).merge(values)

    def to_tool(self, name: str) -> Tool:
        """The definition that fits all calls: an argument that is never missing is required."""
        parameters: dict[str, Any] = {
            "type": "object",
            "properties": {key: values.to_schema() for key, values in self.arguments.items()},
        }
        required = [key for key, values in self.arguments.items() if values.count == self.count]
        if required:
            parameters["required"] = required
        return Tool(name, "", parameters)


@dataclass
class Census:
    """What the rows of a data set, or of a shard of it, say about tools."""

    rows: int = 0
    """Rows that could be read."""
    rejected: int = 0
    """Rows that the conversion rejects for faults of their own: what they call no row will show."""
    defining: int = 0
    """Rows with tools of their own other than Code Mode's."""
    defined: set[str] = field(default_factory=set)
    """Functions of Code Mode that such rows define as tools of their own."""
    calling: int = 0
    """Rows that define no tool and call some."""
    calls: dict[str, Calls] = field(default_factory=dict)
    """The calls of rows that define no tool, by name."""
    more_tools: int = 0
    """Calls of tools beyond the limit of names, which are not counted by name."""

    def add(self, raw: Any) -> None:
        """Look at one row. One that cannot be read is left to the conversion, which says why."""
        try:
            source = read_row(raw)
            own = read_definitions(source.tools) if source.tools is not None else NONE
            defines = own if own.tools else _define_in_text(source)
        except ValueError:
            return
        self.rows += 1
        if defines.tools and not defines.is_code_mode:
            self.defining += 1
            self.defined |= FUNCTIONS.keys() & defines.box.schemas.keys()
            return
        calls: list[tuple[ToolCall, str]] = []
        for turn in source.turns:
            if turn.role == "assistant":
                calls += [(call, "messages") for call in turn.calls]
                reply = parse_any(turn.text)
                calls += [(call, str(reply.dialect)) for call in reply.calls]
        if not _can_be_written(calls):
            return
        for call, dialect in calls:
            self._add_call(call, dialect)
        self.calling += bool(calls)

    def _add_call(self, call: ToolCall, dialect: str) -> None:
        if call.name in self.calls or len(self.calls) < MOST_TOOLS:
            self.calls.setdefault(call.name, Calls()).add(call, dialect)
        else:
            self.more_tools += 1

    def merge(self, other: Census) -> None:
        """Add the census of another shard."""
        self.rows += other.rows
        self.rejected += other.rejected
        self.defining += other.defining
        self.defined |= other.defined
        self.calling += other.calling
        self.more_tools += other.more_tools
        for name, calls in other.calls.items():
            if name in self.calls or len(self.calls) < MOST_TOOLS:
                self.calls.setdefault(name, Calls()).merge(calls)
            else:
                self.more_tools += calls.count

    @property
    def is_code_mode(self) -> bool:
        """Whether the rows without tools of their own are Code Mode's, a few stray calls aside.

        What other rows define as a tool of their own is none of Code Mode's functions in these either.
        """
        if not self.calls:
            return not self.defining
        every = sum(calls.count for calls in self.calls.values()) + self.more_tools
        others = (c.count if name in self.defined else c.foreign for name, c in self.calls.items())
        foreign = sum(others) + self.more_tools
        return foreign <= _STRAY * every

    def tools(self) -> tuple[Tool, ...]:
        """The tools of rows that define none, the commonest first: Code Mode's, inferred, or none.

        They go into `ConvertContext.tools`.
        """
        if self.is_code_mode:
            return (EXECUTE_CODE,)
        ordered = sorted(self.calls.items(), key=lambda item: (-item[1].count, item[0]))
        return tuple(
            EXECUTE_CODE if _fits_code_mode(name, calls) else calls.to_tool(name) for name, calls in ordered
        )

    @property
    def inferred(self) -> bool:
        """Whether any of the tools is inferred."""
        return bool(self.calls) and not self.is_code_mode

    def untyped(self) -> frozenset[str]:
        """`tool.argument` for what only untyped XML was seen of."""
        return frozenset(
            f"{name}.{key}"
            for name, calls in self.calls.items()
            for key, values in calls.arguments.items()
            if values.untyped and not values.types
        )


def _can_be_written(calls: Iterable[tuple[ToolCall, str]]) -> bool:
    """Whether JSON can hold the calls; the conversion rejects a row where it cannot."""
    try:
        orjson.dumps([(call.name, call.arguments) for call, _ in calls])
    except TypeError:  # half of a surrogate pair, an integer beyond 64 bits
        return False
    return True


def _fits_code_mode(name: str, calls: Calls) -> bool:
    return name == EXECUTE_CODE.name and calls.arguments.keys() == {"code"}


def _define_in_text(source: SourceRow) -> Definitions:
    found = find_definitions(source.turns)
    return NONE if found is None else found[1].own


def infer_tools(rows: Iterable[Any]) -> Census:
    """The census of rows as they are read from a file, in any understood shape."""
    census = Census()
    for raw in rows:
        census.add(raw)
    return census


def _guess(text: Any) -> Any:
    """What an untyped text would be if its form decided."""
    if not isinstance(text, str):
        return text
    return read_typed(text, frozenset((*_NARROW, "string")))[0]


def _write_sample(value: Any) -> str:
    text = orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


_CENSUS = TypeAdapter(Census)


def save_census(census: Census, path: Path) -> None:
    """Write a census, so that an interrupted conversion goes on with the tools that it began with."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(_CENSUS.dump_json(census))
    partial.replace(path)


def load_census(path: Path) -> Census | None:
    """The census that `save_census` wrote; None where there is none."""
    return _CENSUS.validate_json(path.read_bytes()) if path.is_file() else None
