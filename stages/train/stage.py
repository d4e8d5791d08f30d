"""The stage: from converted rows to an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from stages.core import progress
from stages.core.artifact import (
    build_artifact,
    fingerprint_json,
    fingerprint_model,
    is_current,
    read_manifest,
    require_artifact,
)
from stages.core.cli import Options, Outcome, artifacts_root
from stages.core.compute import Model, device_peak_gb, load_model
from stages.core.errors import StageError
from stages.core.fixes import fixes_until
from stages.core.models import find_model
from stages.core.platform import require_disk
from stages.core.preset import TrainSetup
from stages.core.records import Recipe
from stages.core.render import Encoded, find_turns
from stages.core.stops import turn_end_ids
from stages.core.tokenizer import Tokenizer, load_tokenizer, template_hash, template_source
from stages.train.loop import Run, train_adapter
from stages.train.rows import load_rows

TRAINER_VERSION = 1  # raised by every change that changes a trained adapter
CACHE_LIMIT = 1 << 30  # bytes of freed buffers that MLX may keep; shapes vary from step to step


def train(options: Options) -> Outcome:
    """Train one arm's adapter with one seed."""
    data, target, setup = options.input("convert_data"), options.output("train"), options.preset.train
    rows_from = require_artifact(data, "convert_data", options.command("convert_data"))
    base = find_model(options.preset, artifacts_root())
    recipe = Recipe(
        stage="train",
        settings={
            "fixes": list(fixes_until(options.fixes, "train")),
            "seed": options.seed,
            "version": TRAINER_VERSION,
            **setup.model_dump(mode="json"),
        },
        inputs={
            "data": rows_from.content,
            "model": fingerprint_model(base),
            "chat template": fingerprint_json(template_source(options.preset.model)),
        },
    )
    if is_current(target, recipe, force=options.force):
        return Outcome(target, up_to_date=True, facts=_facts(target))
    require_disk(target, options.preset.model.billions * 0.05 + 0.1, "training with its checkpoints")
    tokenizer = load_tokenizer(base, options.preset.model)
    turns = find_turns(tokenizer)
    train_rows = load_rows(data, "train", tokenizer, turns, setup.max_seq_length)
    valid_rows = load_rows(data, "valid", tokenizer, turns, setup.max_seq_length)
    if setup.grad_checkpoint and setup.dropout:
        raise StageError("--grad-checkpoint would draw dropout anew in the backward pass: set --dropout 0")
    if setup.batch_size > len(train_rows):
        raise StageError(
            f"batch size {setup.batch_size} is larger than the {len(train_rows)} rows: lower --batch-size"
        )
    _show_supervision(train_rows, tokenizer)
    mx.random.seed(options.seed)
    mx.set_cache_limit(CACHE_LIMIT)
    model = add_lora(base, setup)
    with build_artifact(target, recipe, resume=True, force=options.force) as build:
        run = Run(model, setup, options.seed, train_rows, valid_rows, build.folder)
        progress.say(
            f"  {run.trunk.size} tokens are shared by all rows; {run.plan.steps_per_epoch} steps an epoch"
        )
        run.verify()
        state = train_adapter(run)
        _write_config(build.folder, base, setup)
        build.facts |= {
            "steps": state.step,
            "train_seconds": state.seconds,
            "best_valid_loss": state.best_loss,
            "rows": len(train_rows),
            "template": template_hash(tokenizer),
            "stop_ids": turn_end_ids(tokenizer, turns),
            "device_peak_gb": device_peak_gb(),
        }
    return Outcome(target, lines=(f"best validation loss {state.best_loss:.4f}",), facts=_facts(target))


def add_lora(base: Path, setup: TrainSetup) -> Model:
    """The base model, frozen, with fresh LoRA layers that train."""
    model, _ = load_model(base)
    if setup.num_layers > len(model.layers):
        raise StageError(
            f"--num-layers {setup.num_layers} is more than the model's {len(model.layers)} layers"
        )
    model.freeze()
    linear_to_lora_layers(model, setup.num_layers, lora_parameters(setup))
    model.train()
    parameters: Any = tree_flatten(model.trainable_parameters())
    trained = sum(array.size for _, array in parameters)
    if not trained:
        raise StageError(f"--lora-keys {','.join(setup.lora_keys)} names no module of this model")
    progress.say(
        f"  LoRA on {setup.num_layers} of {len(model.layers)} layers: {trained / 1e6:.2f} M parameters"
    )
    return model


def lora_parameters(setup: TrainSetup) -> dict[str, Any]:
    """The LoRA set-up in mlx-lm's words."""
    keys = {"keys": list(setup.lora_keys)} if setup.lora_keys else {}
    return {"rank": setup.rank, "scale": setup.scale, "dropout": setup.dropout, **keys}


def _show_supervision(rows: list[Encoded], tokenizer: Tokenizer) -> None:
    """Say how much of the rows is learned, and show the supervised part of one row with a call."""
    total, learned = sum(len(r.tokens) for r in rows), sum(sum(r.supervised) for r in rows)
    progress.say(f"  {len(rows)} rows, {total} tokens, {learned / total:.0%} of them supervised; for example")
    example = max(rows[:20], key=lambda r: sum(r.supervised))
    text = tokenizer.decode([t for t, s in zip(example.tokens, example.supervised, strict=True) if s])
    progress.say("    " + text[:300].replace("\n", "⏎"))


def _write_config(folder: Path, base: Path, setup: TrainSetup) -> None:
    config = {
        "fine_tune_type": "lora",
        "model": str(base),
        "num_layers": setup.num_layers,
        "lora_parameters": lora_parameters(setup),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _facts(target: Path) -> dict[str, Any]:
    manifest = read_manifest(target)
    return dict(manifest.facts) if manifest else {}
