"""The training beside mlx-lm and torch with peft: same rows, batches, LoRA and loss, in one run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from stages.convert_data.stage import convert_data
from stages.core.blas import GUARD
from stages.core.cli import Options, artifacts_root
from stages.core.cpu.blocks import THREADS
from stages.core.fixes import FAIR
from stages.core.models import find_model
from stages.core.preset import load_preset
from stages.core.records import write_record
from stages.core.render import Encoded
from stages.core.words import plural
from stages.train.prefixes import shared_prefix
from stages.train.rows import BatchPlan
from tests.bench.task import Figures, Task, as_row, join_rows

EPOCHS = 1.3  # of a run with the preset smol; what is computed once for the run is shared by so many
SAME = 1e-4  # nats by which the losses of a step may differ
STEPS = 20
STOCK, TORCH = "mlx_lm lora, same BLAS", "torch + peft"


@dataclass(frozen=True)
class Size:
    """How much is trained: rows a batch, LoRA layers, layers that the model is cut to, steps of each side."""

    batch: int
    layers: int
    kept: int | None
    steps: int = STEPS
    slow_steps: int = 1


FULL = Size(batch=8, layers=10, kept=None)  # the set-up of the preset smol
QUICK = Size(batch=2, layers=2, kept=3)


class Workshop:
    """A folder with the embedded model in float32, the rows of its fair arm and a LoRA to begin with."""

    def __init__(self, folder: Path, kept: int | None) -> None:
        from stages.core.render import find_turns
        from stages.core.tokenizer import load_tokenizer
        from stages.train.rows import load_rows
        from tests.bench.plain_model import write_plain_model  # MLX, so not before its BLAS is chosen

        self.folder, preset = folder, load_preset("smol")
        convert_data(Options(preset, FAIR, out=folder / "data"))
        base = find_model(preset, artifacts_root())
        self.model = folder / "plain"
        write_plain_model(base, self.model, preset.model, kept)
        tokenizer = load_tokenizer(base, preset.model)
        self.rows = load_rows(folder / "data", "train", tokenizer, find_turns(tokenizer), 1024)

    def task(self, rows: Sequence[Encoded], steps: int, **options: Any) -> Task:
        """So many steps over these rows, with other options than the preset's."""
        return make_task(self.model, self.folder, rows, steps, **options)


def make_task(model: Path, folder: Path, rows: Sequence[Encoded], steps: int, **options: Any) -> Task:
    """So many steps of the preset smol, but for its `options`, in the order that a run's plan gives them."""
    from tests.bench.plain_model import list_rates, write_adapter

    setup = load_preset("smol", {"iters": max(steps, 11), **options}).train
    plan = BatchPlan(tuple(len(row.tokens) for row in rows), setup.batch_size, 0)
    return Task(
        model=model,
        adapter=write_adapter(model, folder / f"lora{setup.num_layers}.safetensors", setup),
        setup=setup,
        rows=[as_row(row) for row in rows],
        order=[plan.rows_of(step) for step in range(steps)],
        rates=list_rates(setup, steps),
    )


def show_training(folder: Path, size: Size, *, torch: bool) -> int:
    """Run all sides, print their figures; 1 when our losses are not those of the plain computation."""
    shop = Workshop(folder, size.kept)
    count = round(size.steps * size.batch / EPOCHS / size.batch) * size.batch
    rows = shop.rows[:count] if size.kept is None else sorted(shop.rows, key=_length)[:count]
    task = shop.task(rows, size.steps, batch_size=size.batch, num_layers=size.layers)
    slow = task.shortened(size.slow_steps)
    sides = {
        "ours": _measure("ours", task, folder),
        "ours, 2 ranks": _measure("ours", task, folder, ranks=2),
        STOCK: _measure("stock", task, folder),
        "mlx_lm lora, as pip installs it": _measure("stock", slow, folder, preload=False),
    }
    if torch:
        sides[TORCH] = _measure("torch", task, folder, preload=False)
    lengths = [len(row.tokens) for row in rows]
    print(
        f"\n{len(rows)} rows of {min(lengths)} to {max(lengths)} tokens, {len(shared_prefix(rows))} of them "
        f"shared, batches of {size.batch}, LoRA of rank {task.setup.rank} on {size.layers} of "
        f"{size.kept or 30} layers, float32; seconds from the loaded model to the last update\n"
    )
    print_sides(sides)
    return judge_losses(sides)


