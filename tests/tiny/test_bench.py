"""Twenty steps beside mlx-lm's own training loop: the losses of the sides of the benchmark."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from stages.core.preset import load_preset
from tests.bench.plain_model import write_plain_model
from tests.bench.run_train import run_ours, run_stock
from tests.bench.training import SAME, STEPS, make_task
from tests.models import BuiltOnce
from tests.pipeline import Pipeline, stock_functions
from tests.tiny.test_train import encode_pipeline_rows


def test_twenty_steps_have_the_losses_of_mlx_lms_own_loop(
    built: BuiltOnce, llama_run: Pipeline, tmp_path: Path
) -> None:
    write_plain_model(built.model("llama"), tmp_path / "plain", load_preset("smol").model)
    rows = encode_pipeline_rows(llama_run)
    task = make_task(tmp_path / "plain", tmp_path, rows, STEPS, batch_size=3, num_layers=1)
    mx.disable_compile()  # a compiler would take longer than all steps
    try:
        with stock_functions():
            plain = run_stock(task)
    finally:
        mx.enable_compile()
    ours = run_ours(task)
    assert ours is not None
    assert (len(plain.losses), plain.tokens) == (STEPS, ours.tokens)
    assert abs(plain.losses[0] - plain.losses[-1]) > 0.1, "it learns"
    assert ours.differences(plain) < SAME
