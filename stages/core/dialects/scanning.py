"""What every dialect shares: the reply that comes out, and the one pass over a text that finds its calls.

A dialect says what opens a block (a regular expression) and reads the block at an opening. The pass
here keeps the prose around the blocks, separates the reasoning, and never looks at a character more
than a fixed number of times: a search that found something, or nothing, is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.core.chat import ToolCall
from stages.core.dialects.literals import find_doubled
from stages.core.dialects.problems import Recovered, shorten
from stages.core.dialects.toolbox import Tools, open_toolbox

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
THINK_TAGS = "</?think>"

_SPACE = re.compile(r"\s*+")
_SEPARATOR = re.compile(r"[\s,;]*+")
_MORE_CLOSINGS = re.compile(rf"(?:\s*+{CALL_CLOSE})++")
_CLOSED_TWICE = f"{CALL_CLOSE} once too often"
_FENCE = "```"
_FENCE_OPEN = re.compile(r"(?<![\w`])```(?:xml|json)?\Z")
_FENCE_CLOSE = re.compile(r"\s*+```(?![\w`])")


_STRAY = ((CALL_OPEN, "opens no call of this dialect"), (CALL_CLOSE, "closes nothing"))


@dataclass(slots=True)
class Reply:
    """An assistant's turn, taken apart."""

    content: str
    """The prose, and the raw text of every malformed call."""
    calls: list[ToolCall]
    """The calls in the order of the text."""
    dialect: str | None
    """The dialect of the first call; None where there is no call."""
    problems: list[str] = field(default_factory=list)
    """What was recovered or could not be read, each with its place; those that are `Recovered` leave
    the calls certain. Empty: the text was clean."""
    reasoning: str = ""
    """The text of a leading `<think>` block. Calls in it are not calls."""
    pieces: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The content as it stood before, between and behind the calls."""


@dataclass(slots=True)
class Block:
    """What a dialect found at an opening. Without calls, its raw text stays in the content."""

    end: int
    """Where reading goes on."""
    dialect: str
    calls: list[ToolCall] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    leftover: str = ""
    """Text inside a block with calls that belongs to no call; it moves to the content."""
    gap: int = 1
    """How many newlines the dialect's template writes between the prose and the block."""


class Source:
    """A text under reading, with the searches already made in it."""

    __slots__ = ("_found", "_lead", "budget", "fence_end", "tags", "text", "tools")

    def __init__(self, text: str, tools: Tools = None) -> None:
        self.text = text
        self.tools = open_toolbox(tools)
        self.fence_end = 0
        """Before this position a code fence shows text that is not meant as a call."""
        self.budget = 4 * len(text) + 10_000
        """Characters that may still be read in vain. Reading that fails far from its start may have to
        be done again from the next one: a text made for that would take quadratic time."""
        self.tags: Any = None
        """The XML dialect's index of its tags, made when it is first needed."""
        self._found: dict[str, tuple[int, int]] = {}
        self._lead = -1

    @property
    def lead(self) -> int:
        """Where the text begins behind its leading white space."""
        if self._lead == -1:
            self._lead = self.skip_space(0)
        return self._lead

    def find(self, needle: str, start: int) -> int:
        """`text.find(needle, start)`, remembered: starts that grow walk the text once per needle."""
        since, known = self._found.get(needle, (0, -2))
        if known == -2:
            known = self.text.find(needle, start)
        elif start < since:
            earlier = self.text.find(needle, start, since + len(needle) - 1)
            known = known if earlier == -1 else earlier
        elif known == -1 or start <= known:
            return known
        else:
            known = self.text.find(needle, start)
        self._found[needle] = start, known
        return known

    @property
    def exhausted(self) -> bool:
        """Whether so much was read in vain that nothing further is tried: no real reply comes near."""
        return self.budget < 0

    def skip_space(self, pos: int) -> int:
        """The first position at or after `pos` that is not white space."""
        return _SPACE.match(self.text, pos).end()  # type: ignore[union-attr]

    def end_of_block(self, start: int) -> int:
        """Where a `<tool_call>` that cannot be read ends: after its close, or before the next open."""
        close = self.find(CALL_CLOSE, start)
        following = self.find(CALL_OPEN, start + 1)
        if close != -1 and (following == -1 or close < following):
            return close + len(CALL_CLOSE)
        return len(self.text) if following == -1 else following


