"""What all sides begin with: the embedded model in float32 with the preset's template, and a LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import dequantize_model, load_model, save_model

from stages.core.preset import ModelSetup, TrainSetup
from stages.core.tokenizer import read_template
from stages.train.adapter import lora_parameters
from stages.train.optimizer import make_schedule

NOISE = 0.02  # of LoRA weights to begin with: zeros would leave half of the first gradient untested


def write_plain_model(base: Path, folder: Path, setup: ModelSetup, kept: int | None = None) -> None:
    """Write a dequantized copy of a model folder, with its first `kept` layers alone if that is a number."""
    folder.mkdir(parents=True)
    model, config = load_model(base, lazy=True)
    if kept is not None:
        model.model.layers = model.model.layers[:kept]
        config["num_hidden_layers"] = kept
    model.set_dtype(mx.float32)
    save_model(folder, dequantize_model(model))
    plain = {k: v for k, v in config.items() if not k.startswith("quantization")}
    (folder / "config.json").write_text(json.dumps(plain), "utf-8")
    shutil.copyfile(base / "tokenizer.json", folder / "tokenizer.json")
    settings = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = read_template(setup.chat_template)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def write_adapter(model_folder: Path, path: Path, setup: TrainSetup) -> Path:
    """Write LoRA weights of the set-up's shape, none of them zero."""
    model, _ = load_model(model_folder, lazy=True)
    model.freeze()
    linear_to_lora_layers(model, setup.num_layers, lora_parameters(setup))
    mx.random.seed(0)
    noise = tree_map(lambda a: NOISE * mx.random.normal(a.shape), model.trainable_parameters())
    mx.save_safetensors(str(path), dict(tree_flatten(noise)))
    return path


def list_rates(setup: TrainSetup, steps: int) -> list[float]:
    """The learning rates of the first steps."""
    schedule = make_schedule(setup)
    return [float(schedule(mx.array(step)).item()) for step in range(steps)]
