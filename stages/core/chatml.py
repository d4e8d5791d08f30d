"""ChatML text and its turns: the form in which legacy rows come."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from typing import Any, NamedTuple, TypeVar, overload

from stages.core.chat import ROLES

OPEN, CLOSE = "<|im_start|>", "<|im_end|>"

_TURN = re.compile(r"<\|im_start\|>([a-z_]+)\r?\n(.*?)<\|im_end\|>(?:\r?\n)*+", re.DOTALL)
T = TypeVar("T")

_BETWEEN = f"{CLOSE}\n{OPEN}"
_ENDS = (CLOSE, f"{CLOSE}\n")
_MARK = "<|im_"
_ROLES = frozenset(ROLES)
_END_OF_TEXT = "<|endoftext|>"  # what many trainers append to a row


class Turn(NamedTuple):
    """One ChatML turn: the role and the raw text between its marks."""

    role: str
    text: str


@overload
def split_chatml(text: str) -> list[Turn]: ...


@overload
def split_chatml(text: str, make: Callable[[str, str], T], roles: Container[str] = ...) -> list[T]: ...


def split_chatml(
    text: str, make: Callable[[str, str], Any] = Turn, roles: Container[str] = _ROLES
) -> list[Any]:
    """The turns of a ChatML text, each made of its role, one of `roles`, and its text.

    Raises ValueError with the reason when it is not nothing but turns: text that belongs to no turn
    would be lost without a word.
    """
    if turns := _split_plainly(text, make):
        return turns
    turns, at = [], 0
    end = len(text.rstrip().removesuffix(_END_OF_TEXT)) if _END_OF_TEXT in text[-40:] else len(text)
    while at < end:
        match = _TURN.match(text, at)
        if match is None:
            raise ValueError(f"not a ChatML turn at character {at}: {text[at : at + 30]!r}")
        if match[1] not in roles:
            raise ValueError(f"unknown role {match[1]!r}")
        if OPEN in match[2]:
            raise ValueError(f"a turn that starts at character {at} has no {CLOSE}")
        turns.append(make(match[1], match[2]))
        at = match.end()
    if not turns:
        raise ValueError("no turns")
    return turns


def cut_plainly(text: str) -> list[str]:
    """The turns of a text in the form that `join_chatml` writes: role, newline, words; else nothing.

    Whether a role is one, and has its newline, is not asked.
    """
    if not text.startswith(OPEN) or not text.endswith(_ENDS):
        return []
    parts = text[len(OPEN) : text.rindex(CLOSE)].split(_BETWEEN)
    # Else a turn holds a mark of its own; to count single characters is faster.
    return parts if text.count("|") == 4 * len(parts) or text.count(_MARK) == 2 * len(parts) else []


def _split_plainly(text: str, make: Callable[[str, str], T]) -> list[T] | None:
    """The turns of a text that `join_chatml` could have written, in a fraction of the time; else None."""
    turns = []
    for part in cut_plainly(text):
        role, newline, words = part.partition("\n")
        if role not in _ROLES or not newline:
            return None
        turns.append(make(role, words))
    return turns


def join_chatml(turns: list[Turn]) -> str:
    """The ChatML text of turns, without a newline after the last."""
    return "\n".join(f"{OPEN}{turn.role}\n{turn.text}{CLOSE}" for turn in turns)
