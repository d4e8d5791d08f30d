"""What decides a quantized model."""

from __future__ import annotations

from stages.core.artifact import require_artifact
from stages.core.cli import Options
from stages.core.fixes import fixes_until
from stages.core.records import Recipe

QUANTIZER_VERSION = 1  # raised by every change that changes a quantized model


def make_recipe(options: Options) -> Recipe:
    """Raises StageError without a fused model."""
    fused = require_artifact(options.input("fuse"), "fuse", options.advice("fuse"))
    return Recipe(
        stage="quantize",
        settings={
            "version": QUANTIZER_VERSION,
            "fixes": list(fixes_until(options.fixes, "quantize")),
            "bits": options.bits,
            "group_size": options.preset.quantize.group_size,
        },
        inputs={"model": fused.content},
    )
