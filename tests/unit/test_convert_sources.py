"""What --data may name, and the line that says so when it is something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.convert_data.sources import find_source, require_splits, split_of
from stages.core.errors import StageError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, "utf-8")
    return folder


def splits(folder: Path) -> dict[str, list[str]]:
    return {split: [file.name for file in files] for split, files in find_source(folder).splits.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"), ("train.json", "train"), ("train.parquet", "train"),
        ("TRAIN.JSONL.GZ", "train"), ("train.ndjson.zst", "train"), ("validation.jsonl", "valid"),
        ("val.jsonl", "valid"), ("dev.json.gz", "valid"), ("test-00003-of-00010.parquet", "test"),
        ("train-00000-of-00001-a1b2c3d4e5f60718.parquet", "train"), ("training.jsonl", "train"),
        ("rejected.jsonl", None), ("train.csv", None), ("train", None), ("trainer.jsonl", None),
        ("train-notes.jsonl", None), ("train.parquet.lock", None),
    ],
)  # fmt: skip
def test_file_names(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_a_folder_of_splits(tmp_path: Path) -> None:
    touch(tmp_path, "test.jsonl.gz", "README.md", "card.json", "valid.jsonl", "rejected.jsonl")
    touch(tmp_path, *(f"train-{index:05d}-of-00012.parquet" for index in reversed(range(12))))
    assert splits(tmp_path) == {
        "train": [f"train-{index:05d}-of-00012.parquet" for index in range(12)],
        "valid": ["valid.jsonl"],
        "test": ["test.jsonl.gz"],
    }


def test_folders_named_after_splits_and_the_layout_of_the_hub(tmp_path: Path) -> None:
    touch(tmp_path / "a", "train/b.jsonl", "train/a.jsonl", "train/notes.txt", "validation/x.parquet")
    assert splits(tmp_path / "a") == {
        "train": ["train/a.jsonl", "train/b.jsonl"], "valid": ["validation/x.parquet"]
    }  # fmt: skip
    touch(tmp_path / "a", "train/rejected.jsonl", "train/duplicates.jsonl")  # of an earlier conversion
    touch(tmp_path / "a", *(f"train/{name}-00000-of-00001.jsonl" for name in "cd"))
    assert splits(tmp_path / "a")["train"] == [
        *("train/a.jsonl", "train/b.jsonl", "train/c-00000-of-00001.jsonl", "train/d-00000-of-00001.jsonl")
    ]
    touch(tmp_path / "b", "README.md", "data/train-00000-of-00001.parquet", "data/validation.jsonl")
    assert splits(tmp_path / "b") == {
        "train": ["train-00000-of-00001.parquet"], "valid": ["validation.jsonl"]
    }  # fmt: skip


def test_files_of_no_split_are_named(tmp_path: Path) -> None:
    names = ["train.jsonl", "valid.jsonl", "extra.jsonl.gz", "more-00000-of-00001.parquet", "rejected.jsonl"]
    source = find_source(touch(tmp_path, *names, "tools.json", "card.md"))
    assert source.left_out == ("extra.jsonl.gz", "more-00000-of-00001.parquet")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(
        StageError, match=r"has no train.jsonl: .*; not read: extra.jsonl.gz, more-.*: a split"
    ):
        require_splits(find_source(tmp_path), tmp_path, None)


def test_one_file_is_all_train(tmp_path: Path) -> None:
    path = touch(tmp_path, "rows.jsonl.gz") / "rows.jsonl.gz"
    source = find_source(path)
    assert source.name == "rows.jsonl.gz"
    assert [(file.path, file.kind, file.packing) for file in source.splits["train"]] == [
        (path, "lines", "gz")
    ]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["train.jsonl", "train.parquet"],
            "has train.jsonl and train.parquet: leave one of them as the split",
        ),
        (["validation.jsonl", "valid.jsonl"], "leave one of them as the split valid"),
        (["train.jsonl", "train-00000-of-00001.jsonl"], "leave one of them"),
        (["train.jsonl", "train/more.jsonl"], "leave one of them"),
        (["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], "lacks shard 00001 of 00003"),
        (["train-00000-of-00002.jsonl", "train-00000-of-00001.jsonl"], "leave one of them"),
        (
            ["train/a-00000-of-00003.jsonl", "train/a-00002-of-00003.jsonl"],
            "lacks shard 00001 of 00003 of train/a",
        ),
        (
            ["train/a-00000-of-00001.jsonl", "train/a-00000-of-00002.jsonl", "train/a-00001-of-00002.jsonl"],
            "has train/a in 00001 and 00002 shards: leave one set as the split train",
        ),
    ],
)
def test_what_is_not_clear_is_said(names: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=reason):
        find_source(touch(tmp_path, *names))


@pytest.mark.parametrize(
    ("names", "share", "reason"),
    [
        (["valid.jsonl"], None, "has no train.jsonl: training needs"),
        (["train.jsonl"], None, "has no valid.jsonl: .* --valid-share 0.1 sets a tenth of the rows aside"),
        (["train.jsonl", "valid.jsonl"], 0.1, "has a valid split: leave --valid-share out"),
    ],
)
def test_the_splits_that_training_needs(
    names: list[str], share: float | None, reason: str, tmp_path: Path
) -> None:
    source = find_source(touch(tmp_path, *names))
    with pytest.raises(StageError, match=reason):
        require_splits(source, tmp_path, share)


@pytest.mark.parametrize("place", ["data", "data/train.jsonl"])
def test_a_folder_with_the_name_of_a_file_is_said(place: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "train.jsonl").mkdir(parents=True)
    (tmp_path / "data" / "train.jsonl" / "rows.jsonl").touch()
    source = find_source(tmp_path / place)
    with pytest.raises(StageError, match=r"/data/train\.jsonl is a folder and no file: name it train, or"):
        require_splits(source, tmp_path / place, 0.0)


def test_what_is_neither_file_nor_hub_id(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"no data folder or file .*/none: give one with train\.jsonl, valid\.jsonl"
    ):
        find_source(tmp_path / "none")
    with pytest.raises(
        StageError, match=r"rows\.csv is neither \.jsonl, \.json .* nor \.parquet: write its rows"
    ):
        find_source(touch(tmp_path, "rows.csv") / "rows.csv")


def test_the_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    touch(tmp_path, "train.jsonl", "valid.jsonl")
    first = find_source(tmp_path).fingerprint()
    assert find_source(tmp_path).fingerprint() == first
    (tmp_path / "valid.jsonl").write_text("changed", "utf-8")
    assert find_source(tmp_path).fingerprint() != first
