"""Servers on loopback that answer too slowly, too much, or with what nobody expects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import StageError
from stages.core.records import RawReply
from stages.eval.__main__ import main
from stages.eval.engines import Question, Sampling
from stages.eval.engines.endpoint import Endpoint
from stages.eval.engines.transport import LARGEST_ANSWER, Transport
from tests.chat_server import ChatServer, complete, serving


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer()) as running:
        yield running


def ask(server: ChatServer, **settings: Any) -> RawReply:
    """The reply to one question; a failure is tried again at once, and once only."""
    transport = Transport(server.url, **{"timeout": 5.0, "attempts": 2, "first_wait": 0.005, **settings})
    endpoint = Endpoint(transport, "hermes", "tiny")
    kept: list[RawReply] = []
    row = {"messages": [{"role": "user", "content": "Hello?"}]}
    endpoint.answer([Question("q", row)], Sampling(16), lambda _, reply: kept.append(reply), "test")
    (reply,) = kept
    return reply


def test_an_answer_that_drips_is_not_waited_for(server: ChatServer) -> None:
    server.drip = 0.05  # each byte comes within the time that the whole answer may take
    started = time.perf_counter()
    with pytest.raises(StageError, match=r"query q: no answer within 0\.4 s"):
        ask(server, timeout=0.4)
    assert time.perf_counter() - started < 5.0, "the whole answer takes longer than 10 s"


@pytest.mark.parametrize("wait", ["nan", "inf", "-inf", "-3"])
def test_a_wait_that_is_no_time_is_not_waited(wait: str, server: ChatServer) -> None:
    server.reply = lambda _, number: (
        (429, {}, {"Retry-After": wait}) if number == 1 else (200, complete("At last."))
    )
    started = time.perf_counter()
    assert ask(server).text == "At last."
    assert time.perf_counter() - started < 5.0


def test_an_answer_without_end_is_left_where_it_is(server: ChatServer) -> None:
    server.reply = lambda *_: (200, complete("x" * LARGEST_ANSWER))
    with pytest.raises(StageError, match="query q: the answer has more than 8 MB"):
        ask(server)
    server.reply = lambda *_: (200, complete("x" * (LARGEST_ANSWER // 2)))
    assert len(ask(server).text) == LARGEST_ANSWER // 2


@pytest.mark.parametrize("kind", ["text/plain; charset=hex", "text/plain; charset=no", "\xff"])
def test_an_error_in_an_odd_encoding_is_shown_all_the_same(kind: str, server: ChatServer) -> None:
    server.reply = lambda *_: (400, b"too long \xff", {"Content-Type": kind})
    with pytest.raises(StageError, match="query q: status 400, too long \ufffd"):
        ask(server)


def test_what_a_server_says_does_not_steer_the_terminal(
    server: ChatServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    server.models = (200, {"data": [{"id": "big\x1b[2J"}, {"id": "tiny"}]})
    words = ["--endpoint", server.url, "--suites", "core20", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith(f"eval: {server.url} serves big\\x1b[2J, tiny: name one")
    server.models = (200, {"data": [{"id": "big\x1b[2J"}]})
    server.reply = lambda *_: (400, b"\x1b[31mno")
    assert main(words) == 2
    shown = capfd.readouterr()
    assert f"{server.url} serves big\\x1b[2J\n" in shown.out
    assert "status 400, \\x1b[31mno" in shown.err
    assert "\x1b" not in shown.out + shown.err
