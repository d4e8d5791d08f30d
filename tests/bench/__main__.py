"""Measure this project and stock tools side by side: same rows, same weights, same BLAS, one run.

Figures are only comparable within a run, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from stages.core.blas import ensure_fast_blas
from stages.core.cli import artifacts_root, guard
from tests.bench.convert import show_conversion
from tests.bench.evaluation import show_evaluation
from tests.bench.parity import show_parity
from tests.bench.training import FULL, QUICK, STEPS, show_scaling, show_training

MOST_QUERIES = 200  # that extended has


def count_list(text: str) -> list[int]:
    """The type of --queries: numbers of queries that there are."""
    counts = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(counts) != text.count(",") + 1 or not 0 < min(counts) <= max(counts) <= MOST_QUERIES:
        raise argparse.ArgumentTypeError(f"{text!r}: use numbers from 1 to {MOST_QUERIES}, such as 20,200")
    return counts


def model_folder(text: str) -> Path:
    """The type of --data: a folder that holds a model."""
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} holds no model: name a fused or quantized one")
    return Path(text)


def main() -> int:
    """Run the chosen benchmark, which prints a table."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("what", choices=["train", "scaling", "eval", "parity", "convert"])
    parser.add_argument("--quick", action="store_true", help="train and scaling: a small size, minutes")
    parser.add_argument("--steps", type=int, default=STEPS, help="train: steps of each side (%(default)s)")
    parser.add_argument("--torch", action="store_true", help="train and eval: torch as well")
    parser.add_argument(
        "--queries", type=count_list, default="20", help="eval: queries of the suite extended, 20 or 20,200"
    )
    parser.add_argument(
        "--data", type=model_folder, help="eval, parity: a fused or quantized model (default: the base)"
    )
    parser.add_argument("--suite", default="core20", help="parity: the suite (%(default)s)")
    parser.add_argument("--mb", type=float, default=64, help="convert: megabytes of rows (default: 64)")
    args = parser.parse_args()
    if args.what == "convert":
        return show_conversion(args.mb)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.what == "train":
            size = replace(QUICK if args.quick else FULL, steps=args.steps)
            return show_training(folder, size, torch=args.torch)
        if args.what == "scaling":
            return show_scaling(folder, quick=args.quick)
        if args.what == "parity":
            return show_parity(folder, args.suite, args.data)
        return show_evaluation(folder, args.queries, args.data, torch=args.torch)


if __name__ == "__main__":
    if "convert" not in sys.argv:
        print(ensure_fast_blas(artifacts_root() / "blas"))
    sys.exit(guard("bench", main))
