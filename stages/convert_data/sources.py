"""What `--data` names: a folder of splits, one file, or a data set of the hub, as files by split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.core.errors import StageError
from stages.core.splits import SPLITS
from stages.core.words import name_some

ALIASES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
_FILE = re.compile(
    r"(?P<stem>.+?)\.(?P<kind>jsonl|ndjson|json|parquet)(?:\.(?P<packing>gz|zst))?", re.IGNORECASE
)
# As Hugging Face names shards; older ones carry a hash behind the count.
_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?")
_BESIDE = ("rejected", "duplicates")  # of an earlier conversion: no rows to be read
_SHOWN = 5
_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class SourceFile:
    """One file of rows."""

    path: Path
    name: str
    """What messages call it. The name, not the path, says how the file is written: a cache of
    downloads has names of its own."""

    @property
    def kind(self) -> Literal["lines", "array", "parquet"]:
        """How the rows are written; a `.json` file is an array when it begins as one."""
        kind = _match(self.name)["kind"].lower()
        if kind == "parquet":
            return "parquet"
        return "array" if kind == "json" else "lines"

    @property
    def packing(self) -> Literal["", "gz", "zst"]:
        """How the file is compressed."""
        packing = (_match(self.name)["packing"] or "").lower()
        return "gz" if packing == "gz" else "zst" if packing == "zst" else ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is refused before it is looked at: why, and its bytes, part by part."""

    reason: str
    blocks: Iterable[bytes]


@dataclass(frozen=True)
class Source:
    """The files of every split, in the order of their rows."""

    name: str
    splits: dict[str, tuple[SourceFile, ...]]
    left_out: tuple[str, ...] = ()
    """Files of rows, or splits of the hub, whose names are no split's."""

    def size_gb(self) -> float:
        """Size of all files, in GB (1e9 bytes)."""
        return sum(file.path.stat().st_size for files in self.splits.values() for file in files) / 1e9

    def fingerprint(self) -> str:
        """SHA-256 over the splits and the bytes of their files."""
        digest = hashlib.sha256()
        files = [(split, file.path) for split, files in self.splits.items() for file in files]
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
            hashes = pool.map(_hash, [path for _, path in files])
            for (split, _), each in zip(files, hashes, strict=True):
                digest.update(split.encode() + b"\0" + each)
        return digest.hexdigest()


def find_source(data: Path) -> Source:
    """Find the files that `--data` names. Raises StageError when there are none, or it is not clear which."""
    if data.is_dir():
        name = data.name
        if not (splits := find_splits(data)) and (data / "data").is_dir():
            data = data / "data"  # as hub data sets are laid out
            splits = find_splits(data)
        return Source(name, splits, _list_left_out(data))
    if data.is_file():
        if _FILE.fullmatch(data.name) is None:
            raise StageError(
                f"{data} is neither .jsonl, .json (.gz, .zst) nor .parquet: write its rows as JSON lines or "
                "Parquet, or rename it where it holds them"
            )
        return Source(data.name, {"train": (SourceFile(data, data.name),)})
    if (hub_id := _HUB_ID.fullmatch(str(data))) is not None:
        from stages.convert_data.hub import find_hub_source

        return find_hub_source(hub_id["name"], hub_id["config"], hub_id["revision"])
    raise StageError(
        f"no data folder or file {data}: give one with {', '.join(f'{split}.jsonl' for split in SPLITS)} as "
        "--data, a file, or ORG/NAME of the hub (ORG/NAME:CONFIGURATION@REVISION)"
    )


