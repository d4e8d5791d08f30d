"""What an unfinished run has saved: MLX is not needed to look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stages.core.artifact import read_manifest, unfinished_folder
from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.records import Recipe

CHECKPOINTS, STATE = "checkpoints", "state.json"  # a folder of the run, a file of a checkpoint


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, the oldest first."""
    return sorted(p for p in (folder / CHECKPOINTS).glob("[0-9]*") if (p / STATE).is_file())


def has_saved(options: Options) -> bool:
    """Whether there is an unfinished run with a step that need not be done again."""
    saved = list_checkpoints(unfinished_folder(options.output("train")))
    return any(int(folder.name) for folder in saved)


def may_discard(options: Options) -> bool:
    """Whether an unfinished run with other options may go: one that has saved no step always may."""
    return options.force or not has_saved(options)


def describe_begun(options: Options) -> str:
    """How far the unfinished run is that the same command goes on with; nothing where there is none."""
    if may_discard(options):
        return ""
    last = list_checkpoints(unfinished_folder(options.output("train")))[-1]
    return f"unfinished at step {int(last.name)} of {options.preset.train.iters}"


def refuse_more_steps(options: Options, make_recipe: Callable[[Options], Recipe]) -> None:
    """Raise StageError for a finished run that is asked for more steps than it has, and nothing else."""
    target = options.output("train")
    manifest = None if options.force else read_manifest(target)
    if manifest is None:
        return
    recipe = make_recipe(options)
    done, asked = manifest.recipe.settings.get("iters", 0), recipe.settings["iters"]
    longer = manifest.recipe.settings | {"iters": asked}
    if asked > done and manifest.recipe.model_copy(update={"settings": longer}) == recipe:
        raise StageError(
            f"{target} was made with iters={done} (now {asked}), and a finished run takes no more steps: its "
            "schedule was made for those, its optimizer is gone; --force trains anew, --out FOLDER keeps both"
        )
