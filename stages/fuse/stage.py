"""The stage: adapter and base model to one model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import dequantize_model, save_config, save_model

from stages.core import progress
from stages.core.artifact import build_artifact, is_current, require_artifact
from stages.core.cli import Options, Outcome, artifacts_root, finished
from stages.core.compute import Model, compute_weights, load_model
from stages.core.errors import StageError
from stages.core.models import find_model
from stages.core.platform import require_disk
from stages.core.records import Manifest, Recipe
from stages.core.render import find_turns
from stages.core.stops import choose_stop_ids, own_stop_ids, turn_end_ids
from stages.core.tokenizer import load_tokenizer, template_hash
from stages.core.weights import WEIGHTS, Weights, weigh_model
from stages.fuse.recipe import make_recipe

DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "F64": mx.float32}
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "*.jinja",
)


def fuse(options: Options) -> Outcome:
    """Fuse one arm's adapter."""
    adapter, target = options.input("train"), options.output("fuse")
    trained = require_artifact(adapter, "train", options.advice("train"))
    base = find_model(options.preset, artifacts_root())
    recipe = make_recipe(options)
    if is_current(target, recipe, force=options.force):
        return finished(target)
    weights = require_weights(base)
    require_disk(target, weights.whole_gb * 1.05 + 0.02, "the fused model")
    tokenizer = load_tokenizer(base, options.preset.model)
    require_same_base(adapter, trained, recipe, template_hash(tokenizer))
    model, config = load_model(base, dequantize=True)
    stops = choose_stop_ids(
        own_stop_ids(config), turn_end_ids(tokenizer, find_turns(tokenizer)), fixed="eos" in options.fixes
    )
    progress.say(f"  stop tokens: {', '.join(f'{i} {tokenizer.convert_ids_to_tokens(i)}' for i in stops)}")
    model = fuse_adapter(model, adapter)
    model.set_dtype(DTYPES[weights.dtype])
    compute_weights(model, "fusing")
    with build_artifact(target, recipe, given=options.given) as build:
        save_model(build.folder, model, donate_model=True)
        write_configs(build.folder, base, config, stops)
        write_tokenizer(build.folder, base, tokenizer, stops)
        build.inherit(trained)
        build.stop_ids = stops
    return Outcome(target, facts=finished(target).facts)


def require_same_base(adapter: Path, trained: Manifest, recipe: Recipe, template: str) -> None:
    """Raise StageError when the adapter is another model's or template's: its shapes may fit all the same."""
    if trained.recipe.inputs.get("model") != recipe.inputs["model"]:
        raise StageError(
            f"{adapter} was trained on another base model: give the --model and --source of its training"
        )
    if trained.template != template:
        raise StageError(
            f"{adapter} was trained with another chat template: give the --chat-template of its training"
        )


def fuse_adapter(model: Model, adapter: Path) -> Model:
    """The model with every LoRA layer replaced by one linear layer that holds its sum."""
    try:
        model = load_adapters(model, str(adapter))
    except (ValueError, FileNotFoundError, KeyError) as error:
        raise StageError(f"{adapter} does not fit this model: {' '.join(str(error).split())[:160]}") from None
    fused = [(name, m.fuse(dequantize=True)) for name, m in model.named_modules() if hasattr(m, "fuse")]
    model.update_modules(tree_unflatten(fused))
    return dequantize_model(model)


def require_weights(folder: Path) -> Weights:
    """What a model folder weighs. Raises StageError when it has no weights."""
    weights = weigh_model(folder)
    if weights is None:
        raise StageError(f"{folder} has no weights ({WEIGHTS}): copy the rest of the model there")
    return weights


def write_configs(folder: Path, base: Path, config: dict[str, Any], stops: list[int]) -> None:
    """`config.json` without the base's quantization and `generation_config.json`, with the stop ids."""
    fused = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    save_config(fused | {"eos_token_id": stops}, folder / "config.json")
    source = base / "generation_config.json"
    generation = json.loads(source.read_text("utf-8")) if source.is_file() else {}
    _write_json(folder / "generation_config.json", generation | {"eos_token_id": stops})


def write_tokenizer(folder: Path, base: Path, tokenizer: Any, stops: list[int]) -> None:
    """The base's tokenizer files with the chat template that was trained on and the stop token."""
    for pattern in TOKENIZER_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    settings["chat_template"] = tokenizer.chat_template
    if stops:
        settings["eos_token"] = tokenizer.convert_ids_to_tokens(stops[0])
    _write_json(path, settings)
    special = folder / "special_tokens_map.json"
    if stops and special.is_file():  # it would overrule the tokenizer's config
        _write_json(special, json.loads(special.read_text("utf-8")) | {"eos_token": settings["eos_token"]})
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template, "utf-8")


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
