"""The results of tools in a row, and the calls that they answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from stages.convert_data.converted import (
    RESULT_ALONE,
    RESULT_RENAMED,
    UNANSWERED_AMONG,
    UNANSWERED_LAST,
)
from stages.core.dialects.scanning import find_tag, unwrap

_OPEN = re.compile(r"\s*+<tool_response>")
_CLOSE = re.compile(r"</tool_response>\s*+")


def holds_results(role: str, text: str, from_text: bool) -> bool:
    """Whether a turn is a tool's, or a user's with results in tags; who asks about the tag has none."""
    if role != "user" or "<tool_response>" not in text:
        return role == "tool"
    return _OPEN.match(text) is not None or (from_text and find_tag(text, "</tool_response>", 0) != -1)


def is_tagged(text: str, from_text: bool) -> bool:
    """Whether the results of such a turn stand in tags; else the whole of it is one."""
    if "<tool_response>" not in text:
        return False
    return _OPEN.match(text) is not None or (from_text and find_tag(text, "<tool_response>", 0) != -1)


def split_results(text: str) -> Iterator[str]:
    """The results in the tags of a turn. Raises ValueError for text beside them."""
    at = 0
    while at < len(text):
        opening = _OPEN.match(text, at)
        closing = _CLOSE.search(text, opening.end()) if opening is not None else None
        if opening is None or closing is None:
            raise ValueError("text beside <tool_response> in a result turn")
        yield unwrap(text[opening.end() : closing.start()])
        at = closing.end()


class Pairing:
    """Which calls of a row are open, and the results that have come for them.

    It writes the results' turns into the row's, and puts those of one answer in the order of their calls.
    """

    __slots__ = ("_disordered", "_first", "_last", "_next", "_turns", "changes", "unanswered", "waiting")

    def __init__(self, turns: list[dict[str, Any]], changes: list[str]) -> None:
        self._turns = turns
        self.changes = changes
        self.unanswered: list[str] = []
        """Of each call without a result: where."""
        self.waiting: list[tuple[int, str, str, str | None]] = []
        """Calls without a result so far: number, tool, and what the source calls the tool and the call."""
        self._next = 0
        self._first = self._last = -1
        self._disordered = False

    def open_call(self, tool: str, called: str, source_id: str | None) -> str:
        """The id of a new call; the source `called` the tool so."""
        number = self._next
        self._next += 1
        self.waiting.append((number, tool, called, source_id))
        return f"call_{number}"

    def begin_answer(self) -> None:
        """An answer comes: the results before it are all that there will be."""
        self._close(UNANSWERED_AMONG)

    def finish(self) -> None:
        """The row ends."""
        self._close(UNANSWERED_LAST)

    def _close(self, place: str) -> None:
        if self._first != -1:
            self._order_results()
        if self.waiting:
            self.unanswered += [place] * len(self.waiting)
            self.waiting = []

    def add_result(self, text: str, answers: str | None, name: str | None) -> None:
        """Write a result's turn. `answers` and `name` are what the source says about its call.

        Raises ValueError where calls were made and none that it could belong to is open.
        """
        if self._next and not self.waiting:
            raise ValueError("a tool result without an open call before it")
        message: dict[str, Any] = {"role": "tool", "content": text}
        if self.waiting:
            place = 0 if answers is None and len(self.waiting) == 1 else self._find_open_call(answers, name)
            number, tool, called, _ = self.waiting.pop(place)
            if name and name not in (called, tool):
                self.changes.append(RESULT_RENAMED)
            message |= {"name": tool, "tool_call_id": f"call_{number}"}
            self._disordered = self._disordered or number < self._last
            self._last = number
        else:
            lost = "" if answers is None else ", its tool_call_id not kept"
            self.changes.append(f"{RESULT_ALONE}{lost}")
            message |= {"name": name} if name else {}
        if self._first == -1:
            self._first = len(self._turns)
        self._turns.append(message)

    def _find_open_call(self, answers: str | None, name: str | None) -> int:
        """The place of the open call that a result belongs to: by its id, by the tool's name, or by order.

        Raises ValueError for an id that none of them has.
        """
        waiting = self.waiting
        if answers is not None:
            for place, call in enumerate(waiting):
                if call[3] == answers:
                    return place
            if any(call[3] is not None for call in waiting):
                raise ValueError(f"a tool result answers {answers[:40]!r}, which no open call has as its id")
        if name is None or len(waiting) == 1:
            return 0
        names = [call[2] for call in waiting]
        return names.index(name) if name in names else 0

    def _order_results(self) -> None:
        """Put the results since the last answer in the order of their calls: templates write no ids."""
        if self._disordered:
            rest = self._turns[self._first :]
            block = list(takewhile(lambda message: "tool_call_id" in message, rest))
            block.sort(key=_number_of)
            if block != rest[: len(block)]:
                self._turns[self._first : self._first + len(block)] = block
                self.changes.append("results put in the order of their calls")
            numbers = [_number_of(m) for m in self._turns[self._first :] if "tool_call_id" in m]
            if numbers != sorted(numbers):
                raise ValueError("results in another order than their calls, with a turn between them")
        self._first = self._last = -1
        self._disordered = False


def _number_of(result: dict[str, Any]) -> int:
    """The number of the call that a result answers."""
    return int(result["tool_call_id"].removeprefix("call_"))
