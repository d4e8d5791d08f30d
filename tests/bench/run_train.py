"""One side of the training benchmark: `ours|stock MODEL DATA STEPS`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import mlx.core as mx

from stages.core.platform import peak_memory_gb
from stages.core.preset import load_preset
from stages.core.render import find_turns
from stages.core.tokenizer import load_tokenizer


def time_ours(model: Path, data: Path, steps: int) -> float:
    """Seconds a step, the first one left out."""
    from stages.train.adapter import load_trainable
    from stages.train.loop import Run
    from stages.train.rows import load_rows

    preset = load_preset("smol")
    tokenizer = load_tokenizer(model, preset.model)
    rows = load_rows(data, "train", tokenizer, find_turns(tokenizer), 1024)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(load_trainable(model, preset.train), preset.train, 0, rows, rows[:8], Path(folder))
        run.step(0)
        started = time.perf_counter()
        for index in range(1, steps + 1):
            run.step(index)
        return (time.perf_counter() - started) / steps


def time_stock(model: Path, data: Path, steps: int) -> float:
    """Seconds a step of `mlx_lm lora` with prompt masking, the first one left out."""
    from mlx_lm.lora import CONFIG_DEFAULTS, train_model
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.datasets import load_dataset
    from mlx_lm.utils import load

    setup = load_preset("smol").train
    rates: list[float] = []

    class Watch(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            rates.append(float(info["iterations_per_second"]))

    with tempfile.TemporaryDirectory() as folder:
        args = types.SimpleNamespace(
            **CONFIG_DEFAULTS
            | {
                "model": str(model), "data": str(data), "train": True, "mask_prompt": True,
                "iters": steps + 1, "batch_size": setup.batch_size, "num_layers": setup.num_layers,
                "steps_per_report": 1, "val_batches": 1, "adapter_path": folder,
                "learning_rate": setup.learning_rate,
                "lora_parameters": {"rank": setup.rank, "dropout": setup.dropout, "scale": setup.scale},
            }
        )  # fmt: skip
        loaded, tokenizer = load(str(model))
        train_rows, _, _ = load_dataset(args, tokenizer)
        train_model(args, loaded, train_rows, train_rows, Watch())
    return sum(1 / rate for rate in rates[1:]) / len(rates[1:])


if __name__ == "__main__":
    side, model, data, steps = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    mx.random.seed(0)
    seconds = (time_ours if side == "ours" else time_stock)(model, data, steps)
    print(json.dumps({"seconds": round(seconds, 3), "peak_gb": peak_memory_gb()}))
