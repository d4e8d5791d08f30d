"""Compressed files and JSON arrays as plain JSON lines, so that any part of them can be read at once.

The plain copy lies in the unfinished output and goes when the work is done.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.convert_data.pieces import LONGEST_ROW
from stages.convert_data.sources import SourceFile
from stages.core.errors import StageError

_BLOCK = 1 << 16
_HEAD = 1 << 16  # looked at to see how a file begins
_DECODER = json.JSONDecoder()
_BETWEEN = " \t\r\n,"  # elements of an array


class _TooLongError(Exception):
    """An element of an array has no end within the length of a row."""


def needs_unpacking(file: SourceFile) -> bool:
    """Whether a file must be rewritten before it can be read in parts."""
    return file.kind != "parquet" and (bool(file.packing) or _begins_array(file, file.path))


def unpack(file: SourceFile, target: Path) -> None:
    """Write the rows of a compressed file or an array as JSON lines, unless that was done before.

    Raises StageError, naming the row, when the file breaks off or is not what its name says.
    """
    if target.exists():
        return
    part = target.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    try:
        with part.open("wb") as out:
            blocks = _read_blocks(file)
            is_array = not file.packing  # a compressed array is seen when its text is there
            for block in _split_array(blocks) if is_array else blocks:
                rows += block.count(b"\n")
                out.write(block)
    except _TooLongError:
        raise StageError(
            f"{file.name}: row {rows + 1} is longer than {LONGEST_ROW} bytes, or the file breaks off in it: "
            "leave that row out, or write the rows as JSON lines"
        ) from None
    except (EOFError, OSError, zlib.error, json.JSONDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file's content
        raise StageError(_describe_break(file, rows, error)) from None
    if file.packing and _begins_array(file, part):
        plain = part.with_suffix(".array")
        part.replace(plain)
        unpack(SourceFile(plain, file.name.removesuffix(f".{file.packing}")), target)
        plain.unlink()
        return
    part.replace(target)


def _describe_break(file: SourceFile, rows: int, error: Exception) -> str:
    what = str(error).partition("\n")[0]
    if rows or isinstance(error, EOFError | json.JSONDecodeError) or "Truncated" in what:
        return (
            f"{file.name} breaks off in row {rows + 1} ({what}): get the whole file again, "
            "or unpack it yourself and give what is readable"
        )
    return f"{file.name} is not what its name says ({what}): rename it by what it is"


def _begins_array(file: SourceFile, path: Path) -> bool:
    if file.kind != "array":
        return False
    with path.open("rb") as head:
        return head.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _read_blocks(file: SourceFile) -> Iterator[bytes]:
    """The bytes of a file without its compression; the stream that breaks off gives all before the break."""
    if file.packing == "gz":
        with gzip.open(file.path) as packed:
            while block := packed.read1(_BLOCK):
                yield block
    elif file.packing == "zst":
        import pyarrow  # takes half a second and 40 MB, so only where it is needed

        # zstandard's own reader takes a stream that breaks off for a whole one.
        with pyarrow.input_stream(str(file.path), compression="zstd") as packed:
            while block := packed.read(_BLOCK):
                yield block
    else:
        with file.path.open("rb") as plain:
            while block := plain.read(_BLOCK):
                yield block


def _split_array(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The elements of a JSON array as they are written, one a line.

    Raises JSONDecodeError where it stops being an array. Bytes that are no text are passed on.
    """
    decoder = getincrementaldecoder("utf-8")("surrogateescape")
    text, begun, wanted = "", False, 0
    for block in itertools.chain(blocks, (b"",)):
        text += decoder.decode(block, final=not block)
        if not begun:
            head = text.lstrip("\ufeff \t\r\n")
            text, begun = head[1:], bool(head)
        if block and len(text) < wanted:
            continue
        pos = 0
        while (end := _end_of_element(text, pos := _skip(text, pos))) != -1:
            yield _as_line(text[pos:end])
            pos = end
        # A long element is tried again when twice as much of it is there.
        text = text[pos:]
        wanted = 2 * len(text)
    if text.strip() != "]":
        raise json.JSONDecodeError("Expecting an element or the end of the array", text, 0)


def _end_of_element(text: str, pos: int) -> int:
    """The end of the element at `pos`, -1 when it may go on behind the text. Raises JSONDecodeError."""
    if text.startswith("]", pos):
        return -1
    try:
        _, end = _DECODER.raw_decode(text, pos)
    except json.JSONDecodeError as error:
        goes_on = error.pos > len(text) - 16 or error.msg.startswith("Unterminated")
        if goes_on and len(text) - pos < LONGEST_ROW:
            return -1
        if goes_on:
            raise _TooLongError from None
        raise
    return end if end < len(text) else -1  # a number may go on


def _skip(text: str, pos: int) -> int:
    while pos < len(text) and text[pos] in _BETWEEN:
        pos += 1
    return pos


def _as_line(element: str) -> bytes:
    """An element on one line: JSON's strings hold no raw newline, so any is white space."""
    return element.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogateescape") + b"\n"
