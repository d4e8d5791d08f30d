"""Fixtures of the report's tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.core.fixes import FAIR, FLAWED
from stages.core.records import Finding
from tests.report_world import DIRECT, World, answer_right


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
