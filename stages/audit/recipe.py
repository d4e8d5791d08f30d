"""What decides an audit."""

from __future__ import annotations

from stages.core.artifact import fingerprint_folder, fingerprint_json, require_artifact
from stages.core.cli import Options, artifacts_root
from stages.core.models import fingerprint_base
from stages.core.prompts import query_row
from stages.core.records import Recipe
from stages.core.suite import load_suites
from stages.core.tokenizer import read_template

AUDIT_VERSION = 4  # raised by every change that can change a finding
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
            "version": AUDIT_VERSION,
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
