"""Everything computes on a machine without a C++ compiler.

mlx-lm marks functions with `mx.compile`, for which MLX's CPU backend calls g++ where there is one.
The mixture of experts is the test: its SwiGLU is not among the functions that we exchange.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.pipeline import Pipeline, start_stage
from tests.waiting import finish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only MLX on Linux calls a compiler")
QUERY = {"id": "hi", "category": "concept", "kind": "direct", "query": "Hi"}


@pytest.mark.parametrize("compiler", [False, True], ids=["no compiler", "compiler"])
def test_a_mixture_of_experts_trains_and_answers(
    compiler: bool, qwen3_moe_run: Pipeline, artifacts: Path, tmp_path: Path
) -> None:
    if compiler and shutil.which("g++") is None:
        pytest.skip("this machine has no g++ to compare with")
    # MLX keeps what it compiled below the temporary folder: an empty one hides nothing.
    (tmp_path / "tmp").mkdir()
    environment = {
        "TMPDIR": str(tmp_path / "tmp"),
        "PATH": os.environ["PATH"] if compiler else str(tmp_path / "no programs"),
    }
    suite = tmp_path / "one.json"
    suite.write_text(
        json.dumps({"name": "one", "version": 1, "description": "One.", "queries": [QUERY]}), "utf-8"
    )
    model = ["--model", str(qwen3_moe_run.model), "--fixes", ",".join(qwen3_moe_run.fixes)]
    commands = {
        "eval": [
            "--data",
            str(qwen3_moe_run.model),
            "--suites",
            str(suite),
            "--max-tokens",
            "2",
            "--ask-again",
        ],
        "train": [
            *("--data", str(qwen3_moe_run.folder("convert_data"))),
            *("--iters", "1", "--batch-size", "1", "--num-layers", "1"),
        ],
    }
    for stage in ["eval"] if compiler else ["eval", "train"]:
        out, arguments = tmp_path / stage, commands[stage]
        process = start_stage(stage, [*model, *arguments, "--out", str(out)], artifacts, **environment)
        assert finish(process)[::2] == (0, "")
        assert out.is_dir()
    assert bool(list((tmp_path / "tmp").rglob("*.so"))) == compiler
