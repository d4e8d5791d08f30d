"""The evaluation beside stock tools: same weights, same prompts, greedy, in one run, outputs compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
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
TIE = 1e-3  # between two logits of some tens: float32 has seven digits, and layers add up their errors


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
    1 when an output is not the one of one-by-one generation, which `mlx_lm.generate` is.
    """
    from tests.bench.plain_model import write_plain_model  # MLX, so not before its BLAS is chosen

    preset = load_preset("smol")
    base = data or find_model(preset, artifacts_root())
    write_plain_model(base, folder / "plain", preset.model)
    # The base model's own template knows no tools, so there ours reads the copy that has the preset's.
    models = dict.fromkeys(SIDES, folder / "plain") | ({"ours": base} if data else {})
    sides = [side for side in SIDES if side != "torch" or torch]
    print(f"model: {base}")
    worst = 0
    for count in counts:
        _show_sides([_measure(side, models[side], count, folder) for side in sides], count)
        gaps = _find_gaps(folder / "plain", count, folder)
        print("\n".join(describe_gaps(gaps, count)), flush=True)
        worst = max(worst, int(not all_ties(gaps)))
    return worst


def all_ties(gaps: Mapping[str, float | None]) -> bool:
    """Whether every reply that is not equal parts from the other one at a tie, or has the same tokens."""
    return all(gap is None or gap <= TIE for gap in gaps.values())


def describe_gaps(gaps: Mapping[str, float | None], count: int) -> list[str]:
    """The replies that are not those of one-by-one generation; one line that says so when there are such."""
    lines = [
        f"{query}: the same tokens, written in another way"
        if gap is None
        else f"{query}: where the replies part, the logits of the two tokens are {gap:.1e} apart, a tie"
        for query, gap in gaps.items()
        if gap is None or gap <= TIE
    ]
    if wrong := {query: gap for query, gap in gaps.items() if gap is not None and gap > TIE}:
        query = max(wrong, key=lambda name: wrong[name])
        lines.append(
            f"FAILED: {len(wrong)} of {count} replies are NOT those of one-by-one generation: {query} "
            f"parts from it where the logits are {wrong[query]:.1e} apart, a tie is {TIE:g} at most"
        )
        return lines
    return [*lines, f"Our {count} replies are those of one-by-one generation{', ties aside' * bool(lines)}."]


def _find_gaps(model: Path, count: int, folder: Path) -> dict[str, float | None]:
    """By query, how near the two tokens were at which our reply leaves the one of `mlx_lm.generate`."""
    files = [str(folder / f"{name}-{count}.json") for name in ("stock", "ours", "gaps")]
    _run(["tests.bench.ties", str(model), str(count), *files], "the comparison of the replies")
    found: dict[str, float | None] = json.loads(Path(files[2]).read_text("utf-8"))
    return found


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
    said = _run(["tests.bench.run_eval", side, str(model), str(count), str(out)], SIDES[side])
    figures = json.loads(said.splitlines()[-1])
    return Side(SIDES[side], figures["seconds"], figures["peak_gb"], json.loads(out.read_text("utf-8")))


def _run(module: list[str], what: str) -> str:
    """What a module of the benchmark prints, in a process of its own."""
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-2000:]}")
    return done.stdout
