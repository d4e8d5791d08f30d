"""Fixtures that several tests share: each model and tokenizer is built once per run.

The folders are shared: a test that changes one copies it first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from stages.core import progress
from tests.models import FAMILIES, KINDS, BuiltOnce

# No test here is about time: on a busy machine an example that was slow once would fail it.
settings.register_profile(
    "untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def lines_on_stdout() -> Iterator[None]:
    """A test that asked for JSON leaves the next one's lines where they belong."""
    yield
    progress.talk_on_stderr(False)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltOnce:
    return BuiltOnce(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session", params=FAMILIES)
def tokenizer_folder(request: pytest.FixtureRequest, built: BuiltOnce) -> Path:
    """Each Qwen tokenizer in turn."""
    return built.tokenizer(request.param)


@pytest.fixture(scope="session")
def qwen25_tokenizer(built: BuiltOnce) -> Path:
    return built.tokenizer("qwen2.5")


@pytest.fixture(scope="session")
def qwen3_tokenizer(built: BuiltOnce) -> Path:
    return built.tokenizer("qwen3")


@pytest.fixture(scope="session")
def qwen3_coder_tokenizer(built: BuiltOnce) -> Path:
    return built.tokenizer("qwen3_coder")


@pytest.fixture(scope="session", params=KINDS)
def tiny_model(request: pytest.FixtureRequest, built: BuiltOnce) -> Path:
    """Each tiny 4-bit model in turn."""
    return built.model(request.param)


@pytest.fixture(scope="session")
def tiny_qwen2(built: BuiltOnce) -> Path:
    return built.model("qwen2")


@pytest.fixture(scope="session")
def tiny_qwen3_moe(built: BuiltOnce) -> Path:
    return built.model("qwen3_moe")


@pytest.fixture(scope="session")
def tiny_llama(built: BuiltOnce) -> Path:
    return built.model("llama")


@pytest.fixture(scope="session")
def embedded_model(built: BuiltOnce) -> Path:
    return built.embedded()
