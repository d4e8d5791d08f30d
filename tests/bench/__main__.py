"""Measure this project and stock tools side by side: same rows, same weights, same BLAS, one run.

Figures are only comparable within a run, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from stages.convert_data.stage import convert_data
from stages.core.blas import ensure_fast_blas
from stages.core.cli import Options, artifacts_root
from stages.core.fixes import FAIR
from stages.core.models import find_model
from stages.core.preset import load_preset
from tests.bench.convert import show_conversion
from tests.bench.evaluation import show_evaluation


@dataclass(frozen=True)
class Figures:
    """What one side took."""

    name: str
    seconds: float
    peak_gb: float


def main() -> int:
    """Run the chosen benchmark and print a table."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("what", choices=["train", "eval", "convert"])
    parser.add_argument("--steps", type=int, default=8, help="training steps, after one that is not counted")
    parser.add_argument("--queries", default="20", help="eval: queries of the suite extended, 20 or 20,200")
    parser.add_argument("--data", type=Path, help="eval: a fused or quantized model (default: the base)")
    parser.add_argument("--torch", action="store_true", help="eval: transformers on PyTorch as well")
    parser.add_argument("--mb", type=float, default=64, help="megabytes of rows to convert (default: 64)")
    args = parser.parse_args()
    if args.what == "convert":
        return show_conversion(args.mb)
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "eval":
            counts = [int(count) for count in args.queries.split(",")]
            return show_evaluation(Path(folder), counts, args.data, torch=args.torch)
        rows = bench_train(Path(folder), args.steps)
    ours = rows[0].seconds
    table = [[row.name, f"{row.seconds:.2f}", f"{row.seconds / ours:.1f}", row.peak_gb] for row in rows]
    heads = ["", "seconds a step", "times ours", "peak memory, GB"]
    print(tabulate(table, headers=heads, tablefmt="github"))
    return 0


def bench_train(folder: Path, steps: int) -> list[Figures]:
    """Seconds a training step with the preset's batch and LoRA set-up."""
    from tests.bench.plain_model import write_plain_model  # MLX, so not before its BLAS is chosen

    options = Options(load_preset("smol"), FAIR, out=folder / "data")
    convert_data(options)
    base = find_model(options.preset, artifacts_root())
    write_plain_model(base, folder / "plain", options.preset.model)
    return [
        measure("ours", "tests.bench.run_train", "ours", base, folder / "data", steps),
        measure(
            "mlx_lm lora, same BLAS",
            "tests.bench.run_train",
            "stock",
            folder / "plain",
            folder / "data",
            steps,
        ),
    ]


def measure(name: str, module: str, *arguments: object) -> Figures:
    """Run one side in a process of its own; it prints its figures as JSON on the last line."""
    print(f"{name} …", flush=True)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return Figures(name=name, **json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    if "convert" not in sys.argv:
        print(ensure_fast_blas(artifacts_root() / "blas"))
    sys.exit(main())
