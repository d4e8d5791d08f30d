"""Servers on loopback that fail for a while or for good, or that answer too slowly, too much or oddly."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.records import RawReply, read_lines
from stages.eval.__main__ import main
from stages.eval.engines.transport import LARGEST_ANSWER, LONGEST_WAIT, read_seconds
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


def test_a_wait_of_hours_ends_the_run_at_once(options: Options, server: ChatServer) -> None:
    server.reply = lambda *_: (429, {"error": "quota"}, {"Retry-After": "86400"})
    said = r"query \w+: status 429, .*quota.*; the server asks to wait 86400 s; the same command asks"
    with pytest.raises(StageError, match=said):
        run(options, make_endpoint(server, 3))
    assert max(server.times().values()) == 1
    later = datetime.now(UTC) + timedelta(hours=2)
    server.reply = lambda *_: (503, {}, {"Retry-After": format_datetime(later, usegmt=True)})
    with pytest.raises(StageError, match=r"status 503, .*the server asks to wait 7[12]\d\d s"):
        run(options, make_endpoint(server))
    server.models = (429, {}, {"Retry-After": "86400"})
    with pytest.raises(StageError, match=r"/models: status 429, .*the server asks to wait 86400 s"):
        run(options, make_endpoint(server))


def test_a_wait_that_the_server_asks_for_is_told_as_that_and_once(
    options: Options, server: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stages.eval.engines.patience.WORTH_A_WORD", 0.5)
    monkeypatch.setattr("stages.eval.engines.patience.LONG", 1.5)
    server.reply = lambda _, number: (429, {}, {"Retry-After": "2"}) if number == 1 else (200, complete())
    run(options, make_endpoint(server, 3))
    told = capsys.readouterr().out
    assert told.count(f"  {server.url} asked to wait 2 s (status 429)\n") == 1, "three, sent away together"
    assert "no answer of" not in told


def test_the_date_of_a_wait_that_has_passed_is_none() -> None:
    now = datetime.now(UTC)
    dates = [format_datetime(now + timedelta(seconds=n), usegmt=True) for n in (-60, 60)]
    assert [round(read_seconds(date), -1) for date in dates] == [0, 60]
    others = (None, "", "soon", "Sun, 99 Foo 2026 00:00:00 GMT", "7")
    assert [read_seconds(text) for text in others] == [0, 0, 0, 0, 7]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_told_and_not_followed(
    status: int, options: Options, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIR_RETEST_API_KEY", "sk-secret")
    with serving(ChatServer()) as other:
        told = f"status {status}, the server redirects to {other.url}: if that is the one"
        server.reply = lambda *_: (status, b"", {"Location": f"{other.url}/chat/completions"})
        with pytest.raises(StageError, match=told):
            run(options, make_endpoint(server))
        server.models = (status, b"", {"Location": f"{other.url}/models"})
        with pytest.raises(StageError, match=told):
            run(options, make_endpoint(server))
        assert not other.asked
        assert not other.probed
        server.reply = ChatServer.reply
        run(options, replace(make_endpoint(server), served_model="tiny"))  # the list alone is elsewhere
    server.reply = lambda *_: (status, b"", {"Location": "/elsewhere"})
    server.models = ChatServer.models
    host = server.url.removesuffix("/v1")
    with pytest.raises(StageError, match=f"redirects to {host}/elsewhere: "):
        ask_one(server)


def test_a_status_without_a_word_is_called_that(server: ChatServer) -> None:
    server.reply = lambda *_: (400, b"")
    with pytest.raises(StageError, match="query q: status 400, without a word;"):
        ask_one(server)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"<html>Login</html>", "text/html; charset=utf-8", "not JSON but text/html; it begins: <html>Login"),
        (
            b"data: {}\n\n",
            "text/event-stream",
            "-stream, a stream that nobody asked for; it begins: data:",
        ),
        (b'{"choices": [', "application/json", 'not JSON; it begins: {"choices"'),
        (b" ", "application/json", "the answer is empty"),
    ],
)
def test_what_came_in_place_of_json_is_told(body: bytes, kind: str, words: str, server: ChatServer) -> None:
    server.reply = lambda *_: (200, body, {"Content-Type": kind})
    with pytest.raises(StageError, match=re.escape(words)):
        ask_one(server, attempts=2)


@pytest.mark.parametrize("bad", [b"\\ud83d", b"\xff\xfe", b"\xed\xa0\xbd"])
def test_characters_that_are_none_are_replaced_in_a_reply(bad: bytes, server: ChatServer) -> None:
    whole = json.dumps(complete("start HERE end")).encode()
    server.reply = lambda *_: (200, whole.replace(b"HERE", bad))
    reply = ask_one(server)
    assert re.fullmatch("start \ufffd+ end", reply.text)
    assert len(server.asked) == 1


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
