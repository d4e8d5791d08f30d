"""How the benchmarks judge: steps beside mlx-lm's loop, replies at a tie, a model behind a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tokenizers import Tokenizer

from stages.core.preset import load_preset
from stages.eval.engines import Question
from tests.bench.evaluation import TIE, all_ties, describe_gaps
from tests.bench.parity import show_parity
from tests.bench.plain_model import write_plain_model
from tests.bench.run_train import run_ours, run_stock
from tests.bench.ties import list_gaps
from tests.bench.training import SAME, STEPS, make_task
from tests.models import BuiltOnce
from tests.parrot import write_parrot
from tests.pipeline import Pipeline, stock_functions
from tests.small_suite import SUITE
from tests.training import encode_pipeline_rows


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


@pytest.mark.parametrize(("nearer", "expected"), [(0.0, 0.0), (1e-4, 1e-4), (0.5, 0.5), (None, float("inf"))])
def test_where_replies_part_the_logits_tell_a_tie_from_a_mistake(
    nearer: float | None, expected: float, built: BuiltOnce, tmp_path: Path
) -> None:
    """The model says `one two three`; with `nearer` the logit of ` four` is so far below that of ` two`."""
    model = write_parrot(
        built.model("qwen2", quantize=False), tmp_path / "parrot", "one two three", "<|endoftext|>"
    )
    file = str(model / "model.safetensors")
    arrays: dict[str, Any] = dict(mx.load(file))  # type: ignore[arg-type]
    if nearer is not None:
        two, three, four = read_ids(model, " two", " three", " four")
        said = arrays["lm_head.weight"][two]
        arrays["model.embed_tokens.weight"][four] = arrays["model.embed_tokens.weight"][three]  # then it ends
        # A logit is a component of the normed state, which is as long as the square root of its size.
        arrays["lm_head.weight"][four] = said * (1 - nearer / said.size**0.5)
    mx.save_safetensors(file, arrays, {"format": "mlx"})
    question = Question("q", {"messages": [{"role": "user", "content": "Count."}]})
    found = list_gaps(model, [question] * 2, ["one two three"] * 2, ["one four", "one two three"])
    assert found == {"q": pytest.approx(expected, rel=1e-3, abs=2e-6)}
    assert all_ties(found) == (expected <= TIE)
    lines = describe_gaps(found, 2)
    assert len(lines) == 1 + (expected <= TIE)
    assert lines[-1].startswith("Our 2 replies are" if expected <= TIE else "FAILED: 1 of 2 replies are NOT")


def test_a_model_behind_its_server_decides_as_in_process(
    built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "unused")  # it is set by the benchmark, and here set back
    (tmp_path / "three.json").write_text(json.dumps(SUITE), "utf-8")
    assert show_parity(tmp_path / "work", str(tmp_path / "three.json"), built.model("llama")) == 0
    page = (tmp_path / "reports" / "parity.md").read_text("utf-8")
    assert page in capsys.readouterr().out
    assert "decision 0, calls 0, dialect 0, stop 0, prompt 0" in page
    assert page.endswith("All decisions are identical.\n")
    assert str(tmp_path) not in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == ["in process", "mlx_lm.server"]
    assert rows[2][1:3] == rows[3][1:3]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[3:])


def read_ids(model: Path, *words: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [one for word in words for one in tokenizer.encode(word, add_special_tokens=False).ids]