def print_sides(sides: Mapping[str, Figures]) -> None:
    """One row per side."""
    ours, (whose, plain) = sides["ours"], choose_plain(sides)
    rows = [
        [
            name,
            len(found.losses),
            f"{found.step_seconds:.2f}",
            f"{found.speed:.0f}",
            f"{ours.speed / found.speed:.2f}",
            f"{found.peak_gb:.2f}",
            f"{found.losses[0]:.4f} → {found.losses[-1]:.4f}",
            f"{found.differences(plain):.1e}",
        ]
        for name, found in sides.items()
    ]
    heads = ["", "steps", "s a step", "tokens/s", "ours is faster by", "peak memory, GB", "loss"]
    heads.append(f"losses from those of {whose}")
    print(tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True))


def choose_plain(sides: Mapping[str, Figures]) -> tuple[str, Figures]:
    """Whose losses are those of the plain computation: torch's where it was run, else mlx-lm's.

    MLX's CPU has exponentials that are some 5e-6 of their size off, which 20 steps of training make large
    (docs/LOG.md): mlx-lm's losses can be held to ours in the first step alone.
    """
    name = TORCH if TORCH in sides else STOCK
    found = sides[name]
    return name, found if name == TORCH else found.model_copy(update={"losses": found.losses[:1]})


def judge_losses(sides: Mapping[str, Figures]) -> int:
    """Say whether our losses are those of the plain computation; 0 when they are."""
    whose, plain = choose_plain(sides)
    worst = max(found.differences(plain) for name, found in sides.items() if name.startswith("ours"))
    said = "the same as" if worst <= SAME else "NOT those of"
    steps = plural(len(plain.losses), "step")
    print(
        f"\nOur losses of {steps} are {said} the plain computation, {whose}: {worst:.1e} apart, "
        f"limit {SAME:g}."
    )
    return int(worst > SAME)


def show_scaling(folder: Path, *, quick: bool) -> int:
    """How time and memory grow with each of four sizes, the others as they are in the middle."""
    shop = Workshop(folder, QUICK.kept if quick else None)
    table = [
        [what, value, *_describe(_measure("ours", task, folder, said=f"{what} {value}"))]
        for what, value, task in list_scales(shop, quick=quick)
    ]
    heads = ["", "", "steps", "s a step", "tokens/s", "peak, GB", "above the model, GB", "estimated, GB"]
    print("\n" + tabulate(table, headers=heads, tablefmt="github", disable_numparse=True))
    return 0


def list_scales(shop: Workshop, *, quick: bool) -> Iterable[tuple[str, int, Task]]:
    """What is varied, its value, and the training."""
    layers, batch, steps = (2, 2, 2) if quick else (10, 4, 4)
    every = shop.rows[:: max(len(shop.rows) // 64, 1)]  # of all lengths
    prefix = len(shared_prefix(shop.rows))

    def task(count: int, *, steps: int = steps, rows: Sequence[Encoded] = every, **options: int) -> Task:
        return shop.task(rows[:count], steps, **{"batch_size": batch, "num_layers": layers} | options)

    for count in (16, 32, 64)[: 2 if quick else None]:
        yield "rows, an epoch of them", count, task(count, steps=-(-count // batch))
    for length in (384, 512) if quick else (384, 512, 1024, 2048):
        long = [join_rows(every[i:], prefix, length) for i in range(batch * steps)]
        yield "tokens a row", length, task(len(long), rows=long, max_seq_length=length)
    for size in (1, 4) if quick else (1, 2, 4, 8, 16):
        yield "rows a batch", size, task(size * steps, batch_size=size)
    for number in (1, 4) if quick else (1, 5, 10, 20, 30):
        yield "LoRA layers", number, task(batch * steps, num_layers=number)


def _describe(found: Figures) -> list[str]:
    return [
        str(len(found.losses)),
        f"{found.step_seconds:.2f}",
        f"{found.speed:.0f}",
        f"{found.peak_gb:.2f}",
        f"{found.above_gb or 0:.2f}",
        f"{found.estimate_gb or 0:.2f}",
    ]


def _measure(
    side: str, task: Task, folder: Path, *, ranks: int = 1, preload: bool = True, said: str = ""
) -> Figures:
    """Run one side in processes of its own."""
    print(f"{said or side}{f', {ranks} ranks' * (ranks > 1)} …", flush=True)
    path = folder / "task.json"
    write_record(path, task)
    module = ["tests.bench.run_torch"] if side == "torch" else ["tests.bench.run_train", side]
    command = [sys.executable, "-m", *module, str(path), *([str(ranks)] if ranks > 1 else [])]
    hidden = () if preload else ("LD_PRELOAD", GUARD, THREADS, "OPENBLAS_THREAD_TIMEOUT")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{said or side} failed:\n{done.stderr[-2000:]}")
    return Figures.model_validate_json(done.stdout.splitlines()[-1])


def _length(row: Encoded) -> int:
    return len(row.tokens)
