"""Fixtures of the tests of eval and of the report."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.core.cli import Options
from stages.core.fixes import FAIR, FLAWED
from stages.core.preset import load_preset
from stages.core.records import Finding
from tests.chat_server import ChatServer, serving
from tests.report_world import DIRECT, World, answer_right
from tests.small_suite import SUITE


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The file of a suite of three queries."""
    path = tmp_path / "three.json"
    path.write_text(json.dumps(SUITE), "utf-8")
    return path


@pytest.fixture
def options(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Those of an evaluation on that suite."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    return Options(load_preset("smol", {"suites": (str(suite),)}), FAIR, out=tmp_path / "out")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer()) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAIR_RETEST_ARTIFACTS", raising=False)
    monkeypatch.delenv("FAIR_RETEST_LOG", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield World(tmp_path)
    for number, handler in before.items():  # the command line sets its own
        signal.signal(number, handler)


@pytest.fixture
def two_arms(world: World) -> World:
    """The flawed arm answers everything in prose, the fair one is always right."""
    for fixes in (FLAWED, FAIR):
        world.train(fixes)
    world.evaluate(FLAWED, lambda _: DIRECT)
    world.evaluate(FAIR, answer_right)
    finding = Finding(
        check="mixed_dialects",
        severity="critical",
        place="data",
        flaw=3,
        message="419 rows with XML | 62 with bare Python",
        count=481,
        total=685,
        fix="convert with the fix json",
    )
    world.audit(FLAWED, [finding])
    world.audit(FAIR)
    return world
