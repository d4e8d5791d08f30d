"""Glaive's chats: one text in which `USER:`, `ASSISTANT:` and `FUNCTION RESPONSE:` begin the turns."""

from __future__ import annotations

import re

from stages.convert_data.messages import SourceTurn

_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_NAMES = "|".join(_ROLES)
# Between turns are two empty lines or the token of a turn's end; less may be within a text.
_START = re.compile(rf"(?:\A\s*+|(?<!\n)\n{{3,}}+|<\|endoftext\|>\s*+)({_NAMES}):[ \t]*+")
_WITHIN = re.compile(rf"^(?:{_NAMES}):", re.MULTILINE)
_SYSTEM = re.compile(r"\s*+SYSTEM:\s*+")


def read_chat(text: str) -> list[SourceTurn]:
    """The turns of a chat. Raises ValueError for text before them, or a mark that may begin another turn."""
    starts = list(_START.finditer(text))
    if not starts or starts[0].start():
        raise ValueError(f"chat does not begin with USER: or ASSISTANT: ({text[:30]!r})")
    ends = [*(found.start() for found in starts[1:]), len(text)]
    turns = []
    for found, end in zip(starts, ends, strict=True):
        said = text[found.end() : end].strip()
        if mark := _WITHIN.search(said):
            raise ValueError(f"chat has {mark[0]!r} within a turn: it is not certain that it begins another")
        turns.append(SourceTurn(_ROLES[found[1]], said))
    return turns


def cut_system_mark(text: str) -> str:
    """A system text without the mark before it."""
    mark = _SYSTEM.match(text)
    return text if mark is None else text[mark.end() :]
