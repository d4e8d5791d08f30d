"""The text that a model's own chat template gives for converted rows, and the tokenizer it needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from jinja2 import TemplateError

from stages.convert_data.tokens import TokenStats, count_tokens
from stages.core.cli import artifacts_root
from stages.core.errors import StageError
from stages.core.models import EMBEDDED, find_tokenizer
from stages.core.preset import Preset, load_preset
from stages.core.render import render_row
from stages.core.tokenizer import Tokenizer, load_tokenizer, template_source


@dataclass(frozen=True)
class Target:
    """The model of `--render`."""

    model: str
    """A preset, a `.toml` file or a model folder."""
    fingerprint: str
    """SHA-256 of all that decides the text."""


def find_target(model: str) -> Target:
    """The model of `--render MODEL`, its tokenizer fetched from the hub if need be.

    Raises StageError when the model is unknown or its tokenizer cannot be had.
    """
    try:
        preset = load_preset(model)
    except StageError as error:
        raise StageError(f"--render: {error}") from None
    digest = hashlib.sha256(f"{preset.model.source}\0{template_source(preset.model)}\0".encode())
    if preset.model.source != EMBEDDED:
        with find_tokenizer(preset, artifacts_root(), fetch=True) as folder:
            for path in sorted((*folder.glob("tokenizer*.json"), *folder.glob("*.jinja"))):
                digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return Target(model, digest.hexdigest())


def write_text(row: Mapping[str, Any], target: Target) -> bytes:
    """A row `{"text"}` as JSON with a newline: the exact text that the target's chat template gives.

    Raises StageError when the template refuses the row.
    """
    try:
        text = render_row(row, _load_target(target))
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise StageError(
            f"the chat template of {target.model} refuses a row: {str(error) or type(error).__name__}: "
            "name another template in a preset"
        ) from None
    return orjson.dumps({"text": text}, option=orjson.OPT_APPEND_NEWLINE)


@lru_cache(maxsize=1)
def _load_target(target: Target) -> Tokenizer:
    return open_tokenizer(load_preset(target.model), fetch=True)


def open_tokenizer(preset: Preset, *, fetch: bool) -> Tokenizer:
    """The target's tokenizer with the chat template that the preset names.

    Raises StageError when it cannot be had; nothing is fetched from the hub without `fetch`.
    """
    try:
        with find_tokenizer(preset, artifacts_root(), fetch=fetch) as folder:
            return load_tokenizer(folder, preset.model)
    except ModuleNotFoundError as error:
        raise StageError(f"{error.name} is not installed: nox -s convert_data installs it") from None


def measure_tokens(files: Mapping[str, Sequence[Path]], preset: Preset) -> dict[str, TokenStats] | str:
    """The token statistics of every split, or why there are none on this machine."""
    try:
        tokenizer = open_tokenizer(preset, fetch=False)
    except StageError as error:
        return str(error)
    return count_tokens(files, tokenizer, preset.train.max_seq_length)
