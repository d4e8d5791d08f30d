"""The files of a split: `train.jsonl`, or numbered shards where the rows do not fit one file.

Rows of a split are numbered from 1 through all of its files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.core.errors import StageError

SPLITS = ("train", "valid", "test")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a split as it is stored."""

    path: Path
    number: int
    """In its file, from 1."""
    data: bytes

    @property
    def place(self) -> str:
        """`folder/train.jsonl:12`."""
        return f"{self.path}:{self.number}"


def shard_names(split: str, count: int) -> list[str]:
    """The names of the files that a split of `count` files is written to."""
    if count == 1:
        return [f"{split}.jsonl"]
    return [f"{split}-{index:05d}-of-{count:05d}.jsonl" for index in range(count)]


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split in the order of its rows; empty when the folder has no such split.

    Raises StageError when shards are missing, or when it is not clear which files count.
    """
    whole = folder / f"{split}.jsonl"
    shards = sorted(path for path in folder.glob(f"{split}-*.jsonl") if _SHARD.search(path.stem))
    if not shards:
        return [whole] if whole.is_file() else []
    wanted = shard_names(split, int(shards[0].stem[-5:]))
    if whole.is_file() or len({path.stem[-5:] for path in shards}) > 1:
        raise StageError(f"{folder} holds {split} twice, whole or in shards: remove what is out of date")
    missing = sorted(set(wanted) - {path.name for path in shards})
    if missing:
        raise StageError(f"{folder} lacks {', '.join(missing[:3])}: {len(shards)} of {len(wanted)} shards")
    return shards


def read_lines(folder: Path, split: str) -> Iterator[Line]:
    """The rows of a split, one at a time, blank lines aside. Raises StageError as `split_files` does."""
    for path in split_files(folder, split):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Line(path, number, line)
