"""The conversion of one piece: what every process does, of this machine or another.

The results of a piece are a folder that is renamed into place when it is whole, so a killed run has
pieces or has them not.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import orjson
from pydantic import TypeAdapter

from stages.convert_data import parquet
from stages.convert_data.card import SplitCard
from stages.convert_data.pieces import Piece, Span, read_rows
from stages.convert_data.rows import Converted, convert_row
from stages.convert_data.sources import Unreadable
from stages.core.fixes import FixSet
from stages.core.preset import ModelSetup

PIECES = "pieces"  # folder of the results in the unfinished output
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
"""Written last into a piece's folder."""
ARROW_NULLS = "null keys of Arrow structs left out"
Digests = tuple[bytes, ...]
_CARDS = TypeAdapter(dict[str, SplitCard])
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """All that a process needs beside the piece."""

    folder: Path
    """The unfinished output."""
    setup: ModelSetup
    fixes: FixSet
    valid_share: float | None = None
    """The share of the rows of `train` that become `valid`."""
    seed: int = 0


@dataclass
class Summary:
    """What is known about a converted piece."""

    sizes: dict[str, int]
    """Bytes of its rows by the split that they go to."""
    cards: dict[str, SplitCard] = field(default_factory=dict)


def convert_piece(piece: Piece, work: Work) -> int:
    """Convert a piece, unless that was done before, and say how many rows it has."""
    target = work.folder / PIECES / piece.name
    if target.is_dir():
        return piece.rows
    # Two processes may work on the same piece when one was thought dead; both write the same.
    part = target.with_name(f".{piece.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with _Results(part, piece.split) as results:
        for span in piece.spans:
            _convert_span(span, results, work)
    results.write_summary()
    try:
        part.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(part)
    return piece.rows


def read_summary(work: Work, piece: Piece) -> Summary:
    """What is known about a converted piece."""
    data = orjson.loads((work.folder / PIECES / piece.name / SUMMARY).read_bytes())
    return Summary(data["sizes"], _CARDS.validate_python(data["cards"]))


def encode_row(row: dict[str, Any]) -> bytes:
    """The row as a JSON line. Raises ValueError when it would not be read back as it is."""
    try:
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:  # half of a surrogate pair, a number beyond 64 bits
        raise ValueError(f"an argument that JSON cannot hold: {error}") from None
    # A number that is not finite is written as null, and nothing else can come back different.
    if b"null" in line and orjson.loads(line) != row:
        raise ValueError("an argument that JSON cannot hold: a number that is not finite")
    return line


def digest_row(converted: Converted) -> Digests:
    """16 bytes for the whole row, and 16 for its questions."""
    row = converted.row
    questions = [m["content"] for m in row.get("messages", ()) if m["role"] == "user"] or row
    return tuple(blake2b(orjson.dumps(part), digest_size=16).digest() for part in (row, questions))


def _convert_span(span: Span, results: _Results, work: Work) -> None:
    keep, choose = results.keep, _Choice(results.split, work)
    setup, fixes, before = work.setup, work.fixes, span.before
    for number, item in read_rows(span):
        nulls = 0
        try:
            if isinstance(item, bytes):
                line = item.strip()
                if not line:
                    continue
                raw = orjson.loads(line)
            elif isinstance(item, Unreadable):
                raise ValueError(item.reason)
            else:
                raw = item
                nulls = parquet.drop_foreign_nulls(raw)
            converted = convert_row(raw, setup, fixes)
            line = encode_row(converted.row)
        except ValueError as error:  # orjson.JSONDecodeError is one
            results.reject(span, number, str(error), item)
        else:
            if nulls:
                converted.changes.append(ARROW_NULLS)
            digests = digest_row(converted)
            keep(choose.split_of(digests), before + number, line, digests, converted)


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

    def split_of(self, digests: Digests) -> str:
        if not self._limit:
            return self.split
        place = blake2b(digests[1], digest_size=8, key=self._key).digest()
        return "valid" if int.from_bytes(place, "big") < self._limit else self.split


@dataclass
class _Output:
    """The rows of a piece that go to one split."""

    rows: IO[bytes]
    digests: IO[bytes]
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    size: int = 0


class _Results:
    """The folder of a piece while it is written: rows, their numbers, rejected rows, counts."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
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
            (self.folder / f"{split}.numbers").write_bytes(output.numbers.tobytes())
        self._rejected.close()

    def keep(self, split: str, number: int, line: bytes, digests: Digests, converted: Converted) -> None:
        """Write a converted row."""
        output = self._outputs.get(split) or self._open(split)
        output.rows.write(line)
        output.size += len(line)
        output.digests.writelines(digests)
        output.numbers.append(number)
        self.cards[split].accept(converted)

    def reject(self, span: Span, number: int, reason: str, item: object) -> None:
        """Write a refused row with its reason."""
        self.cards[self.split].reject(span.before + number, reason)
        about = {"split": self.split, "line": span.before + number}
        if not span.alone:
            about |= {"file": span.name, "file_line": number}
        head = json.dumps(about | {"reason": reason})  # a reason may quote half of a surrogate pair
        self._rejected.write(head[:-1].encode() + b', "row": "')
        for block in _escape(_blocks_of(item)):
            self._rejected.write(block)
        self._rejected.write(b'"}\n')

    def write_summary(self) -> None:
        """Write what is known about the piece."""
        sizes = {split: output.size for split, output in self._outputs.items()}
        data = {"sizes": sizes, "cards": _CARDS.dump_python(self.cards, mode="json")}
        (self.folder / SUMMARY).write_bytes(orjson.dumps(data))

    def _open(self, split: str) -> _Output:
        output = _Output(
            (self.folder / f"{split}.jsonl").open("wb", buffering=_BUFFER),
            (self.folder / f"{split}.digests").open("wb", buffering=_BUFFER),
        )
        self._outputs[split] = output
        self.cards.setdefault(split, SplitCard())
        return output


def _blocks_of(item: object) -> Iterable[bytes]:
    if isinstance(item, Unreadable):
        return item.blocks
    if isinstance(item, bytes):
        return (item.removesuffix(b"\n"),)
    return (orjson.dumps(item, default=str),)


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