def find_splits(folder: Path) -> dict[str, tuple[SourceFile, ...]]:
    """The splits of a folder: files named after them, in shards or not, or folders of such names."""
    found: dict[str, list[SourceFile]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (split := ALIASES.get(path.name.lower())):
            inside = [p for p in sorted(path.iterdir()) if p.is_file() and _holds_rows(p.name)]
            found.setdefault(split, []).extend(SourceFile(p, f"{path.name}/{p.name}") for p in inside)
        elif path.is_file() and (split := split_of(path.name)):
            found.setdefault(split, []).append(SourceFile(path, path.name))
    for split, files in found.items():
        _require_one_set(folder, split, files)
    return {split: tuple(found[split]) for split in SPLITS if found.get(split)}


def _holds_rows(name: str) -> bool:
    """Whether a file in a split's folder belongs to it: not what a conversion writes beside its rows."""
    file = _FILE.fullmatch(name)
    return file is not None and file["stem"] not in _BESIDE


def _list_left_out(folder: Path) -> tuple[str, ...]:
    """The files of rows in a folder that belong to no split, without what a conversion writes beside."""
    return tuple(
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (file := _FILE.fullmatch(path.name)) is not None
        and (file["kind"].lower() != "json" and _holds_rows(path.name))
        and split_of(path.name) is None
    )


def describe_left_out(source: Source) -> str:
    """What of the source is not read, empty where all of it is."""
    if not source.left_out:
        return ""
    return f"{name_some(source.left_out, _SHOWN)}: a split is called {', '.join(SPLITS)}"


def split_of(name: str) -> str | None:
    """The split that a file's name stands for, None for any other file."""
    if (file := _FILE.fullmatch(name)) is None:
        return None
    shard = _SHARD.fullmatch(file["stem"])
    return ALIASES.get((shard["split"] if shard else file["stem"]).lower())


def require_splits(source: Source, place: Path, valid_share: float | None) -> None:
    """Raise StageError when training would lack a split, or a split has no byte."""
    for split in ("train", "valid"):
        if split not in source.splits and (folder := _find_split_folder(place, split)):
            raise StageError(f"{folder} is a folder and no file: name it {split}, or give the file in it")
    if "train" not in source.splits:
        others = f"; not read: {found}" if (found := describe_left_out(source)) else ""
        raise StageError(f"{place} has no train.jsonl: training needs train.jsonl and valid.jsonl{others}")
    if valid_share is None and "valid" not in source.splits:
        lack = "is one file, and all of it train" if place.is_file() else "has no valid.jsonl"
        raise StageError(
            f"{place} {lack}: training needs train.jsonl and valid.jsonl; "
            "--valid-share 0.1 sets a tenth of the rows aside, --valid-share 0 does without"
        )
    if valid_share is not None and "valid" in source.splits:
        raise StageError(f"{place} has a valid split: leave --valid-share out")
    for split in ("train", "valid"):
        files = source.splits.get(split, ())
        if files and not any(file.path.stat().st_size for file in files):
            raise StageError(f"{files[0].path} is empty: give it at least one row")


def _find_split_folder(place: Path, split: str) -> Path | None:
    """A folder with the name of a split's file, at that place or the place itself; None without."""
    found = [place, *(sorted(place.iterdir()) if place.is_dir() else ())]
    return next((path for path in found if path.is_dir() and split_of(path.name) == split), None)


def _require_one_set(folder: Path, split: str, files: Iterable[SourceFile]) -> None:
    """Raise StageError when the files of a split are not one file, one folder or one set of shards.

    A folder may hold files of any name, sets of shards among them.
    """
    sources: dict[tuple[str, str], str] = {}
    shards: dict[str, dict[str, set[int]]] = {}
    for file in files:
        place, slash, name = file.name.rpartition("/")
        shard = _SHARD.fullmatch(_match(name)["stem"])
        if shard:
            counts = shards.setdefault(f"{place}{slash}{shard['split']}", {})
            counts.setdefault(shard["count"], set()).add(int(shard["index"]))
        key = (place, "") if place else (shard["split"], shard["count"]) if shard else (name, "")
        sources.setdefault(key, file.name)
    if len(sources) > 1:
        both = " and ".join(list(sources.values())[:2])
        raise StageError(f"{folder} has {both}: leave one of them as the split {split}")
    for name, counts in shards.items():
        if len(counts) > 1:
            both = " and ".join(sorted(counts)[:2])
            raise StageError(f"{folder} has {name} in {both} shards: leave one set as the split {split}")
        for count, indexes in counts.items():
            if missing := sorted(set(range(int(count))) - indexes):
                raise StageError(f"{folder} lacks shard {missing[0]:05d} of {count} of {name}")


def _match(name: str) -> Mapping[str, str]:
    match = _FILE.fullmatch(name)
    if match is None:
        raise StageError(f"{name} is neither JSON lines nor Parquet")
    return match.groupdict()


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
