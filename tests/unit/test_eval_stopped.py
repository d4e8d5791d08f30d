"""Evaluations that are stopped while a server answers, and servers that say nothing for long."""

from __future__ import annotations

import signal
import threading
import time
from subprocess import Popen
from typing import Any

import pytest

from stages.core.cli import Options, artifacts_root
from stages.core.errors import INTERRUPTED
from stages.eval.engines.endpoint import GLANCE, STOPPING
from tests.chat_server import ChatServer, complete, serving
from tests.pipeline import start_stage
from tests.served import ask_one, make_endpoint, run
from tests.small_suite import DIRECT, TESTS, TYPES


class Held:
    """A server that answers all questions, or all but the first, when it is let go."""

    def __init__(self, *, but_first: bool = False) -> None:
        self._go, self._but_first = threading.Event(), but_first
        self.server = ChatServer(self._reply)

    def _reply(self, question: str, _number: int) -> tuple[int, Any]:
        if not (self._but_first and question == TYPES):
            self._go.wait(120)
        return 200, complete()

    def let_go(self) -> None:
        """Answer."""
        self._go.set()


def start_and_stop(options: Options, server: ChatServer, how: signal.Signals, concurrency: int) -> Popen[str]:
    """An evaluation of its own process, to which the signal is sent when the server was asked twice."""
    words = ["--suites", *options.preset.eval.suites, "--out", str(options.out), "--endpoint", server.url]
    root = artifacts_root()
    stage = start_stage("eval", [*words, "--concurrency", str(concurrency)], root)
    while len(server.asked) < 2:
        assert stage.poll() is None, stage.communicate()
        time.sleep(0.02)
    stage.send_signal(how)
    return stage


def test_answers_that_come_soon_are_kept_when_a_run_is_stopped(options: Options) -> None:
    held = Held()
    with serving(held.server) as server:
        stage = start_and_stop(options, server, signal.SIGINT, 2)
        assert stage.stdout is not None
        assert any(STOPPING in line for line in stage.stdout), "it ended without a word"
        time.sleep(3 * GLANCE)  # it has looked, and waits; who is too slow for that passes all the same
        held.let_go()
        _, error = stage.communicate(timeout=120)
        assert (stage.returncode, error) == (130, f"eval: {INTERRUPTED}\n")
        run(options, make_endpoint(server))
        assert server.times() == {TYPES: 1, TESTS: 1, DIRECT: 1}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_asks_nothing_twice(how: signal.Signals, options: Options) -> None:
    held = Held(but_first=True)
    with serving(held.server) as server:
        stage = start_and_stop(options, server, how, 1)
        _, error = stage.communicate(timeout=120)
        assert stage.returncode == (-how if how == signal.SIGKILL else 130)
        assert error == ("" if how == signal.SIGKILL else f"eval: {INTERRUPTED}\n")
        held.let_go()
        run(options, make_endpoint(server))
        assert server.times() == {TYPES: 1, TESTS: 2, DIRECT: 1}, "the second was not answered in time"


def test_a_server_that_says_nothing_for_long_is_told_of(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"no answer of {server.url} for"
    ask_one(server)
    assert told not in capsys.readouterr().out
    server.pause = 1.0
    monkeypatch.setattr("stages.eval.engines.patience.LONG", 0.3)
    started = time.perf_counter()
    ask_one(server)
    passed, words = time.perf_counter() - started, capsys.readouterr().out.count(told)
    assert words >= 1
    assert 0.3 * 2 ** (words - 1) <= passed, "each word waits twice as long as the one before"