def skip_separator(text: str, pos: int) -> int:
    """The first position at or after `pos` that is neither white space nor between two values or calls."""
    return _SEPARATOR.match(text, pos).end()  # type: ignore[union-attr]


class _Draft:
    """A reply while it is being read."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.calls: list[ToolCall] = []
        self.problems: list[str] = []
        self.dialects: list[str] = []
        self.reasoning = ""
        self.thought = False
        self.done = 0
        """The text before this position is accounted for."""

    def add(self, text: str, start: int, block: Block) -> None:
        self.parts.append(drop_gap(text[self.done : start], block.gap))
        self.parts.append(block.leftover)
        self.calls += block.calls
        if block.dialect not in self.dialects:
            self.dialects.append(block.dialect)
        self.done = block.end

    def think(self, text: str, begin: int, close: int) -> int:
        """Take everything up to `close` as the reasoning and say where the answer begins.

        Whatever was read before a lone closing tag was thought as well, be the opening one in the text or
        in the prompt: it is no call, and no problem.
        """
        self.parts, self.calls, self.problems, self.dialects = [], [], [], []
        self.reasoning, self.thought = text[begin:close].strip("\r\n"), True
        end = close + len(THINK_CLOSE)
        while end < len(text) and text[end] in "\r\n":
            end += 1
        self.done = end
        return end

    def finish(self, text: str) -> Reply:
        tail = text[self.done :]
        if self.calls and tail.isspace():
            tail = ""
        if not self.calls and not self.problems and (stray := _find_stray(text, self.done)):
            self.problems.append(stray)
        if len(self.dialects) > 1:
            self.problems.append(Recovered("", f"calls in several dialects: {', '.join(self.dialects)}"))
        dialect = self.dialects[0] if self.dialects else None
        pieces = (*self.parts, tail)
        content = "".join(pieces)
        if self.calls and all(isinstance(problem, Recovered) for problem in self.problems):
            self.problems += [
                f"{tag} beside the calls {what}" for tag, what in _STRAY if find_tag(content, tag, 0) != -1
            ]
        if self.calls and _FENCE in content:
            pieces = _drop_fences(pieces)
            content = "".join(pieces)
        return Reply(content, self.calls, dialect, self.problems, self.reasoning, pieces)


def _drop_fences(pieces: Sequence[str]) -> tuple[str, ...]:
    """The prose around calls without the code fences that held nothing but calls."""
    kept = list(pieces)
    opened, in_fence = -1, False
    for index, piece in enumerate(kept):
        if opened != -1:
            if not piece.strip():
                continue
            if (close := _FENCE_CLOSE.match(piece)) is not None:
                kept[opened] = _FENCE_OPEN.sub("", kept[opened].rstrip()).rstrip()
                piece, in_fence = piece[close.end() :], False
                kept[index] = "" if piece.isspace() else piece
            opened = -1
        in_fence ^= piece.count(_FENCE) % 2 == 1
        if in_fence and _FENCE_OPEN.search(piece.rstrip()):
            opened = index
    return tuple(kept)


def _find_stray(text: str, start: int) -> str:
    """A tag that stands alone in a text without calls, as a problem; empty when there is none."""
    for tag, what in _STRAY:
        if (pos := find_tag(text, tag, start)) != -1:
            return f"character {pos}: {tag} {what}"
    return ""


def find_tag(text: str, tag: str, start: int) -> int:
    """The first such tag from `start` on that is not spoken of, -1 where there is none."""
    pos = text.find(tag, start)
    while pos != -1 and is_spoken_of(text, pos, tag):
        pos = text.find(tag, pos + len(tag))
    return pos


def is_spoken_of(text: str, start: int, tag: str) -> bool:
    """Whether a tag stands in backquotes, alone."""
    return start > 0 and text[start - 1] == "`" and text.startswith("`", start + len(tag))


def drop_gap(prose: str, gap: int) -> str:
    """The prose before a block without the newlines that the template puts between the two."""
    if not prose or prose.isspace():
        return ""
    for _ in range(gap):
        if not prose.endswith("\n"):
            break
        prose = prose[:-2] if prose.endswith("\r\n") else prose[:-1]
    return prose


def read_reply(
    source: Source, openings: re.Pattern[str], read: Callable[[Source, int], Block | None]
) -> Reply:
    """Read every block of a text. `openings` must also match the two think tags.

    `read` gets the position of an opening and returns None where nothing of the dialect is there.
    """
    text, draft, pos = source.text, _Draft(), 0
    last_close = -2
    while (match := openings.search(text, pos)) is not None:
        start = match.start()
        if match.group() == CALL_OPEN and is_spoken_of(text, start, CALL_OPEN):
            pos = match.end()
            continue
        if match.group() in (THINK_OPEN, THINK_CLOSE):
            if last_close == -2:
                last_close = text.rfind(THINK_CLOSE)
            pos = _read_thought(draft, source, start, last_close)
            continue
        block = read(source, start)
        if block is None:
            pos = start + 1
            continue
        draft.problems += block.problems
        if block.calls:
            draft.problems += _list_doubled(block, start)
            if (more := _MORE_CLOSINGS.match(text, block.end)) is not None:
                draft.problems.append(Recovered(f"{block.dialect}, character {start}", _CLOSED_TWICE))
                block.end = more.end()
            draft.add(text, start, block)
        pos = max(block.end, start + 1)
    return draft.finish(text)


def _list_doubled(block: Block, start: int) -> list[str]:
    """The calls with an argument, or a key in one, that is written twice."""
    place = f"{block.dialect}, character {start}"
    found = ((find_doubled(call.arguments), call.name) for call in block.calls)
    return [
        f"{place}: {shorten(key)} is given twice to {name!r}, the last counts" for key, name in found if key
    ]


def _read_thought(draft: _Draft, source: Source, start: int, last_close: int) -> int:
    """Read a think tag in the prose and say where reading goes on.

    A leading block is the reasoning. So is everything before a lone closing tag, since a template
    may put the opening tag in the prompt. A block further on stays in the content, unread.
    """
    text = source.text
    first = not draft.thought and (draft.done == 0 or bool(draft.calls))
    if text.startswith(THINK_CLOSE, start):
        if is_spoken_of(text, start, THINK_CLOSE):
            return start + len(THINK_CLOSE)
        return draft.think(text, 0, start) if first else start + len(THINK_CLOSE)
    begin = start + len(THINK_OPEN)
    leading = first and not draft.calls and start <= source.lead
    if last_close > start:
        close = text.find(THINK_CLOSE, begin)
        if leading:
            return draft.think(text, begin, close)
        if text.find(CALL_OPEN, begin, close) != -1:
            draft.problems.append(f"reasoning: calls in {THINK_OPEN} at character {start} are not calls")
        return close + len(THINK_CLOSE)
    if leading:
        draft.problems.append(f"reasoning: {THINK_OPEN} at character {start} is never closed")
        return len(text)
    return begin


def close_block(source: Source, pos: int, end: int) -> tuple[int, str, bool]:
    """The end of a block whose last call ended at `end` with white space up to `pos`.

    Returns the end, text between the call and the closing tag, and whether there is such a tag.
    """
    if source.text.startswith(CALL_CLOSE, pos):
        return pos + len(CALL_CLOSE), "", True
    if pos < len(source.text) and CALL_CLOSE.startswith(source.text[pos : pos + len(CALL_CLOSE)]):
        return len(source.text), "", False  # the tag is cut off
    close, following = source.find(CALL_CLOSE, pos), source.find(CALL_OPEN, pos)
    if close == -1 or -1 < following < close:
        return end, "", False
    return close + len(CALL_CLOSE), source.text[pos:close], True


def unwrap(value: str) -> str:
    """A value without the one newline that wraps it on each side; CRLF when it opens with CRLF."""
    if value.startswith("\n"):
        return value[1:-1] if value.endswith("\n") and len(value) > 1 else value[1:]
    if value.startswith("\r\n"):
        value = value[2:]
    if value.endswith("\r\n"):
        return value[:-2]
    return value[:-1] if value.endswith("\n") else value
