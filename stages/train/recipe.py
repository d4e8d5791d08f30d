"""What decides a trained adapter."""

from __future__ import annotations

from stages.core.artifact import fingerprint_folder, fingerprint_json, require_artifact
from stages.core.cli import Options, artifacts_root
from stages.core.fixes import fixes_until
from stages.core.models import fingerprint_base
from stages.core.records import Recipe
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

    Raises StageError without converted rows or a base model.
    """
    setup, rows = options.preset.train, options.input("convert_data")
    require_artifact(rows, "convert_data", options.advice("convert_data"))
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
