"""Calls that a server's own parser read, or could not read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.core.chat import Tool
from stages.core.cli import Options
from stages.core.dialects import DIALECTS, parse_reply
from stages.core.errors import StageError
from stages.core.query import Query
from stages.core.records import EvalSummary, Rate, RawReply, Score, read_lines, read_record, write_lines
from stages.eval.__main__ import main
from stages.eval.engines import Question
from stages.eval.engines.completions import Function, read_completion, write_served_call
from stages.eval.score import score_reply
from tests.chat_server import DROPPED, ChatServer, call, complete
from tests.served import ask_one, make_endpoint, run
from tests.small_suite import CODE, DIRECT, TESTS, TYPES, WRITTEN

# Calls that it read


def test_calls_that_the_server_read_are_written_in_the_dialect_and_marked(server: ChatServer) -> None:
    served = call(CODE)
    server.reply = lambda *_: (200, complete("I look.", "tool_calls", message=served))
    reply = ask_one(server)
    assert reply.text == f"I look.\n{WRITTEN}"
    assert (reply.calls_by, reply.finish, reply.tokens, reply.prompt_tokens) == ("server", "stop", 3, 7)
    assert reply.served is not None
    assert reply.served["message"] == {"role": "assistant", "content": "I look.", **served}
    assert reply.served["finish_reason"] == "tool_calls"


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


def test_a_call_in_the_older_shape_is_a_call(server: ChatServer) -> None:
    older = {"function_call": {"name": "execute_code", "arguments": json.dumps(CODE)}}
    server.reply = lambda *_: (200, complete(None, "function_call", message=older))
    reply = ask_one(server)
    assert (reply.text, reply.calls_by, reply.finish) == (WRITTEN, "server", "stop")
    assert reply.served is not None
    assert reply.served["message"]["function_call"] == older["function_call"]
    server.reply = lambda *_: (200, complete("Hello.", message={"function_call": None}))
    assert (ask_one(server).text, ask_one(server).calls_by) == ("Hello.", "model")


def test_malformed_calls_count_as_malformed(server: ChatServer, options: Options) -> None:
    server.reply = lambda *_: (200, complete(None, "tool_calls", message=call('{"code": "print(1)')))
    folder = run(options, make_endpoint(server))
    first = read_lines(folder / "scores.jsonl", Score)[0]
    assert first.strict.calls == []
    assert first.strict.problems != []


@pytest.mark.parametrize(
    ("message", "finish", "causes"),
    [
        ({}, "tool_calls", ["malformed", "decided wrong"]),
        ({}, "function_call", ["malformed", "decided wrong"]),
        ({"function_call": "print"}, "function_call", ["malformed", "decided wrong"]),
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


# Replies that it could not read


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
