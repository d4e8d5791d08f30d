"""A preset's model as a local folder: embedded, a path, or from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from stages.core import progress
from stages.core.artifact import NOT_HERE, fingerprint_model
from stages.core.embedded import build_embedded_model, build_embedded_tokenizer
from stages.core.errors import StageError
from stages.core.platform import ELSEWHERE, GB, require_disk, same_disk
from stages.core.preset import Preset
from stages.core.weights import Weights, weigh_model
from stages.core.words import name_some

EMBEDDED_GB = 0.2  # of the folder, and of its copy in the making
EMBEDDED = "bundled:smollm2-135m"
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # never code
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ["tokenizer*.json", "*.jinja", "special_tokens_map.json", "added_tokens.json",
                   "config.json", "vocab.json", "merges.txt"]  # fmt: skip


def find_model(preset: Preset, artifacts: Path, *, beside_gb: float = 0.0) -> Path:
    """The folder of the preset's base model; the embedded one is built below `artifacts` once.

    `beside_gb` is what the caller will write below `artifacts`: a download leaves it free where both
    lie on one disk. Raises StageError when a hub model is neither cached whole nor reachable, or a
    folder is missing.
    """
    source = preset.model.source
    if source == EMBEDDED:
        folder = artifacts / "models" / "smollm2-135m"
        if not folder.exists():
            require_disk(folder, EMBEDDED_GB, "the embedded model", ELSEWHERE)
        build_embedded_model(folder)
        return folder
    return _find_folder(source) or _find_hub_model(source, preset.name, artifacts, beside_gb)


def find_local_model(preset: Preset, artifacts: Path) -> Path | None:
    """The folder of the base model where it is on this machine; nothing is built or fetched for it."""
    try:
        return _look_here(preset.model.source, artifacts)
    except StageError:
        return None


def fingerprint_base(preset: Preset, artifacts: Path, *, look_only: bool = False) -> str:
    """The fingerprint of the preset's base model, which is built or fetched where need be.

    With `look_only` it is neither: one that would have to be is NOT_HERE. Raises StageError for a source that
    names no model.
    """
    if not look_only:
        return fingerprint_model(find_model(preset, artifacts))
    folder = _look_here(preset.model.source, artifacts)
    return NOT_HERE if folder is None else fingerprint_model(folder)


def _look_here(source: str, artifacts: Path) -> Path | None:
    """The folder of a source on this machine, None without one. Raises StageError for no source at all."""
    if source == EMBEDDED:
        folder = artifacts / "models" / "smollm2-135m"
        return folder if folder.is_dir() else None
    from huggingface_hub.errors import HFValidationError

    try:
        return _find_folder(source) or _look_into_cache(source)[1]
    except HFValidationError:
        raise _no_model(source) from None


@contextmanager
def find_tokenizer(preset: Preset, artifacts: Path, *, fetch: bool) -> Iterator[Path]:
    """A folder with the tokenizer of the preset's model, for as long as the block lasts; no MLX needed.

    From the hub nothing but the tokenizer's files comes, and only with `fetch`; else they must be in
    the cache. Raises StageError when it cannot be had.
    """
    source = preset.model.source
    if source == EMBEDDED:
        folder = artifacts / "models" / "smollm2-135m"
        if folder.exists():
            yield folder
            return
        with TemporaryDirectory(prefix="fair-retest-") as place:
            build_embedded_tokenizer(Path(place))
            yield Path(place)
        return
    yield _find_folder(source) or _find_hub_tokenizer(source, fetch=fetch)


def _find_folder(source: str) -> Path | None:
    """The local folder that a source names; None for a hub id. Raises StageError for neither."""
    if source.startswith("bundled:"):
        raise StageError(f"no embedded model {source.removeprefix('bundled:')!r}: there is smollm2-135m")
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_absolute() or source.count("/") != 1:
        raise StageError(f"no model folder {source}: --model FOLDER takes one with config.json and weights")
    return None


def _no_model(source: str) -> StageError:
    return StageError(f"no model folder {source}, and it is no hub id either: check the path")


def _find_hub_tokenizer(repository: str, *, fetch: bool) -> Path:
    from httpx2 import HTTPError  # the hub's own client, whose errors are no OSErrors
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(repository, allow_patterns=TOKENIZER_FILES, local_files_only=True))
        if (folder / "tokenizer_config.json").is_file():
            return folder
    except (LocalEntryNotFoundError, IncompleteSnapshotError, HFValidationError):
        pass
    if not fetch:
        raise StageError(f"{repository} is not in the Hugging Face cache of this machine")
    try:
        return Path(snapshot_download(repository, allow_patterns=TOKENIZER_FILES))
    except HFValidationError:
        raise _no_model(repository) from None
    except (HTTPError, OSError) as error:
        raise StageError(
            f"the tokenizer of {repository} is not in the Hugging Face cache, and "
            f"{_why_not_fetched(error)}: give a folder that holds the model"
        ) from None


def require_model(preset: Preset, artifacts: Path, *, beside_gb: float = 0.0) -> None:
    """See that the base model is there, and fetch it where it is not, before other work is begun.

    The embedded model needs MLX to be built and nothing to be fetched: its stages do it in a second.
    """
    if preset.model.source == EMBEDDED:
        return
    folder = find_model(preset, artifacts, beside_gb=beside_gb)
    if missing := missing_files(folder):
        raise StageError(f"{folder} lacks {missing}: copy the rest of the model there")


def expect_weights(preset: Preset) -> Weights:
    """What the base model weighs: counted where it is a local folder, else what the preset says, in 16 bits.

    Raises StageError when a folder is missing.
    """
    source = preset.model.source
    folder = None if source == EMBEDDED else _find_folder(source)
    counted = None if folder is None or missing_files(folder) else weigh_model(folder)
    return counted or Weights(round(preset.model.billions * 1e9), "BF16")


def missing_files(folder: Path) -> str:
    """What a model folder lacks for being loaded, in words; empty when it is whole."""
    wanted = ["config.json"]
    if (folder / INDEX).is_file():
        try:
            wanted += sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"a readable {INDEX}"
    elif not any(folder.glob("*.safetensors")):
        return "its weights (.safetensors)"
    lost = [name for name in wanted if not (folder / name).is_file()]
    return name_some(lost, 1)


def _find_hub_model(repository: str, name: str, artifacts: Path, beside_gb: float) -> Path:
    """The folder in the hub's cache, fetched if need be. All that can fail there becomes one line."""
    from httpx2 import HTTPError  # the hub's own client, whose errors are no OSErrors
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError

    try:
        cached, folder = _look_into_cache(repository)
        return folder or _fetch(repository, Path(HF_HUB_CACHE), artifacts, beside_gb)
    except HFValidationError:
        raise _no_model(repository) from None
    except (HTTPError, OSError) as error:
        raise StageError(
            f"model {name} is {repository}, which is {cached} in the Hugging Face cache {HF_HUB_CACHE}, and "
            f"{_why_not_fetched(error)}: run this once with a network, copy the cache from where there "
            "is one, or give a folder that holds the model with --model FOLDER"
        ) from None


