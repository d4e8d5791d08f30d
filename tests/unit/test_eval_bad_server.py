"""Servers on loopback that fail for a while or for good, or that answer too slowly, too much or oddly."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.records import RawReply, read_lines
from stages.eval.__main__ import main
from stages.eval.engines.transport import LARGEST_ANSWER, LONGEST_WAIT
from tests.chat_server import ChatServer, complete, serving
from tests.served import ask_one, make_endpoint, run
from tests.small_suite import DIRECT, TESTS, TYPES

# Failures that pass, and those that do not


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"error": "slow down"}, {"Retry-After": "0.01"}),
        (500, {"error": "out of memory"}),
        (503, b"<html>restarting</html>"),
        (200, b'{"choices": [{"mess'),
        (200, b""),
    ],
)
def test_a_failure_that_passes_is_tried_again(failure: Any, server: ChatServer) -> None:
    server.reply = lambda _, number: failure if number < 3 else (200, complete("At last."))
    assert ask_one(server).text == "At last."
    assert len(server.asked) == 3


def test_a_wait_that_the_server_asks_for_is_waited(server: ChatServer) -> None:
    server.reply = lambda _, number: (429, {}, {"Retry-After": "0.3"}) if number == 1 else (200, complete())
    reply = ask_one(server)
    assert (reply.seconds or 0.0) >= 0.3


@pytest.mark.parametrize(
    ("failure", "words", "tries"),
    [
        ((500, {"error": "out of memory"}), "query types: status 500, .*out of memory", 5),
        ((429, {"error": "slow down"}), "query types: status 429", 5),
        ((200, b"<html>"), "query types: the answer is not JSON", 5),
        ((400, {"error": "context of 4096"}), "query types: status 400, .*context of 4096", 1),
        ((200, {"choices": []}), "query types: no chat completion came, at choices: ", 1),
        (
            (200, {"error": {"message": "too\nlong"}}),
            "types: no chat completion came, at error: too long;",
            1,
        ),
        ((200, {"error": "{full}", "choices": []}), "types: no chat completion came, at error: {full};", 1),
        ((200, {"object": "x"}), "query types: no chat completion came, at choices: ", 1),
        ((200, []), "query types: no chat completion came, at ", 1),
        ((200, complete(model="other")), "query types: other answered, not tiny: see --served-model", 1),
    ],
)
def test_a_failure_that_stays_is_one_line(
    failure: Any, words: str, tries: int, server: ChatServer, options: Options
) -> None:
    server.reply = lambda *_: failure
    with pytest.raises(StageError, match=words) as error:
        run(options, make_endpoint(server))
    assert str(error.value).startswith(server.url)
    assert "\n" not in str(error.value)
    assert len(server.asked) == tries
    assert not (options.out or Path()).exists() or not list((options.out or Path()).glob("three*"))


def test_a_server_that_does_not_answer_in_time(server: ChatServer) -> None:
    hold = threading.Event()

    def reply(_question: str, _number: int) -> tuple[int, Any]:
        hold.wait(60)
        return 200, complete()

    server.reply = reply
    with pytest.raises(StageError, match=r"query q: no answer within 1 s"):
        ask_one(server, timeout=1.0)
    hold.set()
    deadline = time.monotonic() + 30
    while len(server.asked) < 2 and time.monotonic() < deadline:  # the server may still be reading it
        time.sleep(0.02)
    assert len(server.asked) == 2, "each try takes all the time there is"


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_server_that_dies_is_asked_for_the_rest_alone(concurrency: int, options: Options) -> None:
    with serving(ChatServer(dies_after=2, pause=0.02)) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        with pytest.raises(StageError, match=r"the connection failed.*the same command asks what is left"):
            run(options, make_endpoint(server, concurrency))
        answered = server.times()
    assert sum(answered.values()) == 2
    with serving(ChatServer(), port) as again:
        folder = run(options, make_endpoint(again, concurrency))
        assert sum(again.times().values()) == 1
        assert not again.times().keys() & answered.keys()
    assert len(read_lines(folder / "replies.jsonl", RawReply)) == 3


def test_other_requests_in_work_are_kept_when_one_is_refused(options: Options) -> None:
    together = threading.Barrier(3)

    def reply(question: str, _time: int) -> tuple[int, Any]:
        together.wait(60)  # all of them are in work when the first answer comes
        if question == TYPES:
            return 400, {"error": "too long"}
        time.sleep(0.05)
        return 200, complete()

    with serving(ChatServer(reply)) as server:
        with pytest.raises(StageError, match="query types: status 400"):
            run(options, make_endpoint(server, 3))
        server.reply = lambda *_: (200, complete())
        run(options, make_endpoint(server, 3))
        assert server.times() == {TYPES: 2, TESTS: 1, DIRECT: 1}


# Answers that are too slow, too large, or odd


def test_an_answer_that_drips_is_not_waited_for(server: ChatServer) -> None:
    server.drip = 0.2  # each byte comes within the time that the whole answer may take
    whole = server.drip * len(json.dumps(complete()))
    started = time.perf_counter()
    with pytest.raises(StageError, match=r"query q: no answer within 0\.4 s"):
        ask_one(server, timeout=0.4)
    assert time.perf_counter() - started < whole, "it was waited for"


@pytest.mark.parametrize("wait", ["nan", "inf", "-inf", "-3"])
def test_a_wait_that_is_no_time_is_not_waited(wait: str, server: ChatServer) -> None:
    server.reply = lambda _, number: (
        (429, {}, {"Retry-After": wait}) if number == 1 else (200, complete("At last."))
    )
    started = time.perf_counter()
    assert ask_one(server).text == "At last."
    assert time.perf_counter() - started < LONGEST_WAIT, "as long as one that is longer than any"


def test_an_answer_without_end_is_left_where_it_is(server: ChatServer) -> None:
    server.reply = lambda *_: (200, complete("x" * LARGEST_ANSWER))
    with pytest.raises(StageError, match="query q: the answer has more than 8 MB"):
        ask_one(server)
    server.reply = lambda *_: (200, complete("x" * (LARGEST_ANSWER // 2)))
    assert len(ask_one(server).text) == LARGEST_ANSWER // 2


@pytest.mark.parametrize("kind", ["text/plain; charset=hex", "text/plain; charset=no", "\xff"])
def test_an_error_in_an_odd_encoding_is_shown_all_the_same(kind: str, server: ChatServer) -> None:
    server.reply = lambda *_: (400, b"too long \xff", {"Content-Type": kind})
    with pytest.raises(StageError, match="query q: status 400, too long \ufffd"):
        ask_one(server)


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
