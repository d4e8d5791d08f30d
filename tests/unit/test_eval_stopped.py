"""Evaluations that are stopped while a server answers, and servers that say nothing for long."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.core.cli import Options
from stages.core.errors import INTERRUPTED
from stages.eval.engines.endpoint import STOPPING
from tests.chat_server import ChatServer, complete, serving
from tests.pipeline import start_stage
from tests.served import ask_one, make_endpoint, run
from tests.small_suite import DIRECT, TESTS, TYPES


def test_answers_that_come_soon_are_kept_when_a_run_is_stopped(options: Options, tmp_path: Path) -> None:
    hold = threading.Event()

    def reply(_question: str, _number: int) -> tuple[int, Any]:
        hold.wait(60)
        return 200, complete()

    words = ["--suites", *options.preset.eval.suites, "--out", str(tmp_path / "out"), "--concurrency", "2"]
    with serving(ChatServer(reply)) as server:
        stopped = start_stage("eval", [*words, "--endpoint", server.url], tmp_path / "artifacts")
        while len(server.asked) < 2:
            assert stopped.poll() is None, stopped.communicate()
            time.sleep(0.02)
        stopped.send_signal(signal.SIGINT)
        time.sleep(0.5)
        hold.set()
        out, error = stopped.communicate(timeout=60)
        assert (stopped.returncode, error) == (130, f"eval: {INTERRUPTED}\n")
        assert STOPPING in out
        run(replace(options, out=tmp_path / "out"), make_endpoint(server))
        assert server.times() == {TYPES: 1, TESTS: 1, DIRECT: 1}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_asks_nothing_twice(
    how: signal.Signals, options: Options, tmp_path: Path
) -> None:
    hold = threading.Event()

    def reply(question: str, _number: int) -> tuple[int, Any]:
        if question != TYPES:
            hold.wait(60)  # the first question alone is answered before the run is stopped
        return 200, complete()

    words = ["--suites", *options.preset.eval.suites, "--out", str(tmp_path / "out"), "--concurrency", "1"]
    with serving(ChatServer(reply)) as server:
        stopped = start_stage("eval", [*words, "--endpoint", server.url], tmp_path / "artifacts")
        while len(server.asked) < 2:
            assert stopped.poll() is None, stopped.communicate()
            time.sleep(0.02)
        stopped.send_signal(how)
        _, error = stopped.communicate(timeout=60)
        assert stopped.returncode == (-how if how == signal.SIGKILL else 130)
        assert error == ("" if how == signal.SIGKILL else f"eval: {INTERRUPTED}\n")
        hold.set()
        run(replace(options, out=tmp_path / "out"), make_endpoint(server))
        assert server.times() == {TYPES: 1, TESTS: 2, DIRECT: 1}, "the second was not answered in time"


def test_a_server_that_says_nothing_for_long_is_told_of(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"no answer of {server.url} for"
    ask_one(server)
    assert told not in capsys.readouterr().out
    server.pause = 1.0
    monkeypatch.setattr("stages.eval.engines.patience.LONG", 0.3)
    ask_one(server)
    assert 1 <= capsys.readouterr().out.count(told) <= 2, "each word waits twice as long as the one before"
