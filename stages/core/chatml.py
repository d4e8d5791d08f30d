"""ChatML text and its turns: the form in which legacy rows come."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.core.chat import ROLES

_TURN = re.compile(r"<\|im_start\|>([a-z]+)\n(.*?)<\|im_end\|>\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Turn:
    """One ChatML turn: the role and the raw text between its marks."""

    role: str
    text: str


def split_chatml(text: str) -> list[Turn]:
    """The turns of a ChatML text.

    Raises ValueError with the reason when it is not nothing but turns: text that belongs to no turn
    would be lost without a word.
    """
    turns, at = [], 0
    while at < len(text):
        match = _TURN.match(text, at)
        if match is None:
            raise ValueError(f"not a ChatML turn at character {at}: {text[at : at + 30]!r}")
        if match[1] not in ROLES:
            raise ValueError(f"unknown role {match[1]!r}")
        if "<|im_start|>" in match[2]:
            raise ValueError(f"a turn that starts at character {at} has no <|im_end|>")
        turns.append(Turn(match[1], match[2]))
        at = match.end()
    if not turns:
        raise ValueError("no turns")
    return turns


def join_chatml(turns: list[Turn]) -> str:
    """The ChatML text of turns, without a newline after the last."""
    return "\n".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>" for turn in turns)
