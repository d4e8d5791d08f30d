"""The short way to convert the commonest rows writes and counts what the full way does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.convert_data.converted import Converted
from stages.convert_data.offers import ConvertContext
from stages.convert_data.plain import convert_plain
from stages.convert_data.rows import convert_fully
from stages.convert_data.stage import CORPUS
from stages.core.chat import ToolCall
from stages.core.chatml import Turn, join_chatml
from stages.core.dialects import DIALECTS, render_calls
from stages.core.fixes import FAIR
from stages.core.preset import load_preset
from stages.core.prompts import system_message
from stages.core.tools import EXECUTE_CODE
from tests.unit.test_convert_corpora import DATA

SETUP = load_preset("smol").model
CONTEXTS = (ConvertContext(SETUP, FAIR), ConvertContext(SETUP, FAIR, (EXECUTE_CODE,)))
PIECES = (
    *("<|im_start|>", "<|im_end|>", "<|im_end|>\n<|im_start|>user\n", "<|im_start|>assistant\n"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tool_response>\n", "<tools>"),
    *("<function=execute_code>", "</function>", "<parameter=code>", "</parameter>", "<think>", "</think>"),
    *("following functions", "\r", "\n", " ", "[", "{", "```json", "system", "assistant", "user", "tool"),
    *("read_file(path='x')", '{"name": "execute_code", "arguments": {"code": "x()"}}', "<|endoftext|>"),
    *("✿FUNCTION✿: f", "`<tool_use>`", "<TOOL_CALL>", "</TOOL_CALL>", "Action: read_file\nAction Input: x"),
    *("\ud800", "\u2028", ""),
)


def texts_of(folder: Path) -> list[str]:
    return [
        json.loads(line)["text"]
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]


def require_agreement(raw: Any, context: ConvertContext) -> Converted | None:
    """What the short way makes of a row, the same in every field as what the full way makes."""
    short = convert_plain(raw, context)
    if short is not None:
        assert short == convert_fully(raw, context), raw
    return short


@pytest.mark.parametrize("folder", DATA)
def test_nearly_all_rows_of_both_sets_go_the_short_way(folder: Path) -> None:
    texts = texts_of(folder)
    for context in CONTEXTS:
        taken = [require_agreement({"text": text}, context) for text in texts]
        assert sum(one is not None for one in taken) >= 0.95 * len(texts)


def mutate(texts: list[str], count: int) -> Iterator[str]:
    chance = random.Random(11)
    for _ in range(count):
        text = chance.choice(texts)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(text) + 1)
            to = min(len(text), at + chance.choice((0, 0, 1, 9)))
            text = text[:at] + chance.choice((*PIECES, chance.choice(texts)[:at])) + text[to:]
        yield text


def test_mutated_rows_agree() -> None:
    texts = texts_of(CORPUS)
    taken = [require_agreement({"text": text}, CONTEXTS[0]) for text in mutate(texts, 4000)]
    assert 400 < sum(one is not None for one in taken) < 4000


CODES = st.sampled_from(["print(1)", "x = f('é')\nprint(x)", "for a in b:\n    print(a)", "if", "a < b", ""])
CALLS = st.builds(
    lambda dialect, codes: write_calls([ToolCall("execute_code", {"code": code}) for code in codes], dialect),
    st.sampled_from(DIALECTS),
    st.lists(CODES, min_size=1, max_size=2),
)
OPENINGS = ["<tool_response>\n", "<tool_response>", "\n<tool_response>\n", "<tool_response>\r\n"]
CLOSINGS = ["\n</tool_response>", "</tool_response>", "\n</tool_response>\n", "", "\n</tool_response>."]
RESULTS = st.builds(
    "{}{}{}".format,
    st.sampled_from(OPENINGS),
    st.sampled_from(["", "done", "\n", "x\r", "a < b", "</tool_response>", "<tool_call>", "two\nlines"]),
    st.sampled_from(CLOSINGS),
)
WORDS = st.sampled_from(
    ["", "Why?", " a [1] ", "{", "Look:\n\n", "<b>", "<think>\nHm.\n</think>\n\nSo.", "ä", "```\nx\n```"]
)
SYSTEMS = st.sampled_from([SETUP.system, system_message(SETUP, FAIR).content, "", "Be kind.", "<tools>"])
TURNS = st.one_of(
    st.tuples(st.just("system"), SYSTEMS),
    st.tuples(st.just("user"), st.one_of(WORDS, RESULTS, st.text(max_size=9))),
    st.tuples(st.just("assistant"), st.one_of(WORDS, CALLS, st.builds("{}{}".format, WORDS, CALLS))),
    st.tuples(st.just("tool"), st.one_of(WORDS, RESULTS)),
)
ROUND = st.builds(
    lambda question, call, result: [("user", question), ("assistant", call), ("user", result)],
    WORDS,
    CALLS,
    RESULTS,
)
ROWS = st.builds(
    lambda first, rounds, last: [*first, *(turn for each in rounds for turn in each), *last],
    st.lists(st.tuples(st.just("system"), SYSTEMS), max_size=1),
    st.lists(ROUND, max_size=3),
    st.lists(TURNS, max_size=4),
)


def write_calls(calls: list[ToolCall], dialect: str) -> str:
    try:
        return render_calls(calls, dialect, [EXECUTE_CODE])
    except ValueError:  # code that this dialect cannot write
        return f"<tool_call>{calls[0].arguments['code']}</tool_call>"


@settings(max_examples=400)
@given(ROWS, st.sampled_from(["", "\n", "\n\n"]))
def test_any_turns_agree(turns: list[tuple[str, str]], end: str) -> None:
    require_agreement({"text": join_chatml([Turn(*turn) for turn in turns]) + end}, CONTEXTS[0])


def test_a_row_of_rounds_goes_the_short_way() -> None:
    result = Turn("user", "<tool_response>\n1\n</tool_response>")
    for dialect in DIALECTS:
        call = render_calls([ToolCall("execute_code", {"code": "print(1)"})], dialect, [EXECUTE_CODE])
        turns = [Turn("user", "Go"), Turn("assistant", call), result]
        raw = {"text": join_chatml([*turns * 3, Turn("assistant", "Done.")])}
        assert require_agreement(raw, CONTEXTS[0]) is not None, dialect


@pytest.mark.parametrize(
    "context",
    [
        ConvertContext(SETUP, ()),
        ConvertContext(SETUP, ("json",)),
        ConvertContext(SETUP, ("tools",)),
        ConvertContext(SETUP, FAIR, ()),
        ConvertContext(SETUP.model_copy(update={"tool_response": "user"}), FAIR),
        ConvertContext(SETUP.model_copy(update={"dialect": "qwen3_coder"}), FAIR),
    ],
)
def test_other_settings_go_the_full_way(context: ConvertContext) -> None:
    raw = {"text": join_chatml([Turn("user", "Why?"), Turn("assistant", "So.")])}
    assert convert_plain(raw, context) is None
    assert convert_plain(raw, replace(context, setup=SETUP, fixes=FAIR, tools=None)) is not None


@pytest.mark.parametrize(
    "raw", [None, [], {"text": 1}, {"text": "a", "tools": []}, {"messages": []}, {"text": ""}]
)
def test_other_rows_go_the_full_way(raw: Any) -> None:
    assert convert_plain(raw, CONTEXTS[0]) is None
