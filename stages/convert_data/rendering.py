"""The text that the target's own chat template gives for converted rows, and the tokenizer it needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
from jinja2 import TemplateError

from stages.convert_data.tokens import TokenStats, count_tokens
from stages.core import progress
from stages.core.cli import artifacts_root
from stages.core.errors import StageError
from stages.core.models import EMBEDDED, find_tokenizer
from stages.core.preset import Preset, load_preset
from stages.core.render import render_row
from stages.core.tokenizer import Tokenizer, load_tokenizer, template_source

RENDERED = "rendered"


@contextmanager
def open_tokenizer(preset: Preset, *, fetch: bool) -> Iterator[Tokenizer]:
    """The target's tokenizer with the chat template that the preset names.

    Raises StageError when it cannot be had; nothing is fetched from the hub without `fetch`.
    """
    try:
        with find_tokenizer(preset, artifacts_root(), fetch=fetch) as folder:
            yield load_tokenizer(folder, preset.model)
    except ModuleNotFoundError as error:
        raise StageError(f"{error.name} is not installed: nox -s convert_data installs it") from None


def fingerprint_target(model: str) -> str:
    """SHA-256 of all that decides the text of `--render MODEL`.

    Raises StageError when the model is unknown or its tokenizer cannot be had.
    """
    preset = load_preset(model)
    digest = hashlib.sha256(f"{preset.model.source}\0{template_source(preset.model)}\0".encode())
    if preset.model.source != EMBEDDED:
        with find_tokenizer(preset, artifacts_root(), fetch=True) as folder:
            for path in sorted((*folder.glob("tokenizer*.json"), *folder.glob("*.jinja"))):
                digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def measure_tokens(files: Mapping[str, Sequence[Path]], preset: Preset) -> dict[str, TokenStats] | str:
    """The token statistics of every split, or why there are none on this machine."""
    try:
        with open_tokenizer(preset, fetch=False) as tokenizer:
            return count_tokens(files, tokenizer, preset.train.max_seq_length)
    except StageError as error:
        return str(error)


def render_splits(files: Mapping[str, Sequence[Path]], model: str, folder: Path) -> list[Path]:
    """Write `rendered/` with rows `{"text"}` for `--render MODEL`, file for file and line for line.

    Raises StageError when the model's tokenizer cannot be had, or when its chat template refuses a row.
    """
    (folder / RENDERED).mkdir(exist_ok=True)
    with open_tokenizer(load_preset(model), fetch=True) as tokenizer:
        return [
            _render_file(path, tokenizer, folder / RENDERED / path.name, model)
            for paths in files.values()
            for path in paths
        ]


def _render_file(path: Path, tokenizer: Tokenizer, target: Path, model: str) -> Path:
    with (
        path.open("rb") as rows,
        target.open("wb") as file,
        progress.bar(f"render {path.name}", path.stat().st_size, "bytes") as bar,
    ):
        for number, line in enumerate(rows, 1):
            try:
                text = render_row(orjson.loads(line), tokenizer)
            except (TemplateError, TypeError, ValueError) as error:
                raise StageError(
                    f"the chat template of {model} refuses row {number} of {path.name}: "
                    f"{str(error) or type(error).__name__}: name another template in a preset"
                ) from None
            file.write(orjson.dumps({"text": text}) + b"\n")
            bar.advance(len(line))
    return target
