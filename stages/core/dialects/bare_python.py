"""Python code inside `<tool_call>` tags: a legacy Code Mode dialect of fine-tuned models.

The code is taken byte for byte, less the one newline that wraps it on each side, as the argument
`code` of `execute_code`. A `</tool_call>` inside a string or a comment of the code does not end it.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache

from stages.core.chat import ToolCall
from stages.core.dialects.literals import NotLiteral, read_json
from stages.core.dialects.problems import shorten
from stages.core.dialects.scanning import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_TAGS,
    Block,
    Reply,
    Source,
    read_reply,
    unwrap,
)
from stages.core.dialects.toolbox import Tools

NAME = "bare_python"
TOOL = "execute_code"
ARGUMENT = "code"

_LONGEST = 200_000
_SHORT = 2_000  # characters of code that is worth to be remembered

_OPENINGS = re.compile(f"{CALL_OPEN}|{THINK_TAGS}")
_PIECE = re.compile(f"#|\"\"\"|'''|\"|'|{CALL_CLOSE}|{CALL_OPEN}")
# A string that runs over a line by a backslash is left out: it would have to be tried from every line.
_STRING = re.compile(r'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"|' r"'[^'\\\n]*+(?:\\[^\n][^'\\\n]*+)*+'")
_TRIPLE = {
    '"""': re.compile(r'"""[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*+"""', re.DOTALL),
    "'''": re.compile(r"'''[^'\\]*+(?:(?:\\.|'(?!''))[^'\\]*+)*+'''", re.DOTALL),
}


def render(calls: Sequence[ToolCall], tools: Tools = None) -> str:
    """The code of each call in its own block, a newline between.

    Raises ValueError for a call that is not `execute_code` with text in `code` alone, and for code
    that would not be read back as it is, such as a JSON object or an unquoted `</tool_call>`.
    """
    blocks = []
    for call in calls:
        code = call.arguments.get(ARGUMENT)
        if call.name != TOOL or not isinstance(code, str) or len(call.arguments) != 1:
            raise ValueError(f"{NAME} can only write {TOOL} with {ARGUMENT}, not a call of {call.name!r}")
        blocks.append(f"{CALL_OPEN}\n{code}\n{CALL_CLOSE}")
    text = "\n".join(blocks)
    read = parse(text)
    if read.calls != list(calls) or read.problems:
        for block, call in zip(blocks, calls, strict=True):
            if parse(block).calls != [call]:
                code = call.arguments[ARGUMENT]
                raise ValueError(f"{NAME} cannot write this code, {_why_unwritable(code)}: {shorten(code)}")
        raise ValueError(f"{NAME} cannot write these {len(calls)} calls together, their quotes do not match")
    return text


def _why_unwritable(code: str) -> str:
    for tag in (CALL_CLOSE, CALL_OPEN):
        if tag in code:
            return f"a {tag} in it would be taken for the call's own"
    return _not_code(code) or "it would not be read back as it is"


def parse(text: str, tools: Tools = None) -> Reply:
    """Read a reply in this dialect; every block that is neither JSON nor XML is code."""
    return read_reply(Source(text, tools), _OPENINGS, read_block)


def read_block(source: Source, start: int) -> Block:
    """Read the block whose `<tool_call>` is at `start`. Whether the code is valid is not asked."""
    text, place = source.text, f"{NAME}, character {start}"
    begin = start + len(CALL_OPEN)
    close = _find_end(source, begin)
    if close == -1:
        return _read_unclosed(source, start)
    code = unwrap(text[begin:close])
    if problem := _not_code(code):
        return Block(source.end_of_block(start), NAME, problems=[f"{place}: {problem}"])
    return Block(close + len(CALL_CLOSE), NAME, [ToolCall(TOOL, {ARGUMENT: code})])


def _read_unclosed(source: Source, start: int) -> Block:
    """A server that stops at `</tool_call>` leaves it out: code up to the end of the text counts if it
    parses as Python."""
    end = source.end_of_block(start)
    place = f"{NAME}, character {start}: no {CALL_CLOSE}"
    code = unwrap(source.text[start + len(CALL_OPEN) : end])
    if end < len(source.text) or not does_something(code) or _not_code(code):
        return Block(end, NAME, problems=[f"{place}, and the code is not complete"])
    return Block(end, NAME, [ToolCall(TOOL, {ARGUMENT: code})], [place])


def _not_code(body: str) -> str:
    """Why a body belongs to another dialect, or nothing."""
    stripped = body.strip()
    if not stripped:
        return f"nothing in {CALL_OPEN}"
    if stripped.startswith("<function"):
        return "XML, not Python"
    if stripped[0] in "{[":
        try:
            _, end = read_json(stripped, 0)
        except NotLiteral:
            return ""
        return "JSON, not Python" if end == len(stripped) else ""
    return ""


def does_something(code: str) -> bool:
    """Whether a text is Python with a call or a statement in it: a mere word or number is not code.

    A text too long for a model's turn is not asked: the parser's work and memory would be out of bounds.
    """
    return _parse_code(code) if len(code) > _SHORT else _parse_short_code(code)


@lru_cache(maxsize=4096)
def _parse_short_code(code: str) -> bool:
    """The parser takes tens of microseconds, and in many a data set calls repeat."""
    return _parse_code(code)


def _parse_code(code: str) -> bool:
    if len(code) > _LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in the code is not ours to report
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if any(not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in tree.body):
        return True  # as nearly all code does, and then no more has to be looked at
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))


def _find_end(source: Source, begin: int) -> int:
    """The position of the `</tool_call>` that ends code at `begin`, -1 when there is none."""
    text = source.text
    close = source.find(CALL_CLOSE, begin)
    if close == -1:
        return -1
    opening = source.find(CALL_OPEN, begin)
    at_line_start = close == begin or text[close - 1] == "\n"
    if at_line_start and not -1 < opening < close:
        code = text[begin:close]
        if '"""' not in code and "'''" not in code:
            return close
    end = _lex_end(source, begin)
    if end != -1:
        return end
    return -1 if -1 < opening < close else close


def _lex_end(source: Source, begin: int) -> int:
    """The first `</tool_call>` outside strings and comments; -1 when a block opens before it."""
    text, pos = source.text, begin
    unclosed = set[str]()
    while not source.exhausted and (piece := _PIECE.search(text, pos)) is not None:
        token, pos = piece[0], piece.end()
        if token == CALL_CLOSE:
            return piece.start()
        if token == CALL_OPEN:
            break
        if token == "#":
            pos = _line_end(text, pos)
            close = text.find(CALL_CLOSE, piece.end(), pos)
            if close != -1 and not text[close + len(CALL_CLOSE) : pos].strip():
                return close
        elif token in _TRIPLE:
            string = None if token in unclosed else _TRIPLE[token].match(text, piece.start())
            if string is None:
                unclosed.add(token)
            else:
                pos = string.end()
        else:
            string = _STRING.match(text, piece.start())
            pos = string.end() if string is not None else _line_end(text, pos)
    source.budget -= (pos if pos > begin else len(text)) - begin
    return -1


def _line_end(text: str, pos: int) -> int:
    end = text.find("\n", pos)
    return len(text) if end == -1 else end
