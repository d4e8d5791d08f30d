"""Data sets of the Hugging Face hub: `datasets` says which files are which split, and fetches them.

It is not asked to read the rows: it would put every object of a column into one Arrow struct.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.convert_data.sources import ALIASES, Source, SourceFile
from stages.core import progress
from stages.core.errors import StageError

FORMATS = ("json", "parquet")


def find_hub_source(name: str, config: str | None, revision: str | None) -> Source:
    """Fetch the files of a hub data set, or take those of an earlier run where there is no network.

    Raises StageError in one line when that cannot be done, or when the files are of another format.
    """
    try:
        from datasets import DownloadManager
        from datasets.utils import disable_progress_bars
    except ImportError:  # the folder `datasets` of this project is a namespace without anything in it
        raise StageError(f"{name} is no file here, and a hub data set needs the package datasets") from None
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt
    try:
        builder = _find_builder(name, config, revision)
        files = {
            str(split): list(map(str, urls)) for split, urls in (builder.config.data_files or {}).items()
        }
        if builder.name not in FORMATS:
            raise StageError(f"{name} on the hub holds {builder.name} files: JSON lines and Parquet are read")
        wanted = _choose_splits(files)
        fetched = DownloadManager(name).download({split: files[split] for split in wanted}) if wanted else {}
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a data set that only a script makes
        raise StageError(_describe_refusal(name, error)) from None
    splits: dict[str, tuple[SourceFile, ...]] = {}
    for split, known_as in wanted.items():
        pairs = zip(fetched[split], files[split], strict=True)
        splits[known_as] = tuple(SourceFile(Path(path), url.rpartition("/")[2]) for path, url in pairs)
    return Source(name, splits, tuple(split for split in files if split not in wanted))


def _choose_splits(names: Iterable[str]) -> dict[str, str]:
    """The splits that are read and what they are here; of `validation` and `dev` the former."""
    known = {name.lower(): name for name in names}
    chosen: dict[str, str] = {}
    for alias, split in ALIASES.items():
        if alias in known and split not in chosen.values():
            chosen[known[alias]] = split
    return chosen


def _describe_refusal(name: str, error: Exception) -> str:
    """One line, with the names of the configurations where the data set has several."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    if first.startswith("Config name is missing") and more:
        found = more[0].partition(": ")[2]
        return f"{name} has several configurations, {found}: give one as {name}:CONFIGURATION"
    return f"{name} is neither a file here nor to be had from the hub: {first}"


def _find_builder(name: str, config: str | None, revision: str | None) -> Any:
    """What knows the files: from the hub, else from the files that an earlier run fetched."""
    from datasets import load_dataset_builder
    from huggingface_hub import snapshot_download

    try:
        return load_dataset_builder(name, config, revision=revision)
    except (OSError, ValueError) as error:
        try:
            folder = snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
        except (OSError, ValueError):
            raise error from None
    progress.say(f"  the hub cannot be reached; {name} is taken from its cache")
    return load_dataset_builder(folder, config)