def _look_into_cache(repository: str) -> tuple[str, Path | None]:
    """How much of a model the hub's cache holds, in a word, and its folder when that is all of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=FILES, local_files_only=True))
    except IncompleteSnapshotError:
        return "only in part", None
    except LocalEntryNotFoundError:
        return "not", None
    # A cache that was copied, or left by an older client, has no list of what belongs to a model.
    return ("only in part", None) if missing_files(folder) else ("whole", folder)


def _fetch(repository: str, cache: Path, artifacts: Path, beside_gb: float) -> Path:
    """Download what the cache lacks of a model, where the disk has room for it."""
    from huggingface_hub import snapshot_download

    no_bar = partial(tqdm, disable=True)
    files = snapshot_download(repository, allow_patterns=FILES, dry_run=True, tqdm_class=no_bar)
    size_gb = sum(file.file_size or 0 for file in files if file.will_download) / GB
    beside_gb = beside_gb if same_disk(cache, artifacts) else 0.0
    what = f"fetching {repository}" + (" and the work with it" if beside_gb else "")
    require_disk(
        cache, size_gb + beside_gb, what, "name another place for the Hugging Face cache with HF_HOME"
    )
    progress.say(f"  fetching {repository}: {size_gb:.2f} GB")
    return Path(snapshot_download(repository, allow_patterns=FILES))


def _why_not_fetched(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cause = error.__cause__ or error
    if isinstance(cause, HfHubHTTPError):
        return f"the hub does not give it out (status {cause.response.status_code})"
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to fetch it"
    if isinstance(cause, OSError) and cause.errno:
        return f"fetching it failed ({cause.strerror})"
    return "the hub cannot be reached"
