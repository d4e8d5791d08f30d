"""The work cut into pieces: parts of files that are converted alone, in any order, by any process.

How it is cut depends on the files alone, so a run that goes on elsewhere, or with another number of
processes, makes the same pieces and the same output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from stages.convert_data import parquet
from stages.convert_data.sources import SourceFile, Unreadable
from stages.core.platform import GB

SMALLEST, LARGEST = 16 << 20, 256 << 20  # bytes of a piece
WHOLE = 512  # pieces that the data are cut into, where that gives a size between the two
LONGEST_ROW = 16 << 20  # bytes; about four million tokens, more than any model's context
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """A part of one file: bytes from `start` to `end` of JSON lines, or rows of a Parquet file."""

    path: Path
    parquet: bool
    start: int
    end: int
    first: int
    """The number of its first line in the file, from 1."""
    rows: int
    """Lines or rows in it."""
    name: str
    """What messages call the file."""
    before: int = 0
    """Rows in the split's files before this one."""
    alone: bool = True
    """Whether the split has no other file."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Parts of the files of one split, next to each other."""

    split: str
    index: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """The folder of its results; names sort in the order of the rows."""
        return f"{self.split}-{self.index:06d}"

    @property
    def rows(self) -> int:
        """Lines or rows in it."""
        return sum(span.rows for span in self.spans)


def piece_bytes(size_gb: float) -> int:
    """The size of a piece for so much data."""
    return min(max(int(size_gb * GB) // WHOLE, SMALLEST), LARGEST)


def cut_split(split: str, files: Sequence[SourceFile], size: int) -> list[Piece]:
    """Cut the files of a split into pieces of about `size` bytes; small files share a piece."""
    pieces: list[Piece] = []
    spans: list[Span] = []
    filled = before = 0
    for file in files:
        rows = 0
        for span, used in _cut_file(file, size, size - filled):
            spans.append(replace(span, before=before, alone=len(files) == 1))
            rows += span.rows
            filled += used
            if filled >= size:
                pieces.append(Piece(split, len(pieces), tuple(spans)))
                spans, filled = [], 0
        before += rows
    if spans:
        pieces.append(Piece(split, len(pieces), tuple(spans)))
    return pieces


def read_rows(span: Span) -> Iterator[tuple[int, Any]]:
    """The rows of a part with their numbers in the file: bytes of a JSON line, an object, or Unreadable."""
    if not span.parquet:
        return _read_lines(span)
    rows = parquet.read_rows(span.path, span.start, span.end)
    return enumerate(rows, span.first)


def _cut_file(file: SourceFile, size: int, room: int) -> Iterator[tuple[Span, int]]:
    """The parts of a file, the first of `room` bytes and the others of `size`, and the size of each."""
    if file.kind == "parquet":
        yield from _cut_parquet(file, size, room)
    else:
        yield from _cut_lines(file, size, room)


def _cut_lines(file: SourceFile, size: int, room: int) -> Iterator[tuple[Span, int]]:
    begin = at = count = 0
    first = 1
    with file.path.open("rb", buffering=0) as lines:
        while block := lines.read(min(_BLOCK, size)):  # never longer than a part: one cut at most
            # The part ends with the first line that reaches its size.
            cut = block.find(b"\n", max(begin + room - 1 - at, 0)) if at + len(block) - begin >= room else -1
            if cut != -1:
                count += block.count(b"\n", 0, cut + 1)
                end = at + cut + 1
                yield Span(file.path, False, begin, end, first, count, file.name), end - begin
                begin, first, count, room = end, first + count, 0, size
            count += block.count(b"\n", cut + 1)
            at += len(block)
            last = block
    if at > begin:
        count += not last.endswith(b"\n")
        yield Span(file.path, False, begin, at, first, count, file.name), at - begin


def _cut_parquet(file: SourceFile, size: int, room: int) -> Iterator[tuple[Span, int]]:
    rows, total = parquet.measure(file.path, file.name)
    width = max(total / rows, 1.0) if rows else 1.0  # bytes of an average row
    start = 0
    while start < rows:
        end = min(start + max(int(room / width), 1), rows)
        yield (
            Span(file.path, True, start, end, start + 1, end - start, file.name),
            max(int((end - start) * width), 1 if end == rows else room),
        )
        start, room = end, size


def _read_lines(span: Span) -> Iterator[tuple[int, object]]:
    left, number = span.end - span.start, span.first
    with span.path.open("rb", buffering=_BLOCK) as file:
        file.seek(span.start)
        while left > 0 and (line := file.readline(LONGEST_ROW + 1)):
            left -= len(line)
            if len(line) > LONGEST_ROW and not line.endswith(b"\n"):
                start = span.end - left - len(line)
                rest = _skip_line(file)
                left -= rest
                end = span.end - left - 1  # before its newline; the last line of a file may have none
                reason = (
                    f"a row of {end - start} bytes, more than the {LONGEST_ROW} that are read: cut it into "
                    "shorter rows, each on a line of its own"
                )
                yield number, Unreadable(reason, _read_range(span.path, start, end))
            elif number == 1 and line.startswith(b"\xef\xbb\xbf"):
                yield number, line[3:]
            else:
                yield number, line
            number += 1


def _skip_line(file: IO[bytes]) -> int:
    """Read up to the end of a line that has begun; returns how many bytes that were, one for its newline."""
    size = 0
    while block := file.readline(_BLOCK):
        size += len(block)
        if block.endswith(b"\n"):
            return size
    return size + 1


def _read_range(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (block := file.read(min(_BLOCK, end - start))):
            start += len(block)
            yield block
