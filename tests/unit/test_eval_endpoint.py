"""Servers as engines, on loopback: what is asked, what is kept, and every way in which one can fail."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.core.chat import Tool
from stages.core.cli import Options, artifacts_root
from stages.core.dialects import DIALECTS, parse_reply
from stages.core.errors import INTERRUPTED, StageError
from stages.core.query import Query
from stages.core.records import (
    EvalSummary,
    Manifest,
    Rate,
    RawReply,
    Score,
    read_lines,
    read_record,
    write_lines,
)
from stages.core.suite import load_suites
from stages.core.tools import EXECUTE_CODE
from stages.eval.__main__ import main
from stages.eval.engines import Question, Sampling
from stages.eval.engines.completions import Function, read_completion, write_request, write_served_call
from stages.eval.engines.endpoint import STOPPING, Endpoint
from stages.eval.engines.transport import KEY_VARIABLE, Transport
from stages.eval.score import SCORER_VERSION, score_reply
from stages.eval.stage import evaluate_engine
from tests.chat_server import DROPPED, PROBE, ChatServer, call, complete, serving
from tests.pipeline import start_stage
from tests.small_suite import CODE, DIRECT, SUITE, TESTS, TYPES, WRITTEN


def make_endpoint(server: ChatServer, concurrency: int = 1, **transport: Any) -> Endpoint:
    """An endpoint that does not wait long before it tries again."""
    settings = {"first_wait": 0.005, "timeout": 5.0, **transport}
    return Endpoint(Transport(server.url, **settings), "hermes", None, concurrency)


def run(options: Options, endpoint: Endpoint, **how: Any) -> Path:
    """Evaluate, and return the folder of the one suite."""
    suites = load_suites(options.preset.eval.suites)
    return evaluate_engine(options, endpoint, suites, **how).folder / "three"


def ask_one(server: ChatServer, **settings: Any) -> RawReply:
    endpoint = make_endpoint(server, **settings)
    endpoint.load()
    kept: list[RawReply] = []
    row = {"messages": [{"role": "user", "content": TYPES}], "tools": [EXECUTE_CODE.to_json()]}
    endpoint.answer([Question("q", row)], Sampling(16), lambda _, reply: kept.append(reply), "test")
    (reply,) = kept
    return reply


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


def test_calls_that_the_server_read_are_written_in_the_dialect_and_marked(server: ChatServer) -> None:
    served = call(CODE)
    server.reply = lambda *_: (200, complete("I look.", "tool_calls", message=served))
    reply = ask_one(server)
    assert reply.text == f"I look.\n{WRITTEN}"
    assert (reply.calls_by, reply.finish, reply.tokens, reply.prompt_tokens) == ("server", "stop", 3, 7)
    assert reply.served is not None
    assert reply.served["message"] == {"role": "assistant", "content": "I look.", **served}
    assert reply.served["finish_reason"] == "tool_calls"


def test_the_text_of_a_content_in_parts_is_its_reply(server: ChatServer) -> None:
    parts = [{"type": "text", "text": "A gen"}, {"type": "image_url"}, {"type": "text", "text": "erator."}]
    thought = {"type": "reasoning", "text": "Hm."}
    server.reply = lambda *_: (200, complete(message={"content": [thought, *parts]}))
    reply = ask_one(server)
    assert reply.text == "A generator."
    assert reply.served is not None
    assert reply.served["message"]["content"] == [thought, *parts], "as it came"


def test_how_a_call_was_written_that_the_server_read_is_unscored(
    server: ChatServer, options: Options
) -> None:
    read = complete(None, "tool_calls", message=call(CODE))
    server.reply = lambda question, _: (200, complete(WRITTEN) if question == TESTS else read)
    folder = run(options, make_endpoint(server))
    formats = [score.strict.format for score in read_lines(folder / "scores.jsonl", Score)]
    assert formats == [None, True, None]
    summary = read_record(folder / "summary.json", EvalSummary)
    assert summary.strict is not None
    assert summary.strict.format == Rate(k=1, n=1)


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


@pytest.mark.parametrize("dialect", ["hermes", "qwen3_coder", "bare_python"])
@pytest.mark.parametrize(
    ("arguments", "raw"),
    [('{"code": "print(1)', '{"code": "print(1)'), ("[1, 2]", "[1, 2]"), ("print(1)", "print(1)")],
)
def test_arguments_that_are_no_object_stay_what_they_are(dialect: str, arguments: str, raw: str) -> None:
    text = write_served_call(Function(name="execute_code", arguments=arguments), dialect)
    assert text == f'<tool_call>\n{{"name": "execute_code", "arguments": {raw}}}\n</tool_call>'


@pytest.mark.parametrize("dialect", sorted({*DIALECTS} - {"bare_python"}))  # which has code alone
def test_arguments_that_are_null_are_none(dialect: str) -> None:
    now = Tool.from_json({"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}})
    written = write_served_call(Function(name="now", arguments=None), dialect, [now])
    assert written == write_served_call(Function(name="now", arguments={}), dialect, [now])
    read = parse_reply(written, dialect, [now])
    assert ([(call.name, call.arguments) for call in read.calls], read.problems) == ([("now", {})], [])


TIMER = {
    "name": "set_timer",
    "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}, "note": {}}},
}


def serve_call(arguments: Any, dialect: str) -> tuple[RawReply, Score]:
    """The reply that a call of the timer is kept as, and its score."""
    accept = [{"function": "set_timer", "arguments": {"minutes": {"exact": 10}}}]
    query = Query.model_validate({"id": "q", "query": "Ten!", "tools": [TIMER], "accept": accept})
    question = Question("q", {"messages": [], "tools": list(query.tools or ())})
    message = {"tool_calls": [{"function": {"name": "set_timer", "arguments": arguments}}]}
    reply = read_completion(complete(None, "tool_calls", message=message), question, dialect, 0.1)
    return reply, score_reply(query, reply, dialect)


@pytest.mark.parametrize("dialect", sorted({*DIALECTS} - {"bare_python"}))
@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ('{"minutes": 10}', None),
        ('{"minutes": "10"}', "wrong arguments"),
        ({"minutes": "10"}, "wrong arguments"),
        ('{"minutes": 10, "note": "5"}', None),
        ('{"minutes": 10, "note": "a</parameter>b <tool_call> c"}', None),
        ("null", "wrong arguments"),
        ('{"minutes": 123456789012345678901234567890}', "wrong arguments"),
        ('{"minutes": ', "malformed"),
        ("[10]", "malformed"),
    ],
)
def test_a_call_that_the_server_read_is_judged_whatever_the_dialect_can_say(
    arguments: Any, cause: Any, dialect: str
) -> None:
    _, given = serve_call(arguments, dialect)
    assert (given.cause, given.strict.decision) == (cause, cause != "malformed")
    assert given.strict.format is (False if cause == "malformed" else None), "nobody saw it written"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_served_arguments_of_any_depth_can_be_kept(dialect: str, tmp_path: Path) -> None:
    deep = "[" * 300 + "]" * 300
    for arguments in ('{"minutes": ' + deep + "}", {"minutes": json.loads(deep)}, json.loads(deep)):
        reply, given = serve_call(arguments, dialect)
        write_lines(tmp_path / "kept.jsonl", [reply])
        write_lines(tmp_path / "scores.jsonl", [given])
        assert not given.strict.whole


def test_malformed_calls_count_as_malformed(server: ChatServer, options: Options) -> None:
    server.reply = lambda *_: (200, complete(None, "tool_calls", message=call('{"code": "print(1)')))
    folder = run(options, make_endpoint(server))
    first = read_lines(folder / "scores.jsonl", Score)[0]
    assert first.strict.calls == []
    assert first.strict.problems != []


def test_summary_and_manifest_tell_the_engine(server: ChatServer, options: Options) -> None:
    folder = run(options, make_endpoint(server))
    summary = read_record(folder / "summary.json", EvalSummary)
    assert summary.engine == "endpoint"
    timing = summary.timing
    assert (timing.load_seconds, timing.peak_memory_gb, timing.disk_gb) == (None, None, None)
    assert timing.generated_tokens == 9
    assert timing.seconds_per_query is not None
    facts = read_record(folder / "manifest.json", Manifest).facts
    assert facts == {"engine": "endpoint", "url": server.url, "served_model": "tiny"}
    asked = len(server.asked)
    assert main_words(options, server) == 0
    assert len(server.asked) == asked, "it was up to date"


def main_words(options: Options, server: ChatServer, *more: str) -> int:
    suites = ",".join(options.preset.eval.suites)
    return main(["--endpoint", f"{server.url}/", "--suites", suites, "--out", str(options.out), *more])


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_at_once(concurrency: int, server: ChatServer, options: Options) -> None:
    together = threading.Barrier(concurrency)

    def reply(_question: str, _time: int) -> tuple[int, Any]:
        together.wait(30)  # no request is answered before so many have come
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


def test_without_a_key_none_is_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    ask_one(server)
    assert "Authorization" not in server.headers[0]


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
    server.pause = 3
    with pytest.raises(StageError, match=r"query q: no answer within 0\.8 s"):
        ask_one(server, timeout=0.8)
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
    def reply(question: str, _time: int) -> tuple[int, Any]:
        return (400, {"error": "too long"}) if question == TYPES else (200, complete())

    with serving(ChatServer(reply, pause=0.05)) as server:
        with pytest.raises(StageError, match="query types: status 400"):
            run(options, make_endpoint(server, 3))
        server.reply = lambda *_: (200, complete())
        run(options, make_endpoint(server, 3))
        assert server.times() == {TYPES: 2, TESTS: 1, DIRECT: 1}


# Replies that the server could not read


UNREAD = [
    (500, {"error": {"message": "error parsing tool call: raw='{\"code\": print(1', err=invalid character"}}),
    (500, {"error": {"code": 500, "message": "Failed to parse input at pos 4: <tool_call>\\nprint(1)"}}),
    (400, {"error": {"message": "1 validation error for list\\n  Invalid JSON: EOF while parsing a string"}}),
    (200, {"error": {"message": "Failed to parse tool call: Unexpected end of content."}}),
]


@pytest.mark.parametrize(
    ("failure", "tries"),
    [*[(failure, 1) for failure in UNREAD], ((500, {"error": "Internal Server Error"}), 5), (DROPPED, 5)],
)
def test_what_the_server_cannot_read_is_a_malformed_reply(
    failure: Any, tries: int, server: ChatServer, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda question, _: (200, complete()) if question == TESTS else failure
    folder = run(options, make_endpoint(server))
    assert "could not read 2 replies of its model, such as types: counted as malformed" in (
        capsys.readouterr().out
    )
    replies = read_lines(folder / "replies.jsonl", RawReply)
    assert [(reply.text, reply.finish, reply.calls_by) for reply in replies] == [
        ("", None, "server"),
        ("Hello.", "stop", "model"),
        ("", None, "server"),
    ]
    kept = replies[0].served or {}
    if failure == DROPPED:
        assert kept["status"] is None
        assert kept["error"].startswith("the connection failed")
    else:
        assert kept == {"status": failure[0], "error": json.dumps(failure[1])}
    scores = read_lines(folder / "scores.jsonl", Score)
    assert [score.cause for score in scores] == ["malformed", "decided wrong", "decided wrong"]
    assert (scores[0].strict.format, scores[0].strict.stop) == (False, None)
    assert server.times() == {TYPES: tries, TESTS: 1, DIRECT: tries}
    run(replace(options, out=options.out and options.out / "again"), make_endpoint(server))
    assert sum(server.times().values()) == 2 * tries + 1, "they are kept like any other reply"
    again = ["--replies", str(folder / "replies.jsonl"), "--suites", *options.preset.eval.suites]
    assert main([*again, "--out", str(folder.parent / "recorded")]) == 0
    assert read_lines(folder.parent / "recorded" / "three" / "scores.jsonl", Score) == scores


@pytest.mark.parametrize("failure", [UNREAD[0], (500, {"error": "Internal Server Error"}), DROPPED])
@pytest.mark.parametrize(
    "probe", [(401, {"error": "no"}), (400, {"error": "bad tools"}), (200, complete(model="other")), DROPPED]
)
def test_a_server_that_is_not_well_ends_the_run(
    failure: Any, probe: Any, server: ChatServer, options: Options
) -> None:
    server.reply, server.probe = lambda *_: failure, lambda _: probe
    with pytest.raises(StageError, match=r"query types: .*; the same command asks what is left"):
        run(options, make_endpoint(server, attempts=2))


def test_a_server_that_answers_nothing_but_one_token_ends_the_run(
    server: ChatServer, options: Options
) -> None:
    server.reply = lambda *_: DROPPED
    server.probe = lambda body: (200, complete("H", "length")) if body["max_tokens"] == 1 else DROPPED
    with pytest.raises(StageError, match="query types: the connection failed"):
        run(options, make_endpoint(server, attempts=2))


@pytest.mark.parametrize(
    ("message", "finish", "causes"),
    [
        ({}, "tool_calls", ["malformed", "decided wrong"]),
        ({}, "length", ["ran away", "ran away"]),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "tool_calls", ["malformed", "decided wrong"]),
        (
            {"tool_calls": [{"function": {"name": 5, "arguments": "{}"}}]},
            "stop",
            ["malformed", "decided wrong"],
        ),
        ({"tool_calls": [None]}, "stop", ["malformed", "decided wrong"]),
        (call('{"code": "print(1)'), "length", ["ran away", "decided wrong"]),
        (call('{"code": "print(1)'), "tool_calls", ["malformed", "decided wrong"]),
    ],
)
@pytest.mark.parametrize("dialect", ["hermes", "qwen3_coder"])
def test_calls_that_the_server_dropped_or_half_read(
    dialect: str, message: Any, finish: str, causes: list[str], server: ChatServer, options: Options
) -> None:
    server.reply = lambda *_: (200, complete(None, finish, message=message))
    model = options.preset.model.model_copy(update={"dialect": dialect})
    changed = replace(options, preset=options.preset.model_copy(update={"model": model}))
    folder = run(changed, replace(make_endpoint(server), dialect=dialect))
    scores = read_lines(folder / "scores.jsonl", Score)
    assert [scores[0].cause, scores[2].cause] == causes
    assert all(score.strict.calls == [] for score in scores)


# The time to the first token


def test_the_first_token_is_timed_alone(server: ChatServer, options: Options) -> None:
    def probe(body: Any) -> tuple[int, Any]:
        assert not server.asked
        time.sleep(0.3 if body["messages"][-1]["content"] == PROBE else 0.1)
        return 200, complete("H", "length")

    server.probe = probe
    folder = run(options, make_endpoint(server, 3))
    timing = read_record(folder / "summary.json", EvalSummary).timing
    assert timing.first_token_seconds is not None
    assert 0.1 <= timing.first_token_seconds < 0.3, "the request with which a model may be loaded is left out"
    assert timing.seconds_p95 is not None
    assert timing.seconds_p95 < 0.1
    assert [(body["messages"][-1]["content"], body["max_tokens"]) for body in server.probed] == [
        (PROBE, 1),
        (TYPES, 1),
    ]


def test_a_server_that_gives_no_single_token_is_not_timed(server: ChatServer, options: Options) -> None:
    server.probe = lambda _: (400, {"error": "too few tokens"})
    folder = run(options, make_endpoint(server))
    assert read_record(folder / "summary.json", EvalSummary).timing.first_token_seconds is None


# Which model


def test_the_only_model_is_taken_and_another_refused(
    server: ChatServer, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_words(options, server, "--served-model", "big") == 2
    error = capsys.readouterr().err
    assert error == f"eval: {server.url} serves tiny, not big: name one of its models with --served-model\n"
    assert server.asked == []
    assert main_words(options, server) == 0
    assert f"{server.url} serves tiny" in capsys.readouterr().out


def test_a_model_that_is_listed_twice_is_one_and_a_name_that_is_empty_is_none(
    server: ChatServer, options: Options
) -> None:
    server.models = (200, {"data": [{"id": "tiny"}, {"id": "tiny", "object": "model"}]})
    server.reply = lambda *_: (200, complete("Hi.", model=""))
    assert len(read_lines(run(options, make_endpoint(server)) / "replies.jsonl", RawReply)) == 3


def drop_a_reply(folder: Path) -> None:
    replies = folder / "replies.jsonl"
    write_lines(replies, read_lines(replies, RawReply)[:2])


def edit(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        *((lambda folder, name=name: (folder / name).unlink(), f"lacks {name}")
          for name in ("summary.json", "scores.jsonl", "replies.jsonl", "codes.jsonl")),
        (lambda folder: (folder / "summary.json").write_text("{"), "summary.json is not valid: "),
        (drop_a_reply, "scores.jsonl and replies.jsonl are about other queries"),
        (edit("summary.json", b'"k": 1', b'"k": 3'), "the summary says 3 of 3, the scores say 1 of 3"),
        (edit("summary.json", f'"scorer_version": {SCORER_VERSION}'.encode(), b'"scorer_version": 6'),
         f"the summary says scorer version 6, the manifest {SCORER_VERSION}"),
        (edit("summary.json", b'"suite_version": 1', b'"suite_version": 2'),
         "the summary says suite version 2, the manifest 1"),
        (edit("replies.jsonl", b"Hello.", b"Hello!"), "its files are not as eval wrote them"),
    ],
)  # fmt: skip
def test_an_output_that_someone_has_damaged_is_not_up_to_date(
    damage: Callable[[Path], None], told: str, server: ChatServer, options: Options,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main_words(options, server) == 0
    folder = (options.out or Path()) / "three"
    (folder / "notes.txt").write_text("Mine.")
    assert main_words(options, server, "--check") == 0, "a file of the user's own is no damage"
    damage(folder)
    for more in ([], ["--check"]):
        capsys.readouterr()
        assert main_words(options, server, *more) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "--force" in error
        assert error.count("\n") == 1
    assert main_words(options, server, "--force") == 0
    assert len(server.asked) == 3


def test_of_several_models_one_has_to_be_named(server: ChatServer, options: Options) -> None:
    server.models = (200, {"data": [{"id": "small"}, {"id": "tiny"}]})
    with pytest.raises(StageError, match="serves small, tiny: name one of its models with --served-model"):
        run(options, make_endpoint(server))
    run(options, replace(make_endpoint(server), served_model="tiny"))
    assert len(server.asked) == 3


@pytest.mark.parametrize("models", [(404, {"error": "no"}), (200, b""), (200, {"object": "list"})])
def test_a_server_without_a_list_is_asked_by_name(
    models: Any, server: ChatServer, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    server.models = models
    with pytest.raises(StageError, match="/models lists no models: name the one to ask with --served-model"):
        run(options, make_endpoint(server))
    run(options, replace(make_endpoint(server), served_model="tiny"))
    out = capsys.readouterr().out
    assert "only the answers tell which one answers" in out
    assert f"{server.url} is asked for tiny\n" in out
    assert f"{server.url} serves" not in out, "nobody has said so"


def test_a_wrong_name_on_a_server_without_a_list_is_found_out(
    server: ChatServer, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with mlx_lm.server, which tries to fetch what it is asked for; asking again would never help."""
    server.models = (404, {"error": "no"})
    server.reply = lambda *_: (404, {"error": "Got: ConnectError " + "x" * 300})
    assert main_words(options, server, "--served-model", "other", "--concurrency", "1") == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(
        f"eval: {server.url} answers 404 for model 'other': check --served-model (for mlx_lm.server the "
        "folder given to its --model) and the address; query types: status 404, "
    )
    assert shown.err.endswith("x…\n")
    assert "the same command" not in shown.err
    assert "  three 0/3 queries\n" in shown.out, "before the first answer"


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_key_is_told_as_one(status: int, server: ChatServer, options: Options) -> None:
    locked = (status, {"error": "no key"})
    server.models, server.reply, server.probe = locked, lambda *_: locked, lambda _: locked
    words = rf"status {status}, .*no key.* \(the key for it goes into {KEY_VARIABLE}\)"
    with pytest.raises(StageError, match=rf"/models is not for everybody: {words}$"):
        run(options, make_endpoint(server))
    with pytest.raises(StageError, match=rf"query types: {words}; the same command asks what is left$"):
        run(options, replace(make_endpoint(server), served_model="tiny"))


