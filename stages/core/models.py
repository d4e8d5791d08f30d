"""A preset's model as a local folder: embedded, a path, or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.core.embedded import build_embedded_model, build_embedded_tokenizer
from stages.core.errors import StageError
from stages.core.platform import require_disk
from stages.core.preset import Preset

EMBEDDED_GB = 0.2  # of the folder, and of its copy in the making
EMBEDDED = "bundled:smollm2-135m"
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # never code
TOKENIZER_FILES = ["tokenizer*.json", "*.jinja", "special_tokens_map.json", "added_tokens.json",
                   "config.json", "vocab.json", "merges.txt"]  # fmt: skip


def find_model(preset: Preset, artifacts: Path) -> Path:
    """The folder of the preset's base model; the embedded one is built below `artifacts` once.

    Raises StageError when a hub model is neither cached nor reachable, or a folder is missing.
    """
    source = preset.model.source
    if source == EMBEDDED:
        folder = artifacts / "models" / "smollm2-135m"
        if not folder.exists():
            require_disk(folder, EMBEDDED_GB, "the embedded model")
        build_embedded_model(folder)
        return folder
    return _find_folder(source) or _find_hub_model(source, preset.name)


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
        raise StageError(
            f"no model folder {source} (a folder with config.json): check model.source or --model"
        )
    return None


def _find_hub_tokenizer(repository: str, *, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=TOKENIZER_FILES, local_files_only=True))
        if (folder / "tokenizer_config.json").is_file():
            return folder
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    if not fetch:
        raise StageError(f"{repository} is not in the Hugging Face cache of this machine")
    try:
        return Path(snapshot_download(repository, allow_patterns=TOKENIZER_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")[:80]
        raise StageError(
            f"the tokenizer of {repository} is not in the Hugging Face cache and cannot be fetched "
            f"({type(error).__name__}: {reason}): give a model folder instead"
        ) from None


def _find_hub_model(repository: str, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError:
        raise StageError(
            f"no model folder {repository}, and it is no hub id either: check the path"
        ) from None
    try:
        return Path(snapshot_download(repository, allow_patterns=FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")[:80]
        raise StageError(
            f"model {name} needs {repository}, which is not in the Hugging Face cache and cannot be fetched "
            f"({type(error).__name__}: {reason}): "
            "fetch it where there is a network, or give a folder with --source FOLDER"
        ) from None
