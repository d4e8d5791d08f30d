"""Recorded replies, kept replies, sweeps and engines side by side: all that needs no model."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stages.core.cli import TO_MAKE, Options
from stages.core.errors import StageError
from stages.core.fixes import FAIR
from stages.core.records import (
    EvalSummary,
    RawReply,
    Timing,
    read_lines,
    read_record,
)
from stages.core.suite import load_suites
from stages.eval.__main__ import main
from stages.eval.cells import describe_single_draws, list_cells, usual_cell
from stages.eval.clock import WorkClock, percentile, summarize_timing
from stages.eval.engines import Costs, Question
from stages.eval.engines.endpoint import Endpoint
from stages.eval.engines.transport import Transport
from stages.eval.request import Request
from stages.eval.score import SCORER_VERSION
from stages.eval.stage import evaluate, evaluate_engine, needs_nothing
from stages.eval.store import ReplyStore
from stages.eval.sweep import Sweep, spread_of
from tests.chat_server import ChatServer, call, complete
from tests.served import ask_server
from tests.small_suite import CODE, REPLIES, SUITE, TESTS, TYPES, WRITTEN, write_replies


@pytest.fixture
def options(options: Options) -> Options:
    """Outputs at their usual places."""
    return replace(options, out=None)


def with_setup(options: Options, **changes: Any) -> Options:
    setup = options.preset.eval.model_copy(update=changes)
    return replace(options, preset=options.preset.model_copy(update={"eval": setup}))


# Recorded replies


def test_recorded_replies_are_scored_without_a_model(options: Options, tmp_path: Path) -> None:
    file = write_replies(tmp_path / "mine.jsonl", REPLIES)
    outcome = evaluate(options, Request(replies=file))
    assert ", stop" not in outcome.lines[0]
    summary = read_record(outcome.folder / "three" / "summary.json", EvalSummary)
    assert (summary.engine, summary.tool_or_direct.k, summary.tool_or_direct.n) == ("recorded", 2, 3)
    assert summary.timing.seconds_per_query is None
    assert summary.timing.generated_tokens is None
    assert summary.strict is not None
    assert (summary.strict.stop, summary.runaway) == (None, None), "the file does not say how they ended"
    assert outcome.lines[0].endswith("whole 2/3 (67%)")
    assert outcome.lines[1:] == (f"  failures: 1 {next(iter(summary.causes))}",)
    assert evaluate(options, Request(replies=file)).up_to_date
    assert not (tmp_path / "artifacts" / "smol" / "replies").exists()


REMEDY = (
    "look at replies.jsonl and at what made them (server, template, stop tokens) before you believe a rate"
)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["", " \n", ""], "3 of 3 replies are empty"),
        (["", "<think>\nHm.\n</think>\n", "A function."], "2 of 3 replies are empty"),
        (["", "I cannot.", "A function."], ""),
        (["Sorry, no."] * 3, "all 3 replies are the same text (Sorry, no.)"),
        (["\x1b[1m" + "no " * 40] * 3, r"all 3 replies are the same text (\x1b[1mno" + " no" * 9 + " …)"),
        ([WRITTEN, "I cannot.", "I cannot."], ""),
    ],
)  # fmt: skip
def test_replies_that_nothing_seems_to_have_given_are_a_warning(
    texts: list[str], words: str, options: Options, tmp_path: Path
) -> None:
    file = write_replies(tmp_path / "mine.jsonl", dict(zip(REPLIES, texts, strict=True)))
    warned = [f"WARNING: three: {words}: {REMEDY}"] if words else []
    for _ in range(2):  # what is up to date is no better
        outcome = evaluate(options, Request(replies=file))
        assert [line for line in outcome.lines if "WARNING" in line] == warned
    assert (outcome.up_to_date, outcome.lines[0][:6]) == (True, "three:"), "the figures are told all the same"


def test_one_right_call_for_every_query_is_no_warning(options: Options, suite: Path, tmp_path: Path) -> None:
    both = [SUITE["queries"][0] | {"id": name} for name in ("one", "two")]
    suite.write_text(json.dumps(SUITE | {"queries": both}), "utf-8")
    for text, warned in ((WRITTEN, False), (WRITTEN.replace("src", "lib"), True)):
        file = write_replies(tmp_path / "mine.jsonl", dict.fromkeys(("one", "two"), text))
        lines = evaluate(replace(options, force=True), Request(replies=file)).lines
        assert any("WARNING" in line for line in lines) is warned


def test_cells_of_a_sweep_share_a_warning(options: Options, server: ChatServer) -> None:
    server.reply = lambda *_: (200, complete(""))
    endpoint = Endpoint(Transport(server.url), "hermes")
    swept = with_setup(options, temperature=(0.7,), samples=4)
    (line,) = [
        line
        for line in evaluate_engine(swept, endpoint, load_suites(options.preset.eval.suites)).lines
        if "WARNING" in line
    ]
    cells = ", ".join(f"three/own-t0.7-s{i}" for i in range(3))
    assert line == f"WARNING: {cells} and 1 more: 3 of 3 replies are empty: {REMEDY}"


def test_a_regex_that_takes_for_ever_ends_in_time(
    options: Options, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.core.matcher.SECONDS", 0.1)
    accepted = [{"function": "typecheck", "arguments": {"path": {"regex": "(a+)+$"}}}]
    suite.write_text(json.dumps(SUITE | {"queries": [SUITE["queries"][0] | {"accept": accepted}]}), "utf-8")
    file = write_replies(tmp_path / "mine.jsonl", {"types": WRITTEN.replace("src/app.py", "a" * 40 + "b")})
    started, handler = time.process_time(), signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(
        StageError, match=r"^suite three, query types: the regex '\(a\+\)\+\$' was not through"
    ) as e:
        evaluate(options, Request(replies=file))
    assert "with a text of 41 characters after 0.1 s: write it without a repetition in a repetition" in str(
        e.value
    )
    assert time.process_time() - started < 5
    assert signal.getsignal(signal.SIGVTALRM) == handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_replies_of_another_output_are_scored_again_with_their_figures(
    options: Options, tmp_path: Path
) -> None:
    more = {"tokens": 9, "finish": "length", "seconds": 0.5}
    file = write_replies(tmp_path / "theirs.jsonl", REPLIES, **more)
    first = evaluate(options, Request(replies=file)).folder / "three"
    again = evaluate(
        replace(options, out=tmp_path / "again"), Request(replies=first / "replies.jsonl")
    ).folder / "three"  # fmt: skip
    assert (again / "scores.jsonl").read_bytes() == (first / "scores.jsonl").read_bytes()
    timing = read_record(again / "summary.json", EvalSummary).timing
    assert (timing.generated_tokens, timing.seconds_per_query) == (27, 0.5)
    assert (timing.runaway_tokens, timing.runaway_seconds) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        (
            {"types": "a", "direct": "b"},
            "has no reply to 1 query of three, such as 'tests': add them",
        ),
        (REPLIES | {"more": "c"}, "has a reply to 'more', which is no query of three: name the suite"),
        ({}, r"mine\.jsonl is empty: --replies takes JSON lines with id and text$"),
    ],
)
def test_replies_to_other_queries_are_refused(
    replies: dict[str, str], words: str, options: Options, tmp_path: Path
) -> None:
    file = write_replies(tmp_path / "mine.jsonl", replies)
    with pytest.raises(StageError, match=words):
        evaluate(options, Request(replies=file))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"id": "types"}\n', r"mine\.jsonl:1 is not valid at text: this key is missing: --replies takes"),
        (
            '{"id": "types", "text": "a", "txet": "b"}\n',
            r"mine\.jsonl:1 is not valid at txet: no such key, use one of id, text, tokens, .*: --replies",
        ),
        ("not json\n", r"mine\.jsonl:1 is not valid: .*: --replies takes JSON lines with id and text$"),
        ('{"id": "types", "text": "a"}\n' * 2, r"mine\.jsonl has two replies to 'types': leave one"),
    ],
)
def test_a_wrong_file_is_one_line(lines: str, words: str, options: Options, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(lines)
    with pytest.raises(StageError, match=words) as error:
        evaluate(options, Request(replies=file))
    assert "\n" not in str(error.value)


def test_blank_lines_and_a_mark_of_the_encoding_are_none_of_the_replies(
    options: Options, tmp_path: Path
) -> None:
    file = write_replies(tmp_path / "mine.jsonl", REPLIES)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\n\n \n"))
    evaluate(options, Request(replies=file))


# Kept replies


QUESTION = Question("a", {"messages": [{"role": "user", "content": "Hi"}], "tools": []})
OTHER = Question("b", {"messages": [{"role": "user", "content": "Ho"}], "tools": []})


def test_a_kept_reply_is_found_by_its_prompt_and_draw(tmp_path: Path) -> None:
    reply = RawReply(id="a", text="Hello.", tokens=3, finish="stop", seconds=0.5)
    ReplyStore(tmp_path, {"model": "x"}).keep(QUESTION, 1, reply)
    store = ReplyStore(tmp_path, {"model": "x"})
    assert store.find(QUESTION, 1) == reply
    assert store.find(Question("c", QUESTION.row), 1) == reply.model_copy(update={"id": "c"})
    assert store.find(QUESTION, 0) is None
    assert store.find(OTHER, 1) is None
    assert ReplyStore(tmp_path, {"model": "y"}).find(QUESTION, 1) is None
    assert json.loads((store.folder / "key.json").read_text()) == {"model": "x"}


@pytest.mark.parametrize("cut", [1, 2, 60, 400])
def test_a_line_that_a_kill_cut_off_is_asked_again(cut: int, tmp_path: Path) -> None:
    store = ReplyStore(tmp_path, {})
    store.keep(QUESTION, 0, RawReply(id="a", text="Hello.", finish="stop"))
    store.keep(OTHER, 0, RawReply(id="b", text="Ho ho.", finish="stop"))
    path = store.folder / "replies.jsonl"
    content = path.read_bytes()
    second = content.rindex(b"\n")
    path.write_bytes(content[: max(len(content) - cut, second + 1)])
    again = ReplyStore(tmp_path, {})
    assert again.find(QUESTION, 0) is not None
    assert again.find(OTHER, 0) is None
    again.keep(OTHER, 0, RawReply(id="b", text="Ho ho.", finish="stop"))
    found = ReplyStore(tmp_path, {})
    assert found.find(OTHER, 0) == RawReply(id="b", text="Ho ho.", finish="stop")
    assert found.find(QUESTION, 0) is not None


def test_one_prompt_is_asked_once_whatever_arm_or_suite_asks(
    options: Options, server: ChatServer, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = json.loads(json.dumps(SUITE))
    twice["name"] = "twice"
    twice["queries"] += [{**twice["queries"][2], "id": "again"}]
    (suite.parent / "twice.json").write_text(json.dumps(twice), "utf-8")
    ask_server(options, server)
    assert len(server.asked) == 3
    ask_server(with_setup(options, suites=(str(suite.parent / "twice.json"),)), server)
    ask_server(replace(options, fixes=tuple(fix for fix in FAIR if fix != "parser")), server)
    assert len(server.asked) == 3
    assert "twice: 4 replies of an earlier run used again" in capsys.readouterr().out
    ask_server(replace(options, force=True), server)
    assert len(server.asked) == 3
    ask_server(options, server, ask_again=True)
    assert len(server.asked) == 6


def test_an_output_that_another_process_writes_is_refused_before_anything_is_asked(
    options: Options, server: ChatServer, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (suite.parent / "four.json").write_text(json.dumps({**SUITE, "name": "four"}), "utf-8")
    suites = f"{suite},{suite.parent / 'four.json'}"
    place = options.place("eval")
    place.mkdir(parents=True)
    words = ["--endpoint", server.url, "--suites", suites]
    with FileLock(place / ".four.lock"):
        for more in ([], ["--check"], ["--force", "--ask-again"]):
            assert main([*words, *more]) == 2
            error = capsys.readouterr().err
            assert f"another process is writing {(place / 'four').resolve()}: wait for it to end" in error
            assert error.count("\n") == 1
    assert not server.asked
    assert not (place / "three").exists()
    assert main([*words, "--check"]) == TO_MAKE
    assert main(words) == 0
    with FileLock(place / ".four.lock"):
        assert main([*words, "--check"]) == 0, "what is up to date needs no one to end"


# Sweeps


def test_the_default_is_one_greedy_reply_and_no_sweep(options: Options) -> None:
    setup = options.preset.eval
    assert not setup.is_sweep
    cell = usual_cell(options.preset)
    assert (cell.sampling.temperature, cell.sampling.max_tokens, cell.settings()) == (0.0, 160, {})


def test_a_sweep_has_a_cell_for_every_draw(options: Options, tmp_path: Path) -> None:
    for name in ("terse", "kind"):
        (tmp_path / f"{name}.txt").write_text(f"You are {name}.\n")
    prompts = (str(tmp_path / "terse.txt"), str(tmp_path / "kind.txt"))
    swept = with_setup(options, temperature=(0.0, 0.5), samples=2, prompts=prompts)
    told = "at temperature 0 every draw is the same, so there is one and not 2"
    assert describe_single_draws(swept.preset) == told
    assert (
        describe_single_draws(with_setup(options, samples=2).preset)
        == f"{told}: --temperature 0.7 draws several"
    )
    assert not describe_single_draws(with_setup(options, temperature=(0.5,), samples=2).preset)
    assert not describe_single_draws(options.preset)
    assert [cell.slug for cell in list_cells(swept.preset)] == [
        *("terse-t0-s0", "terse-t0.5-s0", "terse-t0.5-s1"),
        *("kind-t0-s0", "kind-t0.5-s0", "kind-t0.5-s1"),
    ]
    assert {cell.system for cell in list_cells(swept.preset)} == {"You are terse.", "You are kind."}


def answer_by_seed(server: ChatServer) -> None:
    """The tool query of types gets a call in even draws alone, the one of tests never."""

    def reply(question: str, time: int) -> tuple[int, Any]:
        right = question == TYPES and time % 2 == 1
        return 200, complete(None, message=call(CODE)) if right else complete("No.")

    server.reply = reply


def test_a_sweep_is_scored_draw_by_draw(options: Options, server: ChatServer) -> None:
    answer_by_seed(server)
    swept = with_setup(options, temperature=(0.7,), samples=4)
    folder = ask_server(swept, server)
    arm = "json+tools+eos+parser+six_bit"
    assert folder.parts[-4:] == ("smol", "sweep", arm, "seed0")
    draws = sorted(path.name for path in (folder / "three").iterdir())
    assert draws == [f"own-t0.7-s{i}" for i in range(4)]
    decided = [
        read_record(folder / "three" / d / "summary.json", EvalSummary).tool_or_direct.k for d in draws
    ]  # fmt: skip
    assert decided == [2, 1, 2, 1]
    (group,) = read_record(folder / "sweep.json", Sweep).groups
    assert (group.suite, group.prompt, group.temperature, group.draws) == ("three", "own", 0.7, 4)
    assert group.rates["decision"].model_dump() == {
        "mean": 0.5, "deviation": 0.1925, "lowest": pytest.approx(1 / 3), "highest": pytest.approx(2 / 3),
    }  # fmt: skip
    assert {name: round(spread.mean, 3) for name, spread in group.rates.items()} == {
        "decision": 0.5, "tool": 0.25, "arguments": 0.25, "code": 1.0, "stop": 1.0, "whole": 0.5,
    }  # fmt: skip
    assert group.unsteady == ["types"]
    assert not (folder.parents[1].with_name("eval")).exists(), "a sweep is no evaluation for the report"


def test_a_sweep_that_grows_or_was_stopped_asks_what_is_left(options: Options, server: ChatServer) -> None:
    server.dies_after = 4
    swept = with_setup(options, temperature=(0.7,), samples=2)
    with pytest.raises(StageError, match="the same command asks what is left"):
        ask_server(swept, server)
    server.dies_after = None
    folder = ask_server(swept, server)
    assert len(server.asked) == 6
    more = ask_server(with_setup(options, temperature=(0.0, 0.7), samples=3), server)
    assert more == folder
    seeds = [(body["temperature"], body.get("seed")) for body in server.asked[6:]]
    assert seeds == [(0.0, None)] * 3 + [(0.7, 2)] * 3
    outcome = evaluate_engine(
        swept, Endpoint(Transport(server.url), "hermes"), load_suites(options.preset.eval.suites)
    )
    assert outcome.up_to_date
    assert outcome.lines[0].startswith("three, prompt own, temperature 0.7, 2 draws: decision 33%")
    request = Request(endpoint=server.url)
    assert needs_nothing(swept, request)
    assert not needs_nothing(swept, replace(request, ask_again=True))
    shutil.rmtree(folder / "three" / "own-t0.7-s0")
    assert not needs_nothing(swept, request)
    with pytest.raises(StageError, match=r"own-t0\.7-s1 was made with max_tokens=\d+ \(now 9\)"):
        needs_nothing(with_setup(swept, max_tokens=9), request)
    assert len(server.asked) == 12


def test_prompts_of_a_sweep_are_put_to_the_model(
    options: Options, server: ChatServer, tmp_path: Path
) -> None:
    (tmp_path / "terse.txt").write_text("Be terse.\n")
    ask_server(with_setup(options, prompts=(str(tmp_path / "terse.txt"),)), server)
    said = {body["messages"][0]["content"].splitlines()[0] for body in server.asked}
    assert said == {"Be terse."}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--prompts", "none.txt"], "--prompts none.txt: no text file there that can be read"),
        (
            ["--prompts", "DIR/empty.txt"],
            "empty.txt is empty: write a system text into it, or leave the file out",
        ),
        (["--prompts", "DIR/own.txt"], "own.txt: the name own stands for the preset's own, rename the file"),
        (["--prompts", "DIR/a.txt,DIR/b/a.txt"], "--prompts names two files a: rename one"),
        (["--temperature", "-1"], "--temperature -1.0: use 0 or more"),
        (["--temperature", "hot"], "--temperature: 'hot' is not a number"),
        (["--temperature", "0.5,0.50"], "--temperature 0.5,0.5: name each one once"),
        (["--samples", "0"], "--samples 0: use 1 or more"),
    ],
)
def test_a_wrong_sweep_is_one_line(
    words: list[str], complaint: str, options: Options, server: ChatServer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "b").mkdir()
    for name in ("own.txt", "a.txt", "b/a.txt"):
        (tmp_path / name).write_text("You are one.")
    (tmp_path / "empty.txt").write_text(" \n")
    words = [word.replace("DIR", str(tmp_path)) for word in words]
    suites = ",".join(options.preset.eval.suites)
    assert main(["--endpoint", server.url, "--suites", suites, *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_the_spread_of_one_draw_has_no_deviation() -> None:
    assert spread_of([0.5]).deviation is None
    assert spread_of([0.0, 1.0]).model_dump() == {
        "mean": 0.5, "deviation": 0.7071, "lowest": 0.0, "highest": 1.0,
    }  # fmt: skip


# Engines side by side


def test_engines_beside_each_other_show_where_they_differ(
    options: Options, server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = replace(options, out=tmp_path / "mine")
    evaluate(mine, Request(replies=write_replies(tmp_path / "a.jsonl", REPLIES, prompt_tokens=9)))

    def reply(question: str, _time: int) -> tuple[int, Any]:
        if question == TYPES:
            return 200, complete(None, "tool_calls", message=call(CODE))
        if question == TESTS:
            return 200, complete('```json\n{"name": "execute_code", "arguments": {"code": "1"}}\n```')
        return 200, complete(REPLIES["direct"], "length")

    server.reply = reply
    ask_server(replace(options, out=tmp_path / "theirs"), server)
    capsys.readouterr()
    assert main(["--compare", str(tmp_path / "mine"), str(tmp_path / "theirs")]) == 0
    out = capsys.readouterr().out
    assert f"A: {tmp_path / 'mine'}, recorded a.jsonl, 2/3 decided right" in out
    assert f"B: {tmp_path / 'theirs'}, endpoint {server.url}, 2/3 decided right" in out
    assert "queries that differ in: decision 0, calls 0, dialect 1, stop 0, prompt 3, text 1" in out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if "|" in line]
    assert rows[2:] == [
        ["tests", "dialect, prompt", "none; 9", "fenced_json; 7"],
        ["types", "prompt", "9", "7"],
        ["direct", "prompt", "9", "7"],
    ]
    assert main(["--json", "--compare", *[str(tmp_path / "mine")] * 2]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        "differences": {"three": dict.fromkeys(("decision", "calls", "dialect", "stop", "prompt", "text"), 0)}
    }


TIMER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Set a timer.",
        "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}},
    },
}


@pytest.mark.parametrize(
    ("dialect", "text", "shown"),
    [
        ("qwen3_coder", "<tool_call>\n<function=set_timer>\n<parameter=minutes>\n10.0\n</parameter>\n"
         "</function>\n</tool_call>", []),
        ("qwen3_coder", "<tool_call>\n<function=set_timer>\n<parameter=minutes>\nten\n</parameter>\n"
         "</function>\n</tool_call>",
         ["timer", "calls, dialect", 'set_timer({"minutes":"ten"}); qwen3_coder',
          """set_timer({"minutes":10}); the server's"""]),
        ("pythonic", "[set_timer(10)]", []),
    ],
)  # fmt: skip
def test_calls_are_compared_as_the_tools_of_the_query_type_them(
    dialect: str, text: str, shown: list[str], options: Options, suite: Path, server: ChatServer,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    accepted = {"function": "set_timer", "arguments": {"minutes": {"exact": 10}}}
    query = {"id": "timer", "query": "Wake me in ten minutes.", "tools": [TIMER], "accept": [accepted]}
    suite.write_text(json.dumps({"name": "one", "version": 1, "description": "One.", "queries": [query]}))
    model = options.preset.model.model_copy(update={"dialect": dialect})
    speaks = replace(options, preset=options.preset.model_copy(update={"model": model}))
    file = write_replies(tmp_path / "a.jsonl", {"timer": text})
    evaluate(replace(speaks, out=tmp_path / "mine"), Request(replies=file))
    server.reply = lambda *_: (200, complete(None, "tool_calls", message=call({"minutes": 10}, "set_timer")))
    endpoint = Endpoint(Transport(server.url, first_wait=0.005), dialect)
    evaluate_engine(replace(speaks, out=tmp_path / "theirs"), endpoint, load_suites((str(suite),)))
    capsys.readouterr()
    assert main(["--compare", str(tmp_path / "mine"), str(tmp_path / "theirs")]) == 0
    out = capsys.readouterr().out
    assert f"differ in: decision 0, calls {len(shown) // 4}, dialect {len(shown) // 4}" in out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if "|" in line]
    assert rows[2:] == ([shown] if shown else [])


