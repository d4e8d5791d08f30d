"""The target's tokenizer with the chat template that the preset names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import StageError
from stages.core.preset import TEMPLATES, ModelSetup

CHOSEN = ("tool_use", "default")  # of several templates, as Command R and Hermes 3 have them
Tokenizer = Any  # transformers' fast tokenizers have no usable static type


def load_tokenizer(folder: Path, setup: ModelSetup | None = None) -> Tokenizer:
    """The tokenizer of a model folder; with `setup`, its chat template unless that says `own`.

    Raises StageError when there is no template or no fast tokenizer, since spans need offsets.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would ask for PyTorch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise StageError(f"{folder} has no tokenizer that loads ({reason}): copy its files there") from None
    if not tokenizer.is_fast:
        raise StageError(f"{folder} has no tokenizer.json: convert it to a fast tokenizer first")
    if setup is not None and setup.chat_template != "own":
        tokenizer.chat_template = read_template(setup.chat_template)
    if isinstance(tokenizer.chat_template, Mapping):
        tokenizer.chat_template = choose_template(tokenizer.chat_template)
    if not tokenizer.chat_template:
        raise StageError(
            f"{folder} has no chat template, or several and none named {' or '.join(CHOSEN)}: "
            "name one with --chat-template (such as chatml_hermes)"
        )
    return tokenizer


def choose_template(named: Mapping[str, str]) -> str:
    """The one of several named chat templates that writes every row here; empty where none is known.

    Left to itself transformers takes another one for rows without tools, and a fused model keeps one alone.
    """
    return next((named[name] for name in CHOSEN if named.get(name)), "")


def read_template(name: str) -> str:
    """The text of a template of `stages/core/templates`, or of a .jinja file."""
    path = Path(name) if name.endswith(".jinja") else TEMPLATES / f"{name}.jinja"
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise StageError(f"chat template {path} is not UTF-8 text") from None
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
        raise StageError(
            f"no chat template {name!r}: use own, {known}, or the path of a .jinja file"
        ) from None


def template_source(setup: ModelSetup) -> str:
    """The text of the template that a preset names, or `own`: for fingerprints."""
    return setup.chat_template if setup.chat_template == "own" else read_template(setup.chat_template)


def template_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the chat template, the first 16 hex digits."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]


def require_template(folder: Path, tokenizer: Tokenizer, trained: str | None) -> None:
    """Raise StageError when a model folder's chat template is not the one that the model was trained with.

    `trained` is that one's hash, None where it is not known. What a manifest says does not tell what a
    program will load: files may have been changed or exchanged since.
    """
    if trained is not None and template_hash(tokenizer) != trained:
        raise StageError(
            f"{folder} holds another chat template than the one that its model was trained with: "
            "make the folder again with --force"
        )
