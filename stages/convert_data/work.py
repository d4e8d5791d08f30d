"""What every process does with a piece, of this machine or another: convert it, or count its calls.

The results of a piece are a folder that is renamed into place when it is whole, so a killed run has
pieces or has them not.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import orjson
from pydantic import TypeAdapter

from stages.convert_data import parquet
from stages.convert_data.converted import Converted
from stages.convert_data.counts import SplitCard, Tally
from stages.convert_data.digests import NO_DIGEST
from stages.convert_data.inference import Census, load_census, save_census
from stages.convert_data.lines import load_once
from stages.convert_data.offers import ConvertContext, ToolsUnclear
from stages.convert_data.pieces import Piece, Span, read_rows
from stages.convert_data.rendering import Target, write_text
from stages.convert_data.rows import convert_fully, convert_row
from stages.convert_data.sources import Unreadable
from stages.core.errors import StageError

PIECES = "pieces"  # folder of the results in the unfinished output
CENSUS = "census"  # folder of what the pieces say about tools
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
"""Written last into a piece's folder."""
BLANK = object()
ARROW_NULLS = "null keys of Arrow structs left out"
_PLACE = re.compile(r": line \d+ column \d+ \(char (\d+)\)$")  # as readers of JSON say it, of one row here
_CARDS = TypeAdapter(dict[str, SplitCard])
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """All that a process needs beside the piece."""

    folder: Path
    """The unfinished output."""
    context: ConvertContext
    valid_share: float | None = None
    """The share of the rows of `train` that become `valid`."""
    seed: int = 0
    target: Target | None = None
    """The model whose chat template writes the rows as text too."""
    results: str = PIECES
    """The folder of the results; conversions of the same data with other tools have another one."""

    def place(self, piece: Piece) -> Path:
        """The results of a piece."""
        return self.folder / self.results / piece.name


Task = Callable[[Piece, Work], int]
"""What is done with a piece; returns its rows."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with all pieces."""

    label: str
    task: Task
    is_done: Callable[[Piece, Work], bool]
    """Whether an earlier run has done it with a piece."""


@dataclass
class Summary:
    """What is known about a converted piece."""

    sizes: dict[str, int]
    """Bytes of its rows by the split that they go to."""
    cards: dict[str, SplitCard] = field(default_factory=dict)