def test_calls_that_differ_stand_beside_each_other(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = WRITTEN.replace("print(", "x = 1\\\\n" * 20 + "print(")
    sides = {
        "a": {"types": long, "tests": WRITTEN, "direct": WRITTEN.replace("src/app.py", "a|b\u202e")},
        "b": {"types": long.replace("app.py", "lib.py"), "tests": "I cannot.", "direct": WRITTEN},
    }
    for side, replies in sides.items():
        file = write_replies(tmp_path / f"{side}.jsonl", replies)
        evaluate(replace(options, out=tmp_path / side), Request(replies=file))
    capsys.readouterr()
    assert main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
    whole = r'execute_code({"code":"print(typecheck(path=\"src/app.py\"))"})'
    assert rows == [
        ["tests", "decision, calls, dialect", f"tool; {whole}; hermes", "direct; no call; none"],
        ["types", "calls", *(rf'execute_code(…(path=\"src/{name}.py\"))"}})' for name in ("app", "lib"))],
        ["direct", "calls", *(whole.replace("src/app.py", path) for path in (r"a\|b\u202e", "src/app.py"))],
    ]


def test_outputs_of_different_scorers_are_not_compared(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_replies(tmp_path / "a.jsonl", REPLIES)
    evaluate(replace(options, out=tmp_path / "mine"), Request(replies=file))
    for module in ("recipe", "summary"):
        monkeypatch.setattr(f"stages.eval.{module}.SCORER_VERSION", SCORER_VERSION - 1)
    evaluate(replace(options, out=tmp_path / "theirs"), Request(replies=file))
    assert main(["--compare", str(tmp_path / "mine"), str(tmp_path / "theirs")]) == 2
    error = capsys.readouterr().err
    assert "were scored by different rules: evaluate both again" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["replies.jsonl", "scores.jsonl"])
def test_an_output_that_denies_itself_is_not_compared(
    name: str, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_replies(tmp_path / "a.jsonl", REPLIES)
    evaluate(replace(options, out=tmp_path / "mine"), Request(replies=file))
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    path = tmp_path / "theirs" / "three" / name
    whole = path.read_bytes()
    cut = b"".join(whole.splitlines(keepends=True)[:2])
    for damage, words in ((None, f"lacks {name}"), (cut, "")):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert main(["--compare", str(tmp_path / "mine"), str(tmp_path / "theirs")]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.endswith(": evaluate it again with --force\n")
        assert error.count("\n") == 1


def test_outputs_that_cannot_be_compared_are_refused(
    options: Options, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_replies(tmp_path / "a.jsonl", REPLIES)
    evaluate(replace(options, out=tmp_path / "mine"), Request(replies=file))
    changed = json.loads(json.dumps(SUITE))
    changed["queries"][2]["query"] += " Why?"
    suite.write_text(json.dumps(changed), "utf-8")
    evaluate(replace(options, out=tmp_path / "other"), Request(replies=file))
    changed = json.loads(json.dumps(SUITE))
    changed["queries"][1]["accept"] = [{"function": "run_command"}]
    suite.write_text(json.dumps(changed), "utf-8")
    evaluate(replace(options, out=tmp_path / "accepted"), Request(replies=file))
    suite.write_text(json.dumps({**SUITE, "name": "four"}), "utf-8")
    evaluate(replace(options, out=tmp_path / "four"), Request(replies=file))
    (tmp_path / "empty").mkdir()
    for other, words in (
        ("other", "answered different queries of three: evaluate the same version of the suite"),
        ("accepted", "answered the same queries of three, whose accepted calls differ: evaluate both again"),
        ("four", "have no suite in common: evaluate the same ones"),
        ("empty", "holds no output of eval: give a folder that nox -s eval wrote"),
        ("none", "holds no output of eval: give a folder that nox -s eval wrote"),
    ):
        assert main(["--compare", str(tmp_path / "mine"), str(tmp_path / other)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_settings_that_differ_are_said(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_replies(tmp_path / "a.jsonl", REPLIES)
    evaluate(replace(options, out=tmp_path / "mine"), Request(replies=file))
    evaluate(replace(options, out=tmp_path / "same"), Request(replies=file))
    other = replace(with_setup(options, max_tokens=9), fixes=("json", "parser"), out=tmp_path / "other")
    evaluate(other, Request(replies=file))
    capsys.readouterr()
    assert main(["--compare", str(tmp_path / "mine"), str(tmp_path / "same")]) == 0
    assert "set up otherwise" not in capsys.readouterr().out
    assert main(["--compare", str(tmp_path / "mine"), str(tmp_path / "other")]) == 0
    fixes = f"fixes {' '.join(FAIR)} / json parser"
    prompts = "other prompts, or another version of what asks them"
    assert f"  set up otherwise: {fixes}, max_tokens 160 / 9, {prompts}\n" in capsys.readouterr().out


# Timing


def test_parts_of_the_time_add_up_to_it() -> None:
    clock = WorkClock(["a", "b", "c"])
    spent = [clock.tick(in_work) for in_work in (["a", "b", "c"], ["a"], ["a", "b"], [])]
    clock.skip()
    spent.append(clock.tick(["c"]))
    worked = spent[0] + spent[1] + spent[2] + spent[4]
    assert sum(clock.parts.values()) == pytest.approx(worked)
    assert clock.parts["a"] == pytest.approx(spent[0] / 3 + spent[1] + spent[2] / 2)
    assert clock.parts["c"] == pytest.approx(spent[0] / 3 + spent[4])


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3.0], 0.95, 3.0), ([2.0, 1.0], 0.95, 2.0), ([*range(1, 21)], 0.95, 19), ([*range(1, 101)], 0.95, 95)],
)
def test_nearest_rank(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_runaway_replies_are_counted_with_their_cost() -> None:
    replies = [
        RawReply(id="a", text="", tokens=10, finish="stop", seconds=1.0),
        RawReply(id="b", text="", tokens=10, finish="stop", seconds=2.0),
        RawReply(id="c", text="", tokens=80, finish="length", seconds=7.0),
    ]
    assert summarize_timing(replies, Costs(load_seconds=0.5, first_token_seconds=0.1)) == Timing(
        load_seconds=0.5, first_token_seconds=0.1, seconds_per_query=3.3333, seconds_median=2.0,
        seconds_p95=7.0, tokens_per_second=10.0, generated_tokens=100, runaway_tokens=0.8,
        runaway_seconds=0.7, peak_memory_gb=None, disk_gb=None,
    )  # fmt: skip


def test_the_kept_replies_of_an_output_are_those_of_the_store(
    options: Options, server: ChatServer, tmp_path: Path
) -> None:
    server.reply = lambda question, _: (200, complete(f"Is it this? {question}"))
    replies = read_lines(ask_server(options, server) / "three" / "replies.jsonl", RawReply)
    assert [reply.id for reply in replies] == ["types", "tests", "direct"]
    (store,) = tmp_path.glob("artifacts/smol/replies/*/replies.jsonl")
    kept = [json.loads(line)["reply"] for line in store.read_bytes().splitlines() if line]
    assert [reply.model_dump(mode="json") for reply in replies] == kept
    assert len({reply.text for reply in replies}) == 3
