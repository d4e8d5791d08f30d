"""What decides a trained adapter."""

from __future__ import annotations

from pathlib import Path

from stages.core.artifact import fingerprint_folder, fingerprint_json, require_artifact
from stages.core.cli import Options, artifacts_root
from stages.core.errors import StageError
from stages.core.fixes import arm_name, fixes_until
from stages.core.models import fingerprint_base
from stages.core.records import Manifest, Recipe
from stages.core.tokenizer import template_source

TRAINER_VERSION = 4  # raised by every change that changes a trained adapter
BOOKKEEPING = {
    "report_to",
    "keep_checkpoints",
    "save_every",
    "grad_checkpoint",
    "ranks",
}  # options that change no adapter, or its last bits


def make_recipe(options: Options, ranks: int = 1) -> Recipe:
    """What decides the adapter that so many processes train: each draws dropout's masks for its own rows.

    Raises StageError without converted rows or a base model, and for rows of another arm or dialect.
    """
    setup, rows = options.preset.train, options.input("convert_data")
    made = require_artifact(rows, "convert_data", options.advice("convert_data"))
    require_same_rows(options, rows, made)
    return Recipe(
        stage="train",
        settings={
            "fixes": list(fixes_until(options.fixes, "train")),
            "seed": options.seed,
            "version": TRAINER_VERSION,
            **setup.model_dump(mode="json", exclude=BOOKKEEPING),
            **({"ranks": ranks} if setup.dropout else {}),
        },
        inputs={
            "data": fingerprint_folder(rows),
            "model": fingerprint_base(options.preset, artifacts_root(), look_only=options.check),
            "chat template": fingerprint_json(template_source(options.preset.model)),
        },
    )


def require_same_rows(options: Options, rows: Path, made: Manifest) -> None:
    """Raise StageError for rows of another arm or dialect: the adapter would bear this one's name.

    Fixes that act after the conversion may differ.
    """
    settings = made.recipe.settings
    wanted = fixes_until(options.fixes, "convert_data")
    fixes = tuple(settings.get("fixes", wanted))
    if fixes != wanted:
        raise StageError(
            f"{rows} was converted for {arm_name(fixes)}, and --fixes {options.arm} is about rows of "
            f"{arm_name(wanted)}: give the --fixes of its conversion, or other rows"
        )
    dialect = settings.get("model", {}).get("dialect", options.preset.model.dialect)
    if dialect != options.preset.model.dialect:
        raise StageError(
            f"{rows} was converted for the dialect {dialect}, not {options.preset.model.dialect}: give the "
            "--model and --dialect of its conversion, or other rows"
        )