def test_another_model_behind_the_same_address_is_not_taken_for_the_first(
    server: ChatServer, options: Options
) -> None:
    run(options, make_endpoint(server))
    server.models = (200, {"data": [{"id": "other"}]})
    with pytest.raises(StageError, match="made with another model: --force replaces it"):
        run(options, make_endpoint(server))


def test_no_server_there(options: Options) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(StageError, match=r"does not answer \(the connection failed.*: start the server"):
        run(options, Endpoint(Transport(address), "hermes"))


def test_kept_replies_are_scored_again_without_the_server(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ChatServer()) as server:
        assert main_words(options, server) == 0
    assert main_words(options, server) == 0, "it was up to date"
    (suite,) = options.preset.eval.suites
    changed = json.loads(json.dumps(SUITE))
    changed["queries"][1] |= {"kind": "direct", "accept": []}
    Path(suite).write_text(json.dumps(changed), "utf-8")
    assert main_words(options, server) == 0
    summary = read_record((options.out or Path()) / "three" / "summary.json", EvalSummary)
    assert (summary.tool_or_direct.k, summary.engine) == (2, "endpoint")
    assert f"{server.url} does not answer: taken for tiny, as kept" in capsys.readouterr().out
    changed["queries"][1]["query"] = "Run them all."
    Path(suite).write_text(json.dumps(changed), "utf-8")
    assert main_words(replace(options, out=options.out and options.out / "more"), server) == 2
    assert f"{server.url} does not answer (" in capsys.readouterr().err, "a reply is missing"


