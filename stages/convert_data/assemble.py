"""The files of a split put together from its pieces, in the order of the rows.

A split of up to `shard_bytes` is one file. A longer one is numbered shards, each of pieces next to
each other that have room in it; a single piece is never cut.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import orjson

from stages.convert_data.duplicates import PACKED, Digests, Duplicates, Numbers
from stages.core.splits import shard_names

RENDERED = "rendered"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one piece that go to one split."""

    folder: Path
    split: str
    size: int
    """Bytes of its rows before any is dropped."""

    @property
    def rows(self) -> Path:
        """The rows themselves, gone when they are in their shard."""
        return self.folder / f"{self.split}.jsonl"

    @property
    def texts(self) -> Path:
        """The rows as the chat template of `--render` writes them, if any."""
        return self.folder / f"{self.split}.texts"

    def numbers(self) -> Numbers:
        """The number of every row in the files it came from."""
        return np.fromfile(self.folder / f"{self.split}.numbers", np.uint64)

    def digests(self) -> Digests:
        """The digests of every row."""
        return np.fromfile(self.folder / f"{self.split}.digests", PACKED)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return (self.folder / f"{self.split}.digests").stat().st_size // PACKED.itemsize


def join_digests(parts: Sequence[Part]) -> Digests:
    """The digests of all rows of a split."""
    return np.concatenate([np.empty(0, PACKED), *(part.digests() for part in parts)])


def join_numbers(parts: Sequence[Part]) -> Numbers:
    """The numbers of all rows of a split in its source."""
    return np.concatenate([np.empty(0, np.uint64), *(part.numbers() for part in parts)])


class Removal:
    """The rows that are left out of their split, and what is said of them."""

    def __init__(self, found: Duplicates, numbers: Mapping[str, Numbers]) -> None:
        self._twins, self._numbers = found.twins, numbers

    def between(self, split: str, start: int, end: int) -> dict[int, bytes]:
        """The rows from position `start` up to `end` by position: which row each repeats, as JSON."""
        twins = self._twins[split]
        first, last = np.searchsorted(twins.positions, (start, end))
        said = {}
        for at in range(first, last):
            other = twins.kept_splits[twins.kept_split[at]]
            position = int(twins.positions[at])
            about = {
                "split": split,
                "line": int(self._numbers[split][position]),
                "repeats": {
                    "split": other,
                    "line": int(self._numbers[other][twins.kept_positions[at]]),
                    "whole": bool(twins.same_row[at]),
                },
            }
            said[position] = orjson.dumps(about)[:-1]
        return said


def write_shards(
    folder: Path,
    split: str,
    parts: Sequence[Part],
    shard_bytes: int,
    work: Path,
    removal: Removal | None = None,
) -> list[Path]:
    """Write the files of a split into `folder`; what `removal` leaves out goes to `work`, a file a shard.

    A shard that is there was written by an earlier, interrupted run and stays as it is.
    """
    groups = _group(parts, shard_bytes)
    paths = [folder / name for name in shard_names(split, len(groups))]
    first = 0
    for path, group in zip(paths, groups, strict=True):
        if not path.exists():
            _write_shard(path, group, first, work, removal)
        for part in group:
            part.rows.unlink(missing_ok=True)
            part.texts.unlink(missing_ok=True)
            first += part.count
    return paths


def removed_rows(shard: Path, work: Path) -> Path:
    """The file with the rows that were left out of a shard."""
    return work / f"removed-{shard.name}"


def collect(files: Iterable[Path], target: Path) -> None:
    """Put files one behind the other."""
    with target.open("wb") as whole:
        for path in files:
            with path.open("rb") as file:
                shutil.copyfileobj(file, whole, _BLOCK)


def _group(parts: Sequence[Part], shard_bytes: int) -> list[list[Part]]:
    groups: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if groups[-1] and size + part.size > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.size
    return groups


def _write_shard(path: Path, parts: Sequence[Part], first: int, work: Path, removal: Removal | None) -> None:
    """The rows come last, so that a shard that is there is there with all that belongs to it."""
    if any(part.texts.exists() for part in parts):
        rendered = path.parent / RENDERED / path.name
        rendered.parent.mkdir(exist_ok=True)
        with rendered.open("wb") as texts:
            _write_lines([part.texts for part in parts], parts, first, removal, texts, None)
    unfinished = work / f".{path.name}"
    with unfinished.open("wb") as shard, removed_rows(path, work).open("wb") as removed:
        _write_lines([part.rows for part in parts], parts, first, removal, shard, removed)
    unfinished.replace(path)


def _write_lines(
    files: Iterable[Path],
    parts: Iterable[Part],
    first: int,
    removal: Removal | None,
    kept: IO[bytes],
    removed: IO[bytes] | None,
) -> None:
    """The lines of the parts' files, `first` being the position of the first one, to one of two."""
    for path, part in zip(files, parts, strict=True):
        gone = removal.between(part.split, first, first + part.count) if removal is not None else {}
        with path.open("rb") as lines:
            if gone:
                _sort_lines(lines, first, gone, kept, removed)
            else:
                shutil.copyfileobj(lines, kept, _BLOCK)
        first += part.count


def _sort_lines(
    lines: IO[bytes], first: int, gone: Mapping[int, bytes], kept: IO[bytes], removed: IO[bytes] | None
) -> None:
    for position, line in enumerate(lines, first):
        if (about := gone.get(position)) is None:
            kept.write(line)
        elif removed is not None:
            removed.writelines((about, b',"row":', line.removesuffix(b"\n"), b"}\n"))
