"""Servers as engines, on loopback: what they are asked, with which key, and what is kept of an answer."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.records import EvalSummary, Manifest, RawReply, read_lines, read_record
from stages.core.suite import load_suites
from stages.eval.engines import Question, Sampling
from stages.eval.engines.completions import write_request
from stages.eval.engines.transport import KEY_VARIABLE
from stages.eval.stage import evaluate_engine
from tests.chat_server import PROBE, ChatServer, complete
from tests.served import ask_one, main_words, make_endpoint, run
from tests.small_suite import DIRECT, TESTS, TYPES, WRITTEN

# What is asked, and what is kept


def test_a_question_goes_as_messages_and_tools(server: ChatServer, options: Options) -> None:
    run(options, make_endpoint(server))
    assert [body["messages"][1]["content"] for body in server.asked] == [TYPES, TESTS, DIRECT]
    for body in server.asked:
        assert body["messages"][0]["role"] == "system"
        assert "typecheck(path: str)" in body["messages"][0]["content"]
        assert [tool["function"]["name"] for tool in body["tools"]] == ["execute_code"]
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0.0, 160)
        assert "seed" not in body
    server.asked.clear()
    run(replace(options, fixes=(), out=options.out and options.out / "flawed"), make_endpoint(server))
    assert all("tools" not in body for body in server.asked)


def test_the_text_of_a_content_in_parts_is_its_reply(server: ChatServer) -> None:
    parts = [{"type": "text", "text": "A gen"}, {"type": "image_url"}, {"type": "text", "text": "erator."}]
    thought = {"type": "reasoning", "text": "Hm."}
    server.reply = lambda *_: (200, complete(message={"content": [thought, *parts]}))
    reply = ask_one(server)
    assert reply.text == "A generator."
    assert reply.served is not None
    assert reply.served["message"]["content"] == [thought, *parts], "as it came"


def test_raw_content_is_kept_as_it_came(server: ChatServer) -> None:
    server.reply = lambda *_: (200, complete(f" {WRITTEN}\n"))
    reply = ask_one(server)
    assert (reply.text, reply.calls_by) == (f" {WRITTEN}\n", "model")


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ("stop", "stop"),
        ("tool_calls", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("eos_token", "stop"),
        (None, None),
        ("content_filter", None),
        ("abort", None),
    ],
)
def test_reasons_to_stop(finish: Any, expected: str | None, server: ChatServer) -> None:
    server.reply = lambda *_: (200, complete("Hi", finish))
    assert ask_one(server).finish == expected


@pytest.mark.parametrize("content", ["", None])
def test_an_empty_reply_is_a_reply(content: str | None, server: ChatServer, options: Options) -> None:
    server.reply = lambda *_: (200, complete(content))
    folder = run(options, make_endpoint(server))
    assert [reply.text for reply in read_lines(folder / "replies.jsonl", RawReply)] == [""] * 3
    assert read_record(folder / "summary.json", EvalSummary).tool_or_direct.k == 1
    assert len(server.asked) == 3


def test_summary_and_manifest_tell_the_engine(server: ChatServer, options: Options) -> None:
    folder = run(options, make_endpoint(server))
    summary = read_record(folder / "summary.json", EvalSummary)
    assert summary.engine == "endpoint"
    timing = summary.timing
    assert (timing.load_seconds, timing.peak_memory_gb, timing.disk_gb) == (None, None, None)
    assert timing.generated_tokens == 9
    assert timing.seconds_per_query is not None
    assert timing.first_token_seconds is not None
    facts = read_record(folder / "manifest.json", Manifest).facts
    assert facts == {"engine": "endpoint", "url": server.url, "served_model": "tiny"}
    asked = len(server.asked)
    assert main_words(options, server) == 0
    assert len(server.asked) == asked, "it was up to date"


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_at_once(concurrency: int, server: ChatServer, options: Options) -> None:
    together = threading.Barrier(concurrency)

    def reply(_question: str, _time: int) -> tuple[int, Any]:
        together.wait(60)  # no request is answered before so many have come
        return 200, complete()

    server.reply, server.pause = reply, 0.05
    started = time.perf_counter()
    folder = run(options, make_endpoint(server, concurrency))
    passed = time.perf_counter() - started
    assert server.at_once == concurrency
    parts = [reply.seconds or 0.0 for reply in read_lines(folder / "replies.jsonl", RawReply)]
    # The parts add up to the time of the run, however many share it.
    assert 3 * 0.05 / concurrency <= sum(parts) <= passed


def test_a_sampled_reply_has_its_seed(server: ChatServer, options: Options) -> None:
    setup = options.preset.eval.model_copy(update={"temperature": (0.5,), "samples": 2})
    swept = replace(options, preset=options.preset.model_copy(update={"eval": setup}))
    evaluate_engine(swept, make_endpoint(server), load_suites(setup.suites))
    assert [(body["temperature"], body["seed"]) for body in server.asked] == [(0.5, 0)] * 3 + [(0.5, 1)] * 3


def test_given_calls_are_sent_with_their_arguments_as_text() -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    turns = [
        {"role": "user", "content": "Do."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Done.", "tool_call_id": "call_0"},
    ]
    body = write_request(Question("q", {"messages": turns}), Sampling(9), "m")
    sent = body["messages"][1]["tool_calls"][0]
    assert sent == call | {"function": {"name": "f", "arguments": '{"n":1}'}}
    assert [body["messages"][0], body["messages"][2]] == [turns[0], turns[2]]


def test_a_proxy_of_the_environment_is_not_asked_for_a_server_on_this_machine(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask_one(server).text == "Hello."


# Keys


def test_the_key_is_sent_and_never_written(
    server: ChatServer, options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret-123")
    run(options, make_endpoint(server))
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret-123"}
    server.reply = lambda *_: (401, {"error": "sk-secret-123 is not known"})
    with pytest.raises(StageError, match=r"status 401, .*\*\*\* is not known") as error:
        run(options, make_endpoint(server), ask_again=True)
    assert "secret" not in str(error.value)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(b"secret" in content for content in written)


@pytest.mark.parametrize("key", ["sk-secret-123\n", " sk-secret-123 "])
def test_blanks_around_a_key_are_none_of_it(
    key: str, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert ask_one(server).text == "Hello."
    assert server.headers[-1]["Authorization"] == "Bearer sk-secret-123"


@pytest.mark.parametrize("key", ["sk-secret-é", "sk-se\ncret"])
def test_a_key_that_no_header_holds_is_refused_unsaid(
    key: str, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(StageError, match=f"{KEY_VARIABLE} holds characters") as error:
        ask_one(server)
    assert "se" not in str(error.value).replace("set", "")


def test_without_a_key_none_is_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    ask_one(server)
    assert "Authorization" not in server.headers[0]


# The time to the first token


def test_the_first_token_is_timed_alone(server: ChatServer) -> None:
    ready: list[float] = []  # when the server had the answers to the two requests of one token

    def probe(body: Any) -> tuple[int, Any]:
        assert not server.asked
        time.sleep(0.3 if body["messages"][-1]["content"] == PROBE else 0.1)
        ready.append(time.perf_counter())
        return 200, complete("H", "length")

    server.probe = probe
    endpoint, kept, parts = replace(make_endpoint(server, 3), served_model="tiny"), [], []

    def keep(_question: Question, reply: RawReply) -> None:
        kept.append(time.perf_counter())
        parts.append(reply.seconds or 0.0)

    rows = [{"messages": [{"role": "user", "content": question}]} for question in (TYPES, TESTS, DIRECT)]
    endpoint.answer([Question(f"q{i}", row) for i, row in enumerate(rows)], Sampling(16), keep, "test")
    assert endpoint.first_token_seconds is not None
    # Whatever else the cores do, what lies between two moments takes no longer than from one to the other.
    assert 0.1 <= endpoint.first_token_seconds < kept[0] - ready[0], "it holds the request that may load"
    assert sum(parts) < kept[-1] - ready[1], "the requests ahead are in the time of the replies"
    assert [(body["messages"][-1]["content"], body["max_tokens"]) for body in server.probed] == [
        (PROBE, 1),
        (TYPES, 1),
    ]


def test_a_server_that_gives_no_single_token_is_not_timed(server: ChatServer, options: Options) -> None:
    server.probe = lambda _: (400, {"error": "too few tokens"})
    folder = run(options, make_endpoint(server))
    assert read_record(folder / "summary.json", EvalSummary).timing.first_token_seconds is None
