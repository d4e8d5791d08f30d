"""One model in this process and behind mlx_lm.server: the same queries, and where the replies differ."""

from __future__ import annotations

import os
from pathlib import Path

from tabulate import tabulate

from stages.core.cli import Options, artifacts_root
from stages.core.fixes import FAIR
from stages.core.models import find_model
from stages.core.preset import load_preset
from stages.core.records import EvalSummary, read_record
from stages.eval.parity import compare_outputs
from stages.eval.request import Request
from stages.eval.stage import evaluate
from tests.mlx_server import serving_model

REPORT = Path("reports", "parity.md")
SIDES = HERE, THERE = "in process", "mlx_lm.server"


def show_parity(folder: Path, suite: str, data: Path | None) -> int:
    """Print a table and write it to reports/parity.md; 1 when a decision differs.

    Both sides have the weights in float32, with which the server is fast enough on a CPU.
    """
    from tests.bench.plain_model import write_plain_model  # MLX, so not before its BLAS is chosen

    preset = load_preset("smol", {"suites": (suite,)})
    base = data or find_model(preset, artifacts_root())
    os.environ["FAIR_RETEST_ARTIFACTS"] = str(folder / "artifacts")  # no reply of an earlier run is used
    write_plain_model(base, folder / "plain", preset.model)
    evaluate(Options(preset, FAIR, data=folder / "plain", out=folder / HERE))
    with serving_model(folder / "plain", folder / "home") as address:
        evaluate(Options(preset, FAIR, out=folder / THERE), Request(endpoint=address))
    comparison = compare_outputs([folder / HERE, folder / THERE])
    (name,) = comparison.differences
    table = [_row(side, read_record(folder / side / name / "summary.json", EvalSummary)) for side in SIDES]
    differing = comparison.differences[name]["decision"]
    said = f"{differing} decisions differ." if differing else "All decisions are identical."
    told = [f"- {line.strip()}".replace(f"{folder}/", "") for line in comparison.lines if line[0] != "|"]
    rows = [line for line in comparison.lines if line[0] == "|"]
    heads = ["", "decided right", "wholly right", "seconds a query", "first token, s", "tokens/s"]
    sides = tabulate(table, headers=heads, tablefmt="github", disable_numparse=True)
    title = "# One model in process and behind mlx_lm.server"
    page = "\n".join([title, "", sides, "", *told, *([""] if rows else []), *rows, "", said, ""])
    print(f"model: {base}\n{page}")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(page, "utf-8")
    return int(differing > 0)


def _row(side: str, summary: EvalSummary) -> list[str]:
    timing, strict = summary.timing, summary.strict
    figures = (timing.seconds_per_query, timing.first_token_seconds, timing.tokens_per_second)
    rates = (summary.tool_or_direct, strict.whole if strict else None)
    shown = ["–" if rate is None else f"{rate.k}/{rate.n}" for rate in rates]
    return [side, *shown, *("–" if figure is None else f"{figure:.2f}" for figure in figures)]
