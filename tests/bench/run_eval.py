"""One side of the evaluation benchmark: `ours|stock MODEL QUERIES`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from stages.core.fixes import FAIR
from stages.core.platform import peak_memory_gb
from stages.core.preset import load_preset
from stages.core.prompts import query_row
from stages.core.render import encode_text, render_row
from stages.core.suite import load_suite


def time_ours(model: Path, queries: int) -> float:
    """Seconds a query, batched, with the shared prefix computed once."""
    from stages.eval.generate import Engine

    preset = load_preset("smol")
    engine, chosen = Engine.load(model), load_suite("extended").queries[:queries]
    rows = [query_row(query.query, preset.model, FAIR) for query in chosen]
    started = time.perf_counter()
    engine.answer(rows, [query.id for query in chosen], preset.eval, "bench")
    return (time.perf_counter() - started) / queries


def time_stock(model: Path, queries: int) -> float:
    """Seconds a query, one after the other."""
    from mlx_lm import generate, load

    preset = load_preset("smol")
    loaded, tokenizer = load(str(model))
    started = time.perf_counter()
    for query in load_suite("extended").queries[:queries]:
        text = render_row(query_row(query.query, preset.model, FAIR), tokenizer, prompt=True)
        generate(
            loaded, tokenizer, encode_text(text, tokenizer._tokenizer), max_tokens=preset.eval.max_tokens
        )
    return (time.perf_counter() - started) / queries


if __name__ == "__main__":
    side, model, queries = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    seconds = (time_ours if side == "ours" else time_stock)(model, queries)
    print(json.dumps({"seconds": round(seconds, 3), "peak_gb": peak_memory_gb()}))
