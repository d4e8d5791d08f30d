"""Where a text begins to say the same over and over.

Code says the same line in many places, tables have equal rows, and a line of dashes is no loop: all of that
is a good answer's own.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from math import inf

TIMES = 4  # in a row or in all; three is still a figure of speech
SHORTEST = 40  # characters of a loop
LONGEST_RULE = 200  # characters of a ruling line such as `------`, or of equal rows of a table; more loop
SENTENCE = 20  # characters of a sentence or line that nobody writes four times
MANY = 10  # times in a row that nobody writes a shorter line of code, or a row of a table
_LOOKED_AT = 4000  # characters from the end in which a loop is looked for; then it is followed back
_PIECE = re.compile(r"[^\n]+?(?:(?<=[.!?])(?=\s)|(?=\n)|\Z)")
_CODE = re.compile(r"```.*?(?:```|\Z)|<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)
_ROW = re.compile(r"[ \t]*\|.*\|[ \t]*")
_NUMBERED = re.compile(r"^\s*(?:[-*•]|\d+[.):])\s+")


def find_loop(text: str) -> int | None:
    """Where the first of the repeated pieces begins: a loop at the text's end, or a sentence said again.

    None where nothing repeats. Takes time in proportion to the text.
    """
    text = text.rstrip()
    starts = [start for start in (_find_tail_loop(text), _find_sentence(text)) if start is not None]
    return min(starts, default=None)


def _find_tail_loop(text: str) -> int | None:
    """Where a run of one piece, TIMES or more and up to the end, begins; the last piece may be cut off."""
    tail = text[-_LOOKED_AT:][::-1]
    borders, best = [0] * len(tail), None
    for i in range(1, len(tail)):  # the failure function of Knuth, Morris and Pratt: periods of all prefixes
        k = borders[i - 1]
        while k and tail[i] != tail[k]:
            k = borders[k - 1]
        borders[i] = k + (tail[i] == tail[k])
        period, length = i + 1 - borders[i], i + 1
        if length >= max(SHORTEST, TIMES * period):
            best = length, period
    if best is None:
        return None
    start, period = len(text) - best[0], best[1]
    while start and text[start - 1] == text[start - 1 + period]:
        start -= 1
    lines = text[start:].splitlines()
    speaks = any(map(str.isalnum, text[start : start + period]))
    says = speaks and not all(map(_ROW.fullmatch, lines[1:-1] or lines))
    return start if says or len(text) - start > LONGEST_RULE else None


def _find_sentence(text: str) -> int | None:
    """Where the first sentence or line stands that comes TIMES or more, numbers of a list aside.

    Lines of code and rows of a table count only where they stand in a row.
    """
    first: dict[tuple[str, int], int] = {}
    least: dict[tuple[str, int], float] = {}
    counts: Counter[tuple[str, int]] = Counter()
    blocks = _CODE.finditer(text)
    block = next(blocks, None)
    last, row = "", 0
    for match in _PIECE.finditer(text):
        piece = _NUMBERED.sub("", match[0]).strip().casefold()
        while block is not None and block.end() <= match.start():
            block = next(blocks, None)
        is_code = block is not None and block.start() <= match.start()
        row += piece != last  # of code, every run of one line is counted by itself
        last = piece
        is_row = not is_code and _ROW.fullmatch(match[0]) is not None
        if len(piece) >= SENTENCE or is_code:
            said = piece, row if is_code or is_row else 0
            first.setdefault(said, match.start())
            least[said] = MANY if is_row else _least_times(piece)
            counts[said] += 1
    return min((first[said] for said, count in counts.items() if count >= least[said]), default=None)


def find_repeated_line(code: str) -> int | None:
    """The number of the line of a code from which on it says one line over and over; None without one."""
    number = 0
    for line, run in groupby(map(str.strip, filter(str.strip, code.splitlines()))):
        times = sum(1 for _ in run)
        if times >= _least_times(line):
            return number
        number += times
    return None


def _least_times(line: str) -> float:
    """How often in a row a line of code is a loop: sooner if it is long, never if it says no word."""
    if not any(map(str.isalpha, line)):
        return inf
    return TIMES if len(line) >= SENTENCE else MANY
