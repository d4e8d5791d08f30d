"""The files of a split put together from its pieces, in the order of the rows.

A split of up to `shard_bytes` is one file. A longer one is numbered shards, each of pieces next to
each other that have room in it; a single piece is never cut.
"""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.convert_data.work import PIECES
from stages.core.splits import shard_names


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

    def numbers(self) -> array[int]:
        """The number of every row in the files it came from."""
        numbers = array("Q")
        numbers.frombytes((self.folder / f"{self.split}.numbers").read_bytes())
        return numbers

    def digests(self) -> bytes:
        """32 bytes a row: a digest of the whole, and one of its questions."""
        return (self.folder / f"{self.split}.digests").read_bytes()


def write_shards(
    folder: Path, split: str, parts: Sequence[Part], shard_bytes: int, dropped: Collection[int] = ()
) -> list[Path]:
    """Write the files of a split into `folder` without the rows whose numbers are `dropped`.

    A shard that is there was written by an earlier, interrupted run and stays as it is.
    """
    groups = _group(parts, shard_bytes)
    paths = [folder / name for name in shard_names(split, len(groups))]
    for path, group in zip(paths, groups, strict=True):
        if not path.exists():
            _write_shard(path, group, dropped)
        for part in group:
            part.rows.unlink(missing_ok=True)
    return paths


def collect(pieces: Sequence[Path], name: str, target: Path) -> None:
    """Put the files of one name from the folders of all pieces into one."""
    with target.open("wb") as whole:
        for piece in pieces:
            with (piece / name).open("rb") as file:
                shutil.copyfileobj(file, whole, 1 << 20)


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


def _write_shard(path: Path, parts: Sequence[Part], dropped: Collection[int]) -> None:
    unfinished = path.parent / PIECES / f".{path.name}"
    with unfinished.open("wb") as shard:
        for part in parts:
            with part.rows.open("rb") as rows:
                if not dropped:
                    shutil.copyfileobj(rows, shard, 1 << 20)
                    continue
                for number, line in zip(part.numbers(), rows, strict=True):
                    if number not in dropped:
                        shard.write(line)
    unfinished.replace(path)
