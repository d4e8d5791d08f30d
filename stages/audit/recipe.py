"""What decides an audit."""

from __future__ import annotations

from pathlib import Path

from stages.core.artifact import (
    VERSION,
    fill_in,
    fingerprint_folder,
    fingerprint_json,
    read_manifest,
    require_artifact,
)
from stages.core.cli import Options, artifacts_root
from stages.core.models import fingerprint_base
from stages.core.prompts import query_row
from stages.core.records import Recipe
from stages.core.suite import load_suites
from stages.core.tokenizer import read_template

AUDIT_VERSION = 5  # raised by every change that can change a finding
MODEL_SETTINGS = {"dialect", "legacy_dialect", "chat_template", "system", "billions"}


def make_recipe(options: Options) -> Recipe:
    """Rows, model, plan, prompt and suites. Raises StageError without converted rows or a base model."""
    rows = options.input("convert_data")
    require_artifact(rows, "convert_data", options.advice("convert_data"))
    preset = options.preset
    named = preset.model.chat_template
    suites = [suite.model_dump(mode="json") for suite in load_suites(preset.eval.suites)]
    return Recipe(
        stage="audit",
        settings={
            VERSION: AUDIT_VERSION,
            "fixes": list(options.fixes),
            "model": preset.model.model_dump(include=MODEL_SETTINGS),
            "max_seq_length": preset.train.max_seq_length,
            "max_tokens": preset.eval.max_tokens,
            "bits": [preset.quantize.bits, preset.quantize.legacy_bits],
        },
        inputs={
            "data": fingerprint_folder(rows),
            "model": fingerprint_base(preset, artifacts_root(), look_only=options.check),
            "chat template": "" if named == "own" else fingerprint_json(read_template(named)),
            "prompt": fingerprint_json(query_row("", preset.model, options.fixes)),
            "suites": fingerprint_json(suites),
        },
    )


def asks_anew(folder: Path, wanted: Recipe) -> bool:
    """Whether an audit differs from what is wanted in nothing but the suites, or the version of the checks.

    It is made again then without --force: it takes seconds and loses nothing, and what it is about is there.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    made = manifest.recipe
    as_made = made.model_copy(
        update={
            "settings": made.settings | {VERSION: AUDIT_VERSION},
            "inputs": made.inputs | {"suites": wanted.inputs["suites"]},
        }
    )
    return made != as_made == fill_in(wanted, made)
