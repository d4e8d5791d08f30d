"""The files of a split: one or numbered shards, and never a part of them taken for the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import StageError
from stages.core.splits import read_lines, shard_names, split_files


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(f'"{name} 1"\n"{name} 2"\n', "utf-8")


def test_names() -> None:
    assert shard_names("train", 1) == ["train.jsonl"]
    assert shard_names("valid", 2) == ["valid-00000-of-00002.jsonl", "valid-00001-of-00002.jsonl"]


def test_one_file(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "valid.jsonl")
    assert split_files(tmp_path, "train") == [tmp_path / "train.jsonl"]
    assert split_files(tmp_path, "test") == []
    assert [(line.number, line.data) for line in read_lines(tmp_path, "train")] == [
        (1, b'"train.jsonl 1"\n'),
        (2, b'"train.jsonl 2"\n'),
    ]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    """An editor leaves them."""
    (tmp_path / "train.jsonl").write_bytes(b"\n1\n \r\n2\n\n")
    assert [(line.number, line.data) for line in read_lines(tmp_path, "train")] == [(2, b"1\n"), (4, b"2\n")]


def test_shards_are_read_in_order_and_numbered_by_file(tmp_path: Path) -> None:
    names = shard_names("train", 12)
    write(tmp_path, *reversed(names), "train-notes.jsonl", "rejected.jsonl")
    assert [path.name for path in split_files(tmp_path, "train")] == names
    lines = list(read_lines(tmp_path, "train"))
    assert len(lines) == 24
    assert lines[-1].place == f"{tmp_path}/train-00011-of-00012.jsonl:2"
    assert [line.data for line in lines[:3]] == [
        f'"{names[0]} 1"\n'.encode(), f'"{names[0]} 2"\n'.encode(), f'"{names[1]} 1"\n'.encode()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (shard_names("train", 3)[:2], "lacks train-00002-of-00003.jsonl: 2 of 3 shards"),
        (["train.jsonl", *shard_names("train", 2)], "holds train twice"),
        ([*shard_names("train", 2), *shard_names("train", 3)], "holds train twice"),
    ],
)
def test_a_part_is_not_taken_for_the_whole(names: list[str], reason: str, tmp_path: Path) -> None:
    write(tmp_path, *names)
    with pytest.raises(StageError, match=reason):
        split_files(tmp_path, "train")
