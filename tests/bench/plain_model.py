"""The embedded model in float32 with the preset's template: what stock mlx-lm runs best with here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import dequantize_model, load_model, save_model

from stages.core.preset import ModelSetup
from stages.core.tokenizer import read_template


def write_plain_model(base: Path, folder: Path, setup: ModelSetup) -> None:
    """Write a dequantized copy of a model folder."""
    folder.mkdir(parents=True)
    model, config = load_model(base, lazy=True)
    model.set_dtype(mx.float32)
    save_model(folder, dequantize_model(model))
    plain = {k: v for k, v in config.items() if not k.startswith("quantization")}
    (folder / "config.json").write_text(json.dumps(plain), "utf-8")
    shutil.copyfile(base / "tokenizer.json", folder / "tokenizer.json")
    settings = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = read_template(setup.chat_template)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
