"""A converted row: its line of JSON, its digests, and what the card counts about it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

SYSTEM_ADDED = "system turn added"
SYSTEM_REPLACED = "another system text replaced"
RESULT_MADE = "tool result made a tool turn"
RESULT_ALONE = "tool result without a call before it"
RESULT_RENAMED = "name of a tool result made that of its call"
UNANSWERED_AMONG, UNANSWERED_LAST = "before the next answer", "at the end of a row"
ANSWER_EMPTY = "answer without a word and without a call"
CALL_REPEATED = "calls written a second time in the text dropped"
NO_QUESTION = "kept without a question: no turn of a user"
THOUGHT_TAGGED = "tags of calls within a thought kept as words of it"
AS_CODE = "written as Code Mode"
HAD_NONE, HAD_LINE, HAD_OTHER = "no system turn", "the preset's line alone", "another text"

SystemText = tuple[()] | tuple[str, str]
"""The system text that the conversion wrote, and what the row had before: HAD_NONE, HAD_LINE or HAD_OTHER.
Empty where the row keeps what it had."""

_REPEATED = re.compile(r"(?:assistant-(?:tool-)+){3,}")


class Kind(NamedTuple):
    """What the card counts about a row; equal for many rows."""

    shape: str
    pattern: str
    """The order of its roles."""
    dialects: tuple[str, ...] = ()
    """Of each assistant's turn with calls."""
    tools: tuple[str, ...] = ()
    """Of each call."""
    changes: tuple[str, ...] = ()
    untyped: tuple[str, ...] = ()
    """`tool.argument` of XML values that stay text because no schema says their type."""
    undefined: tuple[str, ...] = ()
    """Tools that are called and that no definition names."""
    unanswered: tuple[str, ...] = ()
    """Of each call without a result: where, UNANSWERED_AMONG or UNANSWERED_LAST."""
    unwritable: tuple[str, ...] = ()
    """Why the target's dialect cannot say a turn's calls so that they are read back unchanged."""
    lookalikes: tuple[str, ...] = ()
    """Of each turn without a call that looks like one: in whose format."""
    has_own_tools: bool | None = False
    """None where a row is shown no tools."""
    system: SystemText = ()
    misfits: tuple[str, ...] = ()
    """`tool.argument` of what in the calls disagrees with their definitions, and why."""
    faults: tuple[str, ...] = ()
    """What in the row's own definitions cannot be meant."""
    controls: tuple[str, ...] = ()
    """Control tokens of models that its texts and arguments hold."""


class Converted(NamedTuple):
    """A row in its new form, and what the card counts about it."""

    line: bytes
    """The row as JSON with a newline, to be written as it is."""
    digests: tuple[bytes, bytes]
    """16 bytes each: of what the row says (turns, calls, tools, own system text), and of its user's
    turns in normalised wording, NO_DIGEST where it has none."""
    source: Any
    """The row as it came."""
    kind: Kind

    @property
    def row(self) -> dict[str, Any]:
        """The row as an object."""
        row: dict[str, Any] = orjson.loads(self.line)
        return row

    def note(self, change: str) -> Converted:
        """The row with one more change to count."""
        return self._replace(kind=self.kind._replace(changes=(*self.kind.changes, change)))


def name_calls_read(dialect: str) -> str:
    """The change that the calls of a turn were read in a dialect."""
    return f"calls of {dialect} read"


def name_mended(kind: str) -> str:
    """The change that something was mended with certainty."""
    return f"mended: {kind}"


def name_pattern(roles: list[str]) -> str:
    """The order of roles; rounds of calls and results that go on and on count as one."""
    name = "-".join(roles)
    return _REPEATED.sub("(assistant-tool)+-", name) if len(roles) > 6 else name
