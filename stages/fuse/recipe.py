"""What decides a fused model."""

from __future__ import annotations

from stages.core.artifact import fingerprint_json, require_artifact
from stages.core.cli import Options, artifacts_root
from stages.core.fixes import fixes_until
from stages.core.models import fingerprint_base
from stages.core.records import Recipe
from stages.core.tokenizer import template_source

FUSER_VERSION = 1  # raised by every change that changes a fused model


def make_recipe(options: Options) -> Recipe:
    """Raises StageError without an adapter or a base model."""
    trained = require_artifact(options.input("train"), "train", options.advice("train"))
    return Recipe(
        stage="fuse",
        settings={"version": FUSER_VERSION, "fixes": list(fixes_until(options.fixes, "fuse"))},
        inputs={
            "adapter": trained.content,
            "model": fingerprint_base(options.preset, artifacts_root(), look_only=options.check),
            "chat template": fingerprint_json(template_source(options.preset.model)),
        },
    )
