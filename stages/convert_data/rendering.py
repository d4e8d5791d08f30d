"""The text that the target's own chat template gives for converted rows, and the tokenizer it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
from jinja2 import TemplateError

from stages.convert_data.tokens import TokenStats, count_tokens, read_lines
from stages.core import progress
from stages.core.cli import artifacts_root
from stages.core.errors import StageError
from stages.core.models import find_tokenizer
from stages.core.preset import Preset, load_preset
from stages.core.render import render_row
from stages.core.tokenizer import Tokenizer, load_tokenizer

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


def measure_tokens(files: Mapping[str, Sequence[Path]], preset: Preset) -> dict[str, TokenStats] | str:
    """The token statistics of every split, or why there are none on this machine."""
    try:
        with open_tokenizer(preset, fetch=False) as tokenizer:
            return count_tokens(files, tokenizer, preset.train.max_seq_length)
    except StageError as error:
        return str(error)


def render_splits(files: Mapping[str, Sequence[Path]], model: str, folder: Path) -> list[Path]:
    """Write `rendered/SPLIT.jsonl` with rows `{"text"}` for `--render MODEL`, line for line.

    Raises StageError when the model's tokenizer cannot be had, or when its chat template refuses a row.
    """
    (folder / RENDERED).mkdir(exist_ok=True)
    with open_tokenizer(load_preset(model), fetch=True) as tokenizer:
        return [
            _render_split(split, paths, tokenizer, folder / RENDERED / f"{split}.jsonl", model)
            for split, paths in files.items()
        ]


def _render_split(split: str, paths: Sequence[Path], tokenizer: Tokenizer, target: Path, model: str) -> Path:
    total = sum(path.stat().st_size for path in paths)
    with target.open("wb") as file, progress.bar(f"render {split}", total, "bytes") as bar:
        for number, line in enumerate(read_lines(paths), 1):
            try:
                text = render_row(orjson.loads(line), tokenizer)
            except (TemplateError, TypeError, ValueError) as error:
                raise StageError(
                    f"the chat template of {model} refuses row {number} of {split}: "
                    f"{str(error) or type(error).__name__}: name another template in a preset"
                ) from None
            file.write(orjson.dumps({"text": text}) + b"\n")
            bar.advance(len(line))
    return target
