"""Compressed files and JSON arrays as plain JSON lines, so that any part of them can be read at once.

The plain copy lies in the unfinished output and goes when the work is done.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.convert_data.pieces import LONGEST_ROW
from stages.convert_data.sources import SourceFile
from stages.core.errors import StageError

_BLOCK = 1 << 16
_HEAD = 1 << 16  # looked at to see how a file begins
_BETWEEN = re.compile(rb"[ \t\r\n,]*+")  # elements of an array
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'


def _pass_over(levels: int) -> bytes:
    """An expression for text with strings, and with brackets of so many levels that all are closed."""
    nested = b"" if levels == 0 else rb"|[\[{]" + _pass_over(levels - 1) + rb"[\]}]"
    return rb'[^"\[\]{}]*+(?:(?:' + _STRING + nested + rb')[^"\[\]{}]*+)*+'


# Nearly every element ends at the first bracket behind what eight levels pass over.
_BRACKET = re.compile(_pass_over(8) + rb"([\[\]{}])", re.DOTALL)
_PLAIN = re.compile(_STRING + rb'|[^"\[\]{},\s]++', re.DOTALL)


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


def require_lines(file: SourceFile) -> None:
    """Raise StageError for text that begins as UTF-16 does, or as one object over several lines.

    Of such a file every row would be refused.
    """
    if file.kind == "parquet":
        return
    with file.path.open("rb") as lines:
        first = lines.readline(_HEAD)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise StageError(f"{file.name} is UTF-16: save it as UTF-8")
    if first.removeprefix(codecs.BOM_UTF8).strip() == b"{":
        raise StageError(
            f"{file.name} is one JSON object over several lines: write each row on a line of its own, or "
            "all of them as a list; definitions of tools are given with --tools"
        )


def _describe_break(file: SourceFile, rows: int, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return (
            f"{file.name} is no whole JSON array, it breaks off in row {rows + 1} ({error.msg}): "
            "get the whole file again, or write the rows as JSON lines"
        )
    what = str(error).partition("\n")[0]
    if rows or isinstance(error, EOFError) or "Truncated" in what:
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
    """The elements of a JSON array, one a line.

    Where an element ends is all that is looked at: the conversion says what is wrong with one that is no
    JSON. Raises JSONDecodeError where it stops being an array.
    """
    text, begun, wanted = b"", False, 0
    for block in itertools.chain(blocks, (b"",)):
        text += block
        if not begun:
            head = text.lstrip(b"\xef\xbb\xbf \t\r\n")
            text, begun = head[1:], bool(head)
        if block and len(text) < wanted:
            continue
        pos = 0
        while (end := _end_of_element(text, pos := _BETWEEN.match(text, pos).end())) != -1:  # type: ignore[union-attr]
            # A raw newline in a string becomes what no string may hold either, and elsewhere is white space.
            yield text[pos:end].replace(b"\n", b"\r") + b"\n"
            pos = end
        # A long element is tried again when twice as much of it is there.
        text = text[pos:]
        wanted = 2 * len(text)
    if text.strip() != b"]":
        raise json.JSONDecodeError("Expecting an element or the end of the array", "", 0)


def _end_of_element(text: bytes, pos: int) -> int:
    """The end of the element at `pos`, -1 when it may go on behind the text and where the array ends.

    Raises JSONDecodeError for a bracket that closes nothing.
    """
    first = text[pos : pos + 1]
    if first == b"]":
        return -1
    if first == b"}":
        raise json.JSONDecodeError("A bracket that closes nothing", "", 0)
    end = _end_of_nested(text, pos) if first in (b"[", b"{") else _end_of_plain(text, pos)
    if end == -1 and len(text) - pos >= LONGEST_ROW:
        raise _TooLongError
    return end


def _end_of_nested(text: bytes, pos: int) -> int:
    depth, pos = 1, pos + 1
    # Matched from where the last one ends and not searched for: a search would begin inside of strings.
    while (bracket := _BRACKET.match(text, pos)) is not None:
        pos = bracket.end()
        depth += 1 if bracket[1] in b"[{" else -1
        if not depth:
            return pos
    return -1


def _end_of_plain(text: bytes, pos: int) -> int:
    """The end of a string, or of a number or a word, which may go on where the text ends."""
    match = _PLAIN.match(text, pos)
    return match.end() if match is not None and match.end() < len(text) else -1
