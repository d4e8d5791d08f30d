"""What went wrong first: replies labelled by reading them, before the attribution was run on them.

The labels of replies with code are about what that code does, so it is run here as in an evaluation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.chat import ToolCall
from stages.core.dialects import DIALECTS, render_calls
from stages.core.records import Cause, RawReply, Score
from stages.core.suite import load_suite
from stages.eval.behaviour import MOST_ENDLESS, MOST_RUNS, RunCode
from stages.eval.repetition import find_loop
from stages.eval.sandbox import CodeRunner, Sandbox
from stages.eval.score import score_reply

FOUR_TESTS = "".join(
    f"def test_{n}() -> None:\n    client = TestClient(app)\n    assert client.get('/{n}').is_success\n\n"
    for n in "abcd"
)
DATA = Path(__file__).resolve().parents[1] / "data"
QUERIES = {query.id: query for query in load_suite(str(DATA / "labelled_queries.jsonl")).queries}
REPLIES: list[dict[str, Any]] = [
    orjson.loads(line) for line in (DATA / "labelled_replies.jsonl").read_bytes().splitlines()
]


def score(reply: dict[str, Any], run_code: RunCode | None = None) -> Score:
    raw = RawReply(id=reply["query"], text=reply["text"], tokens=9, finish=reply["finish"], seconds=0.1)
    return score_reply(QUERIES[reply["query"]], raw, reply["dialect"], run_code)


@pytest.fixture(scope="module")
def run_code() -> Iterator[CodeRunner]:
    with Sandbox() as sandbox:
        yield CodeRunner(sandbox)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", None),
        ("A plain answer.", None),
        ("No, no, no.", None),
        ("a" * 39, None),
        ("a" * 40, 0),
        ("Yes. " + "ab" * 30, 5),
        ("Yes. " + "ab" * 3000, 5),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20", None),
        ("First.\n" + "The same line over and over.\nBut not this one, of all.\n" * 4 + "An end.", 7),
        ("First.\n" + "The same line three times.\n" * 3 + "An end.", None),
        ("\n".join(f"{i}. Always the same advice here." for i in range(5)) + "\nAn end.", 2),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |\n| 7 | 8 |", None),
        ("The tests:\n```python\n" + FOUR_TESTS + "```\nEach has a client.", None),
        ("<tool_call>\n" + FOUR_TESTS + "</tool_call>", None),
        (FOUR_TESTS, 22),
        ("See:\n```\n" + "total = total + 1  # more\n" * 5 + "```\nSo it grows.", 9),
        ("```\na = 1\n```\n" + "I will call the tool now, and wait.\n```\nb\n```\n" * 4 + "The end.", 14),
        ("An answer.\n\n" + "-" * 60, None),
        ("An answer.\n\n" + "=-" * 60 + "\n", None),
        ("An answer.\n\n" + "-" * 300, 12),
        ("| a | b | c |\n" + "|---" * 20 + "|", None),
        ("!" * 60, None),
        ("| a | b |\n|---|---|\n" + "| 0 | 0 |\n" * 6, None),
        ("| a | b |\n|---|---|\n" + "| no | no |\n" * 6, None),
        ("| a | b |\n|---|---|\n" + "| not known | not known |\n" * 6 + "\nThat is all.", None),
        ("| a | b |\n|---|---|\n" + "| no | no |\n" * 40, 18),
        ("```\n" + "[0, 0, 0, 0, 0, 0, 0, 0],\n" * 8 + "```", None),
        ("So:\n```python\n" + "print(1)\n" * 40 + "```", 14),
        ("So:\n```python\n" + "next(it)\n" * 5 + "```", None),
        ("ha" * 30, 0),
    ],
)
def test_where_a_text_begins_to_repeat_itself(text: str, start: int | None) -> None:
    assert find_loop(text) == start


@pytest.mark.parametrize(
    "thought",
    [
        "I need no <tool_call> for this.",
        "Let me see what it is.\n" * 6,
        'Not {"name": "typecheck", "arguments": 1}.',
    ],
)
def test_what_a_model_thinks_is_no_answer(thought: str) -> None:
    direct = next(query for query in QUERIES.values() if query.kind == "direct" and not query.messages)
    for answer in ("A closure keeps the names of the function around it.",):
        text = f"<think>\n{thought}\n</think>\n\n{answer}"
        raw = RawReply(id=direct.id, text=text, tokens=9, finish="stop", seconds=0.1)
        assert score_reply(direct, raw, "hermes").cause is None


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("print(typecheck('src/app.py'))\n" * 3, None),
        ("print(typecheck('src/app.py'))\n" * 9, "repeated itself"),
        ("print(typecheck('src/app.py'))\n" + "# done\n" * 40, "repeated itself"),
        ("print(typecheck('src/app.py'))\n" + "# done\n" * 4, None),
        ("print(typecheck('src/app.py'))\n\n" + "x = 1\n\n" * 40, "repeated itself"),
        ("for _ in range(9):\n    print(typecheck('src/app.py'))", None),
        ("x = [\n" + "  [0, 0, 0, 0, 0, 0, 0, 0],\n" * 8 + "]\nprint(typecheck('src/app.py'))", None),
    ],
)
def test_a_line_of_code_is_repeated_however_the_code_is_written(code: str, cause: Cause | None) -> None:
    for dialect in ("hermes", "qwen3_coder"):
        text = render_calls([ToolCall("execute_code", {"code": code})], dialect)
        given = score({"query": "types", "text": text, "dialect": dialect, "finish": "stop"})
        assert (given.cause, given.strict.whole, given.lenient.whole) == (cause, cause is None, cause is None)


def weather(*cities: str) -> str:
    return render_calls([ToolCall("get_weather", {"city": city}) for city in cities], "hermes")


def lint_then(path: str, function: str) -> str:
    codes = [f"print(ruff_check({path!r}))", f"print({function}('.'))"]
    return render_calls([ToolCall("execute_code", {"code": code}) for code in codes], "hermes")


@pytest.mark.parametrize(
    ("query", "text", "cause"),
    [
        ("cities", weather("Paris", "Rome")[:-30], "ran away"),
        ("cities", weather("Rome") + "\n<tool_call>\n", "ran away"),
        ("cities", weather("Rome") + "\nAnd now", "ran away"),
        ("cities", weather("Oslo", "Rome")[:-30], "wrong arguments"),
        ("cities", weather("Rome", "Rome") + "\n<tool_call>\n", "wrong arguments"),
        ("paris", weather("Rome") + "\n<tool_call>\n", "wrong arguments"),
        ("both", lint_then("src", "pytest_run")[:-40], "ran away"),
        ("both", lint_then("docs", "pytest_run")[:-40], "wrong tool"),
    ],
)
def test_a_call_that_the_limit_kept_from_coming_is_none_that_was_forgotten(
    query: str, text: str, cause: Cause
) -> None:
    reply = {"query": query, "text": text, "dialect": "hermes"}
    assert score(reply | {"finish": "length"}).cause == cause
    assert score(reply | {"finish": "stop"}).cause != "ran away"


@given(before=st.text("abc .\n", max_size=30), piece=st.text("xyz", min_size=1, max_size=12))
def test_every_loop_at_the_end_is_found(before: str, piece: str) -> None:
    start = find_loop(before + piece * 50)
    assert start is not None
    assert start <= len(before) + len(piece)


def test_long_texts_take_no_longer_than_their_length() -> None:
    texts = ("ab" * 200_000, "a\n" * 200_000, "word " * 80_000 + "end.", "<tool_call>\n" * 30_000)
    for text in (*texts, "So:" + "\n" * 300_000 + "end."):
        started = time.process_time()
        score({"query": "types", "text": text, "dialect": "hermes", "finish": "length"})
        assert time.process_time() - started < 20  # a quadratic search would take hours


@given(text=st.text(), dialect=st.sampled_from(DIALECTS), finish=st.sampled_from(["stop", "length"]))
def test_every_failure_has_a_cause(text: str, dialect: str, finish: str) -> None:
    for query in ("types", "tuple", "cities", "pizza"):
        scored = score({"query": query, "text": text, "dialect": dialect, "finish": finish})
        parts = scored.strict.model_dump(include={"decision", "format", "tool", "arguments", "code", "stop"})
        assert scored.strict.whole == (scored.cause is None)
        if False in parts.values():
            assert scored.cause is not None


def test_all_causes_and_dialects_are_labelled() -> None:
    counts = Counter(reply["cause"] for reply in REPLIES)
    assert counts.keys() == {None, *get_args(Cause)}
    assert len(REPLIES) >= 150
    assert min(counts.values()) >= 5
    assert {reply["dialect"] for reply in REPLIES} == set(DIALECTS)
    assert {reply["query"] for reply in REPLIES} == QUERIES.keys()


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: f"{reply['id']} {reply['cause']}")
def test_the_cause_is_the_labelled_one(reply: dict[str, Any], run_code: CodeRunner) -> None:
    given_score = score(reply, run_code)
    assert given_score.cause == reply["cause"], reply["text"]
    assert given_score.strict.whole == (reply["cause"] is None)


FOREIGN = {
    "ReAct (Action: …)": 'Thought: it is far\nAction: get_weather\nAction Input: {"city": "Paris"}',
    "Anthropic (XML)": '<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>',
    "Harmony (gpt-oss)": '<|channel|>commentary to=functions.get_weather <|message|>{"city": "Rome"}<|call|>',
    "DeepSeek": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}',
    "Kimi": '<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0{"city": "Paris"}',
    "Gemma": "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>",
    "GLM": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
}


@pytest.mark.parametrize("family", FOREIGN)
def test_a_call_in_a_format_that_nothing_reads_is_a_decision(family: str) -> None:
    text = FOREIGN[family]
    given = score({"query": "paris", "text": text, "dialect": "hermes", "finish": "stop"})
    assert (given.strict.decision, given.lenient.decision, given.cause) == (False, True, "wrong dialect")
    assert (given.strict.format, given.strict.whole, given.lenient.whole) == (False, False, False)
    assert family in given.strict.problems[-1]
    spare = QUERIES["paris"].model_copy(update={"kind": "direct", "accept": ()})
    raw = RawReply(id="paris", text=text, tokens=9, finish="stop", seconds=0.1)
    none = score_reply(spare, raw, "hermes")
    assert (none.strict.decision, none.lenient.decision, none.cause) == (True, False, "decided wrong")
    quoted = raw.model_copy(update={"text": f"It is written so:\n```\n{text}\n```"})
    assert score_reply(spare, quoted, "hermes").cause == ("decided wrong" if family == "GLM" else None)


PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.mark.parametrize(
    "rest",
    [
        "\n<tool_response>\n18 degrees\n</tool_response>\nIt is 18 degrees.",
        "<|im_end|>\n<|im_start|>user\nAnd Rome?",
        "\n<|start_header_id|>user<|end_header_id|>\n\nAnd Rome?",
    ],
)
def test_who_makes_up_the_next_turn_ran_away(rest: str) -> None:
    reply = {"query": "paris", "dialect": "hermes", "finish": "stop"}
    given = score(reply | {"text": PARIS + rest})
    assert (given.cause, given.strict.arguments, given.strict.stop) == ("ran away", True, False)
    assert (given.runaway, given.lenient.stop, given.lenient.whole) == (False, True, True)
    direct = QUERIES["paris"].model_copy(update={"kind": "direct", "accept": ()})
    raw = RawReply(id="paris", text="Take a coat." + rest, tokens=9, finish="stop", seconds=0.1)
    assert score_reply(direct, raw, "hermes").cause == "ran away"
    for spoken in ("It stands in <tool_response> tags.", "So:\n```\n<tool_response>\n```", "`<|im_start|>`"):
        assert score_reply(direct, raw.model_copy(update={"text": spoken}), "hermes").cause is None
    assert score(reply | {"text": PARIS + "\nI look."}).cause is None
    unknown = score(reply | {"text": PARIS + rest, "finish": None})
    assert (unknown.strict.stop, unknown.runaway) == (False, None), "nobody knows whether it hit the limit"


def test_a_number_that_json_lacks_is_malformed() -> None:
    text = '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": %s}}\n</tool_call>'
    for value in ("NaN", "Infinity", "-Infinity"):
        given = score({"query": "timer", "text": text % value, "dialect": "hermes", "finish": "stop"})
        assert (given.cause, given.strict.decision, given.strict.format) == ("malformed", True, False)
        assert f"no number of JSON: {value}" in given.strict.problems[0]


def test_nothing_but_calls_is_an_attempt_whatever_tools_are_offered() -> None:
    direct = QUERIES["paris"].model_copy(update={"kind": "direct", "accept": ()})
    for text, cause in {
        "[book_table(people=2)]": "decided wrong",
        '{"name": "book_table", "arguments": {"people": 2}}': "decided wrong",
        "[len(word) for word in words]": None,
        "[book_table(people=2)] books a table.": None,
        "[1]": None,
    }.items():
        raw = RawReply(id="paris", text=text, tokens=9, finish="stop", seconds=0.1)
        assert score_reply(direct, raw, "hermes").cause == cause, text


def test_a_reply_of_endless_codes_is_not_run_for_ever(run_code: CodeRunner) -> None:
    codes = [f"while True:\n    x = {i}\ntypecheck('src/app.py')" for i in range(40)]
    text = render_calls([ToolCall("execute_code", {"code": code}) for code in codes], "hermes")
    before = len(run_code.runs)
    given = score({"query": "types", "text": text, "dialect": "hermes", "finish": "stop"}, run_code)
    assert (given.cause, given.strict.arguments, given.strict.code) == ("code fails", True, False)
    assert len(run_code.runs) - before == MOST_ENDLESS
    short = [f"print(typecheck('src/app.py').success, {i})" for i in range(MOST_RUNS + 5)]
    text = render_calls([ToolCall("execute_code", {"code": code}) for code in short], "hermes")
    assert (
        score({"query": "types", "text": text, "dialect": "hermes", "finish": "stop"}, run_code).cause is None
    )
    assert len(run_code.runs) - before == MOST_ENDLESS + MOST_RUNS


def test_a_function_of_code_mode_is_called_in_another_format() -> None:
    text = 'Thought: I check.\nAction: typecheck\nAction Input: {"path": "src/app.py"}'
    given = score({"query": "types", "text": text, "dialect": "hermes", "finish": "stop"})
    assert (given.cause, given.lenient.decision) == ("wrong dialect", True)


def test_words_about_an_action_are_no_call() -> None:
    direct = QUERIES["paris"].model_copy(update={"kind": "direct", "accept": ()})
    for text in ("Action: take an umbrella.", "Use `to=functions.get_weather` there.", "<invoke> is a tag."):
        raw = RawReply(id="paris", text=text, tokens=9, finish="stop", seconds=0.1)
        assert score_reply(direct, raw, "hermes").cause is None