def test_which_of_two_models_a_silent_server_has_is_not_guessed(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ChatServer()) as server:
        assert main_words(options, server) == 0
        server.models = (200, {"data": [{"id": "other"}]})
        server.reply = lambda *_: (200, complete(model="other"))
        server.probe = lambda _: (200, complete(model="other"))
        assert main_words(replace(options, out=options.out and options.out / "other"), server) == 0
    assert main_words(options, server) == 2
    assert "does not answer (" in capsys.readouterr().err
    assert main_words(options, server, "--served-model", "tiny") == 0


@pytest.mark.parametrize("key", [b"", b"{", b"[]", b"{}"])
def test_a_damaged_key_of_a_store_is_none(
    key: bytes, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(ChatServer()) as server:
        assert main_words(options, server) == 0
    (path,) = artifacts_root().glob("*/replies/*/key.json")
    path.write_bytes(key)
    assert main_words(options, server) == 2
    assert "does not answer (" in capsys.readouterr().err


def test_an_output_that_needs_force_is_said_before_anything_is_asked(
    server: ChatServer, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "second.json"
    second.write_text(json.dumps({**SUITE, "name": "second"}), "utf-8")
    words = ["--endpoint", server.url, "--out", str(options.out)]
    assert main([*words, "--suites", str(second), "--max-tokens", "7"]) == 0
    asked, (first,) = len(server.asked), options.preset.eval.suites
    capsys.readouterr()
    assert main([*words, "--suites", f"{first},{second}", "--max-tokens", "5"]) == 2
    assert "--force" in capsys.readouterr().err
    assert len(server.asked) == asked
    assert not ((options.out or Path()) / "three").exists()


# The command line


@pytest.mark.parametrize(
    ("variable", "proxy"), [("ALL_PROXY", "socks5://127.0.0.1:9"), ("HTTP_PROXY", "foo://127.0.0.1:9")]
)
def test_a_proxy_that_cannot_be_used_is_one_line(
    variable: str,
    proxy: str,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, proxy)
    words = ["--suites", *options.preset.eval.suites, "--out", str(options.out)]
    assert main(["--endpoint", "http://192.0.2.1:9/v1", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("eval: a proxy that the environment names cannot be used (")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--endpoint", "127.0.0.1:8080"], "--endpoint 127.0.0.1:8080: use an address such as http://"),
        (["--endpoint", "ftp://a/v1"], "--endpoint ftp://a/v1: use an address such as http://"),
        (["--endpoint", "http://127.0.0.1:99999/v1"], "9999/v1: use an address such as http://"),
        (["--endpoint", f"http://{'a' * 64}.local/v1"], "no host has a name with more than 63 characters"),
        (["--endpoint", "http://me:pw@a/v1"], f"and a key in the variable {KEY_VARIABLE}"),
        (["--endpoint", "http://a/v1", "--replies", "b"], "--endpoint and --replies exclude each other"),
        (["--endpoint", "http://a/v1", "--data", "b"], "--endpoint asks no model folder: leave --data out"),
        (["--served-model", "x"], "--served-model is for a server: give its address with --endpoint"),
        (["--concurrency", "4"], "--concurrency is for a server: give its address with --endpoint"),
        (["--replies", "a", "--timeout", "9"], "--timeout is for a server: give its address with --endpoint"),
        (["--endpoint", "http://a/v1", "--concurrency", "0"], "--concurrency 0: use 1 or more"),
        (["--endpoint", "http://a/v1", "--timeout", "0"], "--timeout 0: use a number above 0"),
        (["--endpoint", "http://a/v1", "--stop-at-call"], "--stop-at-call works on a model in this process"),
        (["--replies", "a", "--suites", "core20", "--ask-again"], "--ask-again asks a model, and --replies"),
        (["--compare", "a", "b", "--ask-again"], "--ask-again asks a model, and --compare has none"),
        (["--compare", "a"], "--compare lays two or more outputs beside each other: name another one"),
        (["--replies", "a.jsonl"], "--replies a.jsonl answers one suite: name it with --suites"),
        (["--replies", "a", "--suites", "core20", "--samples", "2"], "leave --temperature, --samples, --pro"),
        (["--replies", "no.jsonl", "--suites", "core20"], "no file no.jsonl: --replies takes JSON lines"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("eval: ")
    assert complaint in error
    assert error.count("\n") == 1


# Runs that are stopped


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
