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
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from stages.core.blas import ensure_fast_blas
from stages.core.cli import artifacts_root
from stages.core.models import find_model
from stages.core.preset import load_preset
from tests.bench.convert import show_conversion
from tests.bench.training import FULL, QUICK, STEPS, show_scaling, show_training


@dataclass(frozen=True)
class Figures:
    """What one side took."""

    name: str
    seconds: float
    peak_gb: float


def main() -> int:
    """Run the chosen benchmark and print a table."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("what", choices=["train", "scaling", "eval", "convert"])
    parser.add_argument("--quick", action="store_true", help="train and scaling: a small size, minutes")
    parser.add_argument("--steps", type=int, default=STEPS, help="train: steps of each side (%(default)s)")
    parser.add_argument("--torch", action="store_true", help="train: torch with peft as well")
    parser.add_argument("--queries", type=int, default=20, help="eval: queries of the suite extended")
    parser.add_argument("--mb", type=float, default=64, help="convert: megabytes of rows (default: 64)")
    args = parser.parse_args()
    if args.what == "convert":
        return show_conversion(args.mb)
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "train":
            size = replace(QUICK if args.quick else FULL, steps=args.steps)
            return show_training(Path(folder), size, torch=args.torch)
        if args.what == "scaling":
            return show_scaling(Path(folder), quick=args.quick)
        rows = bench_eval(Path(folder), args.queries)
    ours = rows[0].seconds
    table = [[row.name, f"{row.seconds:.2f}", f"{row.seconds / ours:.1f}", row.peak_gb] for row in rows]
    heads = ["", "seconds a query", "times ours", "peak memory, GB"]
    print(tabulate(table, headers=heads, tablefmt="github"))
    return 0


def bench_eval(folder: Path, queries: int) -> list[Figures]:
    """Seconds a query on the base model, greedy."""
    from tests.bench.plain_model import write_plain_model  # MLX, so not before its BLAS is chosen

    preset = load_preset("smol")
    base = find_model(preset, artifacts_root())
    write_plain_model(base, folder / "plain", preset.model)
    return [
        measure("ours", "tests.bench.run_eval", "ours", folder / "plain", queries),
        measure(
            "loop over mlx_lm.generate, same BLAS", "tests.bench.run_eval", "stock", folder / "plain", queries
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
