"""What is drawn of every query: one greedy reply, or the cells of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.errors import StageError
from stages.core.preset import Preset
from stages.eval.engines import Sampling

OWN = "own"  # the prompt of the preset's own system line


@dataclass(frozen=True)
class Cell:
    """One reply to every query: a system line (None: the preset's) and a sampling."""

    sampling: Sampling
    prompt: str = OWN
    system: str | None = None

    @property
    def group(self) -> str:
        """What it shares with the other draws of its prompt and temperature; part of a folder's name."""
        return f"{self.prompt}-t{self.sampling.temperature:g}"

    @property
    def slug(self) -> str:
        """The folder of its output within a sweep."""
        return f"{self.group}-s{self.sampling.sample}"

    def settings(self) -> dict[str, Any]:
        """What sets its replies apart from the usual greedy ones; empty for these."""
        told: dict[str, Any] = {}
        if self.sampling.stop_at_call:
            told["stop_at_call"] = True
        if self.sampling.temperature:
            told |= {"temperature": self.sampling.temperature, "sample": self.sampling.sample}
        if self.system is not None:
            told["system"] = self.system
        return told


def usual_cell(preset: Preset) -> Cell:
    """The greedy reply to the preset's own prompt."""
    setup = preset.eval
    return Cell(Sampling(max_tokens=setup.max_tokens, stop_at_call=setup.stop_at_call))


def list_cells(preset: Preset) -> Iterator[Cell]:
    """The cells of a sweep: prompts, temperatures, draws. At temperature 0 every draw would be the same.

    Raises StageError for a prompt that cannot be read, and for two of one name.
    """
    setup = preset.eval
    own: list[tuple[str, str | None]] = [(OWN, None)]
    prompts = [_read_prompt(Path(path)) for path in setup.prompts] or own
    names = [name for name, _ in prompts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StageError(f"--prompts names two files {twice[0]}: rename one, their outputs would mix")
    for name, system in prompts:
        for temperature in setup.temperature:
            for sample in range(setup.samples if temperature else 1):
                yield Cell(Sampling(setup.max_tokens, temperature, sample, setup.stop_at_call), name, system)


def describe_single_draws(preset: Preset) -> str:
    """That a temperature gets one draw where several were asked for; empty where none does."""
    setup = preset.eval
    if setup.samples == 1 or 0.0 not in setup.temperature:
        return ""
    said = f"at temperature 0 every draw is the same, so there is one and not {setup.samples}"
    return said if any(setup.temperature) else f"{said}: --temperature 0.7 draws several"


def _read_prompt(path: Path) -> tuple[str, str | None]:
    """A prompt's name and its system line."""
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise StageError(f"--prompts {path}: no text file there that can be read") from None
    if not text:
        raise StageError(f"--prompts {path} is empty: write a system text into it, or leave the file out")
    if path.stem == OWN:
        raise StageError(f"--prompts {path}: the name {OWN} stands for the preset's own, rename the file")
    return path.stem, text
