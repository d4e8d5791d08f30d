"""One side of the training benchmark, on MLX: `ours|stock TASK [RANKS]`. Its figures are the last line."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.platform import GB, accelerator, peak_memory_gb
from stages.core.records import read_record
from stages.train.launch import launch_here, stay_quiet
from tests.bench.task import Figures, Task

SUMMED = 512  # exponentials that are summed one after the other


def run_ours(task: Task) -> Figures | None:
    """This project's own steps; None in a process that does not lead its group."""
    import mlx.core as mx
    import psutil

    from stages.core.compute import device_peak_gb
    from stages.train.adapter import load_trainable
    from stages.train.loop import Run
    from stages.train.memory import CACHE_LIMIT, estimate_gb
    from stages.train.prefixes import group_rows
    from stages.train.ranks import Ranks

    ranks, rows = Ranks.join(), task.encoded
    if accelerator() == "cpu":
        mx.set_cache_limit(CACHE_LIMIT)
    model = load_trainable(task.model, task.setup)
    model.load_weights(str(task.adapter), strict=False)
    groups = group_rows(rows, task.setup.batch_size)
    estimate = estimate_gb(model, task.setup, groups, checkpoint=task.setup.grad_checkpoint)
    mx.clear_cache()
    loaded = psutil.Process().memory_info().rss / GB
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()  # what is computed once for the run counts as well
        run = Run(model, task.setup, 0, rows, rows[:1], Path(folder), ranks)
        steps = [run.step(index)[:2] for index in range(len(task.order))]
        seconds = time.perf_counter() - started
    peak = max(peak_memory_gb(), device_peak_gb())
    (together,) = ranks.sum_numbers([peak])
    if not ranks.leads:
        return None
    return Figures(
        losses=[losses.mean for losses, _ in steps],
        tokens=sum(tokens for _, tokens in steps),
        seconds=seconds,
        peak_gb=together,
        above_gb=peak - loaded,
        estimate_gb=estimate,
    )


def run_stock(task: Task) -> Figures:
    """mlx-lm's own training loop on the same rows, whole, with the same tokens in the loss.

    Gradients are those of its own cross-entropy. The loss that is shown is freed of its rounding, or it
    could not be compared: `places` are the supervised positions, for which that takes next to no time.
    """
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    from stages.core.compute import device_peak_gb
    from stages.train.adapter import lora_parameters
    from stages.train.optimizer import make_optimizer

    setup, found = task.setup, []

    class Watch(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            found.append(float(train_info["train_loss"]))

    def iterate(dataset: Any, **_: Any) -> Iterator[tuple[Any, Any, Any]]:
        for numbers in task.order:
            rows = [dataset[number] for number in numbers]
            length = 1 + -(-max(len(row.tokens) for row in rows) // 32) * 32  # as mlx-lm pads
            tokens, learned = np.zeros((2, len(rows), length), np.int32)
            for index, row in enumerate(rows):
                tokens[index, : len(row.tokens)] = row.tokens
                learned[index, : len(row.tokens)] = row.supervised
            places = np.flatnonzero(learned[:, 1:])
            places = np.resize(places, -(-len(places) // 256) * 256)  # few shapes, as each is compiled
            yield mx.array(tokens), mx.array(learned[:, 1:]), mx.array(places)

    def loss(model: Any, tokens: Any, learned: Any, places: Any) -> tuple[Any, Any]:
        logits, targets = model(tokens[:, :-1]), tokens[:, 1:]
        losses = nn.losses.cross_entropy(logits, targets)
        exact = exact_cross_entropy(logits.flatten(0, 1)[places], targets.flatten()[places])
        count = learned.sum()  # once: mx.compile trips over an output that is a repeated expression
        first = mx.arange(len(places)) < count  # what follows them repeats them
        rounding = mx.where(first, losses.flatten()[places] - exact, 0).sum()
        return ((losses * learned).astype(mx.float32).sum() - mx.stop_gradient(rounding)) / count, count

    model, _ = load_model(task.model)
    model.freeze()
    linear_to_lora_layers(model, setup.num_layers, lora_parameters(setup))
    model.load_weights(str(task.adapter), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArgs(
            batch_size=setup.batch_size,
            iters=len(task.order),
            steps_per_report=1,
            max_seq_length=setup.max_seq_length,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        started = time.perf_counter()
        train(
            model,
            make_optimizer(model, setup),
            task.encoded,
            args=args,
            loss=loss,
            iterate_batches=iterate,
            training_callback=Watch(),
        )
        seconds = time.perf_counter() - started
    return Figures(
        losses=found,
        tokens=sum(len(task.rows[number].tokens) for numbers in task.order for number in numbers),
        seconds=seconds,
        peak_gb=max(peak_memory_gb(), device_peak_gb()),
    )


def exact_cross_entropy(logits: Any, targets: Any) -> Any:
    """Cross-entropy in nats (M,) of logits (M, V), the exponentials summed part by part.

    MLX's CPU sums them one after the other in float32: some 1e-4 nats are lost over 50,000 tokens.
    """
    import mlx.core as mx

    top = logits.max(axis=-1, keepdims=True)
    parts = mx.split(mx.exp(logits - top), range(SUMMED, logits.shape[-1], SUMMED), axis=-1)
    total = mx.stack([part.sum(axis=-1) for part in parts], axis=-1).sum(axis=-1)
    said = mx.take_along_axis(logits, targets[:, None], axis=-1)
    return (top - said).squeeze(-1) + mx.log(total)


def main(side: str, path: str, ranks: str = "1") -> int:
    """Run one side, in several processes if asked, and print its figures."""
    if int(ranks) > 1:
        return launch_here(int(ranks), [sys.executable, "-m", "tests.bench.run_train", side, path])
    task = read_record(Path(path), Task)
    figures = run_ours(task) if side == "ours" else run_stock(task)
    if figures:
        print(figures.model_dump_json())
    return 0


if __name__ == "__main__":
    with stay_quiet():
        sys.exit(main(*sys.argv[1:]))
