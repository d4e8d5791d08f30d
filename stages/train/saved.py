"""What an unfinished run has saved: MLX is not needed to look."""

from __future__ import annotations

from pathlib import Path

from stages.core.artifact import unfinished_folder
from stages.core.cli import Options

CHECKPOINTS = "checkpoints"


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, the oldest first."""
    return sorted(p for p in (folder / CHECKPOINTS).glob("[0-9]*") if (p / "state.json").is_file())


def may_discard(options: Options) -> bool:
    """Whether an unfinished run with other options may go: one that has saved nothing always may."""
    return options.force or not list_checkpoints(unfinished_folder(options.output("train")))
