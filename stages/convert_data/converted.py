"""A converted row: its line of JSON, its digests, and what the card counts about it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from stages.convert_data.messages import SourceTurn

Kind = tuple[tuple[str, ...], ...]
"""What the card counts of a row: shape, dialects, tools, pattern, changes, untyped, undefined, unwritable,
the system text that was written and what was there before."""

SYSTEM_ADDED = "system turn added"
SYSTEM_REPLACED = "another system text replaced"
HAD_NONE, HAD_LINE, HAD_OTHER = "no system turn", "the preset's line alone", "another text"

SystemText = tuple[()] | tuple[str, str]
"""The system text that the conversion wrote, and what the row had before: HAD_NONE, HAD_LINE or HAD_OTHER.
Empty where the row keeps what it had."""

_REPEATED = re.compile(r"(?:assistant-(?:tool-)+){3,}")


@dataclass(slots=True)
class Converted:
    """A row in its new form, and what the card counts about it."""

    line: bytes
    """The row as JSON with a newline, to be written as it is."""
    shape: str
    pattern: str
    digests: tuple[bytes, bytes]
    """16 bytes each: of what the row says (turns, calls, tools, own system text), and of its user's
    turns in normalised wording, NO_DIGEST where it has none."""
    source: Any
    """The row as it came."""
    dialects: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)
    """`tool.argument` of XML values that stay text because no schema says their type."""
    undefined: list[str] = field(default_factory=list)
    """Tools that are called and that no definition names."""
    unwritable: list[str] = field(default_factory=list)
    """Why the target's dialect cannot say a turn's calls so that they are read back unchanged."""
    system: SystemText = ()

    @property
    def kind(self) -> Kind:
        """All that is counted; equal for many rows."""
        return (
            (self.shape,),
            tuple(self.dialects) or ("none",),
            tuple(self.tools),
            (self.pattern,),
            tuple(self.changes),
            tuple(self.untyped),
            tuple(self.undefined),
            tuple(self.unwritable),
            self.system,
        )

    @property
    def row(self) -> dict[str, Any]:
        """The row as an object."""
        row: dict[str, Any] = orjson.loads(self.line)
        return row


def name_pattern(turns: list[SourceTurn]) -> str:
    """The order of roles; rounds of calls and results that go on and on count as one."""
    name = "-".join([turn[0] for turn in turns])
    return _REPEATED.sub("(assistant-tool)+-", name) if len(turns) > 6 else name
