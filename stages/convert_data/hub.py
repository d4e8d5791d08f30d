"""Data sets of the Hugging Face hub: `datasets` says which files are which split, and fetches them.

It is not asked to read the rows: it would put every object of a column into one Arrow struct.
"""

from __future__ import annotations

import logging
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
        wanted = {split: urls for split, urls in files.items() if split.lower() in ALIASES}
        fetched = DownloadManager(name).download(wanted) if wanted else {}
    except (OSError, ValueError) as error:  # what the hub's client raises is one of the two
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise StageError(f"{name} is neither a file here nor to be had from the hub: {reason}") from None
    splits: dict[str, tuple[SourceFile, ...]] = {}
    for split, urls in wanted.items():
        pairs = zip(fetched[split], urls, strict=True)
        named = tuple(SourceFile(Path(path), url.rpartition("/")[2]) for path, url in pairs)
        splits[ALIASES[split.lower()]] = named
    return Source(name, splits, tuple(split for split in files if split not in wanted))


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
