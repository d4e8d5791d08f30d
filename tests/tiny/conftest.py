"""Fixtures of the compute stages: one small data set, and one whole run per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.fixes import FAIR
from tests.models import BuiltOnce
from tests.pipeline import Pipeline, cut_corpus

# Direct answers, calls, and calls with result and answer; short rows that all have a system prompt.
TRAIN_ROWS = (1, 2, 3, 4, 6, 8, 11, 14, 17, 20, 21, 29, 30)
VALID_ROWS = (0, 1)
# The tool schemas make rows five times as long and change nothing for these tests.
FIXES = tuple(fix for fix in FAIR if fix != "tools")


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of artifacts for commands that name their own --out: its BLAS library is made once."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="session")
def corpus_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Legacy rows: a data folder with a few of the shipped corpus."""
    return cut_corpus(tmp_path_factory.mktemp("part") / "rows", {"train": TRAIN_ROWS, "valid": VALID_ROWS})


@pytest.fixture(scope="session")
def qwen2_run(built: BuiltOnce, corpus_part: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The tiny 4-bit Qwen2 base model, from data to a quantized model."""
    return Pipeline(tmp_path_factory.mktemp("qwen2"), built.model("qwen2"), FIXES, corpus_part)


@pytest.fixture(scope="session")
def qwen3_moe_run(built: BuiltOnce, corpus_part: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The tiny mixture of experts, unquantized as MLX computes experts on the CPU."""
    return Pipeline(
        tmp_path_factory.mktemp("qwen3"), built.model("qwen3_moe", quantize=False), FIXES, corpus_part
    )


@pytest.fixture(scope="session")
def llama_run(built: BuiltOnce, corpus_part: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The tiny Llama with SmolLM2's tokenizer, whose own chat template would drop tools and calls."""
    return Pipeline(
        tmp_path_factory.mktemp("llama"),
        built.model("llama"),
        FIXES,
        corpus_part,
        {"chat_template": "chatml_hermes", "iters": 2},
    )
