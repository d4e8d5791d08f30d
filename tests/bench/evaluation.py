"""The evaluation beside stock tools: same weights, same prompts, greedy, in one run, outputs compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from stages.core.cli import artifacts_root
from stages.core.models import find_model
from stages.core.preset import load_preset

SIDES = {
    "ours": "ours",
    "stock": "loop over mlx_lm.generate, same BLAS",
    "torch": "loop over transformers' generate, PyTorch",
}


@dataclass(frozen=True)
class Side:
    """What one side took, and what it replied."""

    name: str
    seconds: float
    peak_gb: float
    replies: list[str]


def show_evaluation(folder: Path, counts: list[int], data: Path | None, *, torch: bool) -> int:
    """Print a table for each number of queries of `extended`: seconds a query, memory, equal outputs.

    Ours reads the model as it is; the others get its weights in float32, with which they are fastest here.
    """
    from tests.bench.plain_model import write_plain_model  # MLX, so not before its BLAS is chosen

    preset = load_preset("smol")
    base = data or find_model(preset, artifacts_root())
    write_plain_model(base, folder / "plain", preset.model)
    # The base model's own template knows no tools, so there ours reads the copy that has the preset's.
    models = dict.fromkeys(SIDES, folder / "plain") | ({"ours": base} if data else {})
    sides = [side for side in SIDES if side != "torch" or torch]
    print(f"model: {base}")
    for count in counts:
        _show_sides([_measure(side, models[side], count, folder) for side in sides], count)
    return 0


def _show_sides(sides: list[Side], count: int) -> None:
    ours = sides[0]
    rows = [
        [
            side.name,
            f"{side.seconds:.3f}",
            f"{side.seconds / ours.seconds:.1f}",
            side.peak_gb,
            f"{sum(a == b for a, b in zip(side.replies, ours.replies, strict=True))}/{count}",
        ]
        for side in sides
    ]
    heads = [f"{count} queries", "seconds a query", "times ours", "peak memory, GB", "equal outputs"]
    print(tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True), flush=True)


def _measure(side: str, model: Path, count: int, folder: Path) -> Side:
    """Run one side in a process of its own; it prints its figures as JSON on the last line."""
    print(f"{SIDES[side]}, {count} queries …", flush=True)
    out = folder / f"{side}-{count}.json"
    command = [sys.executable, "-m", "tests.bench.run_eval", side, str(model), str(count), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if done.returncode:
        raise SystemExit(f"{SIDES[side]} failed:\n{done.stderr[-2000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return Side(SIDES[side], figures["seconds"], figures["peak_gb"], json.loads(out.read_text("utf-8")))
