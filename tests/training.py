"""What tests of training share: set-ups, runs on tiny models, and command lines that are stopped."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from stages.core.preset import TrainSetup, load_preset
from stages.core.render import Encoded, find_turns
from stages.core.tokenizer import load_tokenizer
from stages.train.adapter import load_trainable
from stages.train.loop import Run
from stages.train.rows import load_rows
from tests.models import BuiltOnce, Kind
from tests.pipeline import TRAIN, Pipeline
from tests.waiting import finish, wait_for


def make_setup(**overrides: Any) -> TrainSetup:
    return load_preset("smol", TRAIN | overrides).train


def encode_pipeline_rows(run: Pipeline) -> list[Encoded]:
    preset = run.options("train").preset
    tokenizer = load_tokenizer(run.model, preset.model)
    return load_rows(run.folder("convert_data"), "train", tokenizer, find_turns(tokenizer), 1024)


def begin(row: Encoded, token: int, count: int) -> Encoded:
    """The row behind so many of a token."""
    unlearned = [False] * count, [-1] * count
    return Encoded([token] * count + row.tokens, unlearned[0] + row.supervised, unlearned[1] + row.calls)


def make_run(run: Pipeline, folder: Path, **overrides: Any) -> Run:
    mx.random.seed(0)
    setup, rows = make_setup(**overrides), encode_pipeline_rows(run)
    return Run(load_trainable(run.model, setup), setup, 0, rows, rows[:3], folder)


def prepare_run(kind: Kind, layers: int, built: BuiltOnce, qwen2_run: Pipeline, folder: Path) -> Run:
    """A run over converted rows whose adapter is no longer zero, so that all of it has a gradient."""
    model_folder = built.model(kind, quantize=kind != "qwen3_moe")
    preset = load_preset("smol" if kind == "llama" else str(model_folder))
    tokenizer = load_tokenizer(model_folder, preset.model)
    data = qwen2_run.folder("convert_data")
    rows = load_rows(data, "train", tokenizer, find_turns(tokenizer), 1024)
    mx.random.seed(1)
    setup = make_setup(num_layers=layers, batch_size=3)
    model = load_trainable(model_folder, setup)
    fresh = dict(tree_flatten(model.trainable_parameters()))
    noise = {name: 0.1 * mx.random.normal(array.shape) for name, array in fresh.items()}
    model.load_weights(list(noise.items()), strict=False)
    return Run(model, setup, 0, rows, rows[:1], folder)


def trained(run: Run) -> dict[str, mx.array]:
    flat: Any = tree_flatten(run.model.trainable_parameters())
    return dict(flat)


def train_arguments(run: Pipeline, out: Path, **overrides: Any) -> list[str]:
    options = TRAIN | overrides
    flags = [part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    return [
        *("--model", str(run.model), "--fixes", ",".join(run.fixes)),
        *("--dialect", "hermes", "--chat-template", run.overrides.get("chat_template", "own")),
        *("--data", str(run.folder("convert_data")), "--out", str(out), *flags),
    ]


def stop_after(process: subprocess.Popen[str], checkpoint: Path, how: signal.Signals) -> tuple[int, str, str]:
    """Signal the process as soon as the checkpoint is there."""
    wait_for(checkpoint / "state.json", process)
    process.send_signal(how)
    return finish(process)


def resumed_step(out: str) -> int:
    found = re.search(r"goes on from the checkpoint of step (\d+)\n", out)
    assert found, out
    return int(found[1])
