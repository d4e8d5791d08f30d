"""What the token limit broke off, told apart from what was badly written before.

Only the last block can be unfinished because of the limit. One before it, and what had been written of the
last one, is the model's own.
"""

from __future__ import annotations

import re

from stages.core.dialects import Toolbox, parse_reply
from stages.core.dialects.literals import NotLiteral, read_json
from stages.core.dialects.scanning import CALL_CLOSE, CALL_OPEN, skip_separator

_CLOSINGS = {  # of dialects without tags: where a block is over
    "pythonic": re.compile(r"\](?=[ \t]*\n)"),
    "fenced_json": re.compile("```"),
}
_FENCE = re.compile(r"\s*(?:```)?(?:json)?\s*")
_UNFINISHED = 8  # characters: a word or an escape that the text breaks off in, which JSON calls a mistake


def breaks_off(text: str, dialect: str, tools: Toolbox) -> bool:
    """Whether a text that was cut off is well written, but for the end that its last block lacks."""
    settled = _find_settled(text, dialect)
    if parse_reply(text[:settled], dialect, tools).problems:
        return False
    tail = text[settled:]
    if tail.startswith(CALL_OPEN):
        return dialect != "hermes" or _is_json_so_far(tail.removeprefix(CALL_OPEN), CALL_CLOSE)
    starts_json = dialect == "fenced_json" and re.match(r"(?:json)?\s*\[?\s*\{", tail)
    return not starts_json or _is_json_so_far(tail, "```")


def _find_settled(text: str, dialect: str) -> int:
    """The end of what was over before the cut: behind the last closing, or where the last block opens."""
    if closing := _CLOSINGS.get(dialect):
        return max((match.end() for match in closing.finditer(text)), default=0)
    closed = text.rfind(CALL_CLOSE)
    return max(text.rfind(CALL_OPEN), closed + len(CALL_CLOSE) if closed != -1 else 0, 0)


def _is_json_so_far(body: str, closing: str) -> bool:
    """Whether JSON values, and behind them a closing, could come of the text of a block."""
    pos = _FENCE.match(body).end()  # type: ignore[union-attr]
    while body.startswith(("{", "["), pos):
        try:
            pos = read_json(body, pos)[1]
        except NotLiteral as error:
            return str(error).startswith("Unterminated") or error.pos > len(body.rstrip()) - _UNFINISHED
        pos = skip_separator(body, pos)
    return closing.startswith(body[pos:].rstrip())