def convert_piece(piece: Piece, work: Work) -> int:
    """Convert a piece, unless that was done before, and say how many rows it has.

    Raises ToolsUnclear where a row contradicts what the context takes for granted about tools.
    """
    target = work.place(piece)
    if _is_converted(piece, work):
        return piece.rows
    # Two processes may work on the same piece when one was thought dead; both write the same.
    part = target.with_name(f".{piece.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with _Results(part, piece.split, work.target) as results:
        for span in piece.spans:
            _convert_span(span, results, work)
    results.write_summary()
    require_one_kind(results.cards.values(), work)
    try:
        part.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(part)
    return piece.rows


def require_one_kind(cards: Iterable[SplitCard], work: Work) -> None:
    """Raise ToolsUnclear where rows have tools of their own, and it is not known what others have."""
    if work.context.tools is None:
        kinds = {kind for card in cards for kind in card.rows_by_owner}
        if len(kinds) > 1:
            raise ToolsUnclear(ToolsUnclear.MIXED)


def read_summary(work: Work, piece: Piece) -> Summary:
    """What is known about a converted piece."""
    data = orjson.loads((work.place(piece) / SUMMARY).read_bytes())
    return Summary(data["sizes"], _CARDS.validate_python(data["cards"]))


def count_calls(piece: Piece, work: Work) -> int:
    """Count the calls of a piece for `read_census`, unless that was done before; returns its rows.

    A row that will be rejected whatever the tools says nothing about them.
    """
    if _is_counted(piece, work):
        return piece.rows
    path, census, trial = _census_file(piece, work), Census(), work.context.try_rows()
    for span in piece.spans:
        for _, item in read_rows(span):
            try:
                raw, _ = _decode(item)
                if raw is BLANK:
                    continue
                convert_fully(raw, trial)
            except ValueError:
                census.rejected += 1  # the conversion says why
            else:
                census.add(raw)
    path.parent.mkdir(exist_ok=True)
    save_census(census, path)
    return piece.rows


def read_census(pieces: Sequence[Piece], work: Work) -> Census:
    """What all pieces say about tools, in their order."""
    whole = Census()
    for piece in pieces:
        if (census := load_census(_census_file(piece, work))) is not None:
            whole.merge(census)
    return whole


def _census_file(piece: Piece, work: Work) -> Path:
    return work.folder / CENSUS / f"{piece.name}.json"


def _is_converted(piece: Piece, work: Work) -> bool:
    return work.place(piece).is_dir()


def _is_counted(piece: Piece, work: Work) -> bool:
    return _census_file(piece, work).exists()


CONVERT = Job("converting", convert_piece, _is_converted)
COUNT = Job("looking for tools", count_calls, _is_counted)


def _convert_span(span: Span, results: _Results, work: Work) -> None:
    keep, choose, context, before = results.keep, _Choice(results.split, work), work.context, span.before
    for number, item in read_rows(span):
        try:
            raw, nulls = _decode(item)
            if raw is BLANK:
                continue
            converted = convert_row(raw, context)
        except ValueError as error:
            results.reject(span, number, str(error), item)
        else:
            if nulls:
                converted = converted.note(ARROW_NULLS)
            split = choose.split_of(converted.digests)
            keep(split, before + number, converted)
            if work.target is not None:
                results.keep_text(split, converted, span, number)


def _decode(item: Any) -> tuple[Any, int]:
    """The row as an object, BLANK for a blank line, and how many nulls of Arrow's it is without.

    Raises ValueError when it cannot be read.
    """
    if isinstance(item, bytes):
        line = item.strip()
        try:
            return (load_once(line) if line else BLANK), 0
        except ValueError as error:
            raise ValueError(_describe_mistake(line, error)) from None
    if isinstance(item, Unreadable):
        raise ValueError(item.reason)
    return item, parquet.drop_foreign_nulls(item)


def _describe_mistake(line: bytes, error: ValueError) -> str:
    """Why a line cannot be read; its place in the file is said beside it, so the reader's own is left out."""
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 text: byte 0x{line[wrong.start]:02x} at position {wrong.start + 1} of the row"
    said = _PLACE.sub(lambda place: f" at character {int(place[1]) + 1} of the row", str(error))
    return f"not valid JSON: {said}" if isinstance(error, json.JSONDecodeError) else said


class _Choice:
    """Which split a converted row goes to: its own, or for a share of the train rows `valid`.

    Rows with the same questions go together, so that none of them is learned in one and asked in the
    other; the choice needs nothing but the row and the seed.
    """

    def __init__(self, split: str, work: Work) -> None:
        self.split = split
        share = work.valid_share if split == "train" else None
        self._limit = int((share or 0.0) * 2**64)
        self._key = random.Random(work.seed).randbytes(16)

    def split_of(self, digests: tuple[bytes, bytes]) -> str:
        if not self._limit:
            return self.split
        whole, questions = digests
        said = whole if questions == NO_DIGEST else questions
        place = blake2b(said, digest_size=8, key=self._key).digest()
        return "valid" if int.from_bytes(place, "big") < self._limit else self.split


@dataclass
class _Output:
    """The rows of a piece that go to one split."""

    rows: IO[bytes]
    digests: IO[bytes]
    texts: IO[bytes] | None
    tally: Tally
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    size: int = 0


class _Results:
    """The folder of a piece while it is written: rows, their numbers, rejected rows, counts."""

    def __init__(self, folder: Path, split: str, target: Target | None) -> None:
        self.folder, self.split, self.target = folder, split, target
        self.cards = {split: SplitCard()}
        self._outputs: dict[str, _Output] = {}
        self._rejected = (folder / REJECTED).open("wb", buffering=_BUFFER)

    def __enter__(self) -> _Results:
        self._open(self.split)
        return self

    def __exit__(self, *_: object) -> None:
        for split, output in self._outputs.items():
            output.rows.close()
            output.digests.close()
            if output.texts is not None:
                output.texts.close()
            (self.folder / f"{split}.numbers").write_bytes(output.numbers.tobytes())
        self._rejected.close()

    def keep(self, split: str, number: int, converted: Converted) -> None:
        """Write a converted row."""
        output = self._outputs.get(split) or self._open(split)
        output.rows.write(converted.line)
        output.size += len(converted.line)
        output.digests.writelines(converted.digests)
        output.numbers.append(number)
        output.tally.accept(converted, number)

    def keep_text(self, split: str, converted: Converted, span: Span, number: int) -> None:
        """Write a row that was kept as the target's text. Raises StageError when its template refuses it."""
        texts = self._outputs[split].texts
        if texts is None or self.target is None:
            return
        try:
            texts.write(write_text(converted.row, self.target))
        except StageError as error:
            raise StageError(f"{span.name}, row {number}: {error}") from None

    def reject(self, span: Span, number: int, reason: str, item: object) -> None:
        """Write a refused row with its reason."""
        # It may quote half of a surrogate pair, which no file can hold.
        reason = reason.encode("utf-8", "backslashreplace").decode()
        self.cards[self.split].reject(span.before + number, reason)
        about = {"split": self.split, "line": span.before + number}
        if not span.alone:
            about |= {"file": span.name, "file_line": number}
        self._rejected.write(orjson.dumps(about | {"reason": reason})[:-1] + b',"row":"')
        for block in _escape(_blocks_of(item)):
            self._rejected.write(block)
        self._rejected.write(b'"}\n')

    def write_summary(self) -> None:
        """Write what is known about the piece."""
        for output in self._outputs.values():
            output.tally.settle()
        sizes = {split: output.size for split, output in self._outputs.items()}
        data = {"sizes": sizes, "cards": _CARDS.dump_python(self.cards, mode="json")}
        (self.folder / SUMMARY).write_bytes(orjson.dumps(data))

    def _open(self, split: str) -> _Output:
        card = self.cards.setdefault(split, SplitCard())
        output = _Output(
            (self.folder / f"{split}.jsonl").open("wb", buffering=_BUFFER),
            (self.folder / f"{split}.digests").open("wb", buffering=_BUFFER),
            (self.folder / f"{split}.texts").open("wb", buffering=_BUFFER) if self.target else None,
            Tally(card),
        )
        self._outputs[split] = output
        return output


def _blocks_of(item: object) -> Iterable[bytes]:
    if isinstance(item, Unreadable):
        return item.blocks
    if isinstance(item, bytes):
        return (item.removesuffix(b"\n"),)
    try:
        return (orjson.dumps(item, default=str, option=orjson.OPT_NON_STR_KEYS),)
    except TypeError:
        return (repr(item).encode("utf-8", "backslashreplace"),)


def _escape(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Bytes as the inside of a JSON string, part by part; those that are no text as `\\xff`."""
    rest = b""
    for block in blocks:
        text = rest + block
        cut = len(text) - _open_end(text)
        rest = text[cut:]
        yield json.dumps(text[:cut].decode("utf-8", "backslashreplace"))[1:-1].encode()
    yield json.dumps(rest.decode("utf-8", "backslashreplace"))[1:-1].encode()


def _open_end(text: bytes) -> int:
    """How many bytes at the end may be a character that goes on in the next block."""
    for back in range(1, min(4, len(text) + 1)):
        if text[-back] >= 0xC0:
            return back
        if text[-back] < 0x80:
            break
    return 0
