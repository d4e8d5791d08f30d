"""Whole data sets converted: the shipped corpus, and the real one that the first experiment used.

The real one is not part of this project. FAIR_RETEST_SHARED names the folder that holds it, else
`shared` beside the project's folder does; without it its tests are skipped. What is compared is read
here with expressions of its own, not with the project's parsers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.convert_data.stage import CORPUS, convert_data
from stages.core.chat import ToolCall
from stages.core.cli import Options
from stages.core.dialects import render_calls
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.tools import EXECUTE_CODE

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FAIR_RETEST_SHARED") or ROOT.parent / "shared")
PUNIE = SHARED / "data" / "punie" / "phase24_merged"
SPLITS = {"train": 685, "valid": 85, "test": 87}
DATA = [
    pytest.param(CORPUS, id="corpus"),
    pytest.param(
        PUNIE,
        id="punie",
        marks=pytest.mark.skipif(not PUNIE.is_dir(), reason="the shared training set is not here"),
    ),
]
FRAGMENTS = (
    *("<tool_call", "</tool_call", "<tool_response", "</tool_response", "tool_call>", "tool_response>"),
    *("<function=", "</function>", "<parameter=", "</parameter>", "<|im_start|>", "<|im_end|>"),
)
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
XML = re.compile(r"<function=(\w+)>\n?((?:<parameter=\w+>.*?</parameter>\s*)*)</function>", re.DOTALL)
PARAMETER = re.compile(r"<parameter=(\w+)>\n(.*?)\n</parameter>", re.DOTALL)
FENCE = re.compile(r"```json\n(.*?)```", re.DOTALL)
BESIDE_TAG = re.compile(r"\s*(</?(?:tool_call|tool_response|function|parameter)(?:=\w+)?>)\s*")
ESCAPE = re.compile(r'\\(?!["\\/bfnrtu])')  # a backslash that JSON does not know stands for itself
BARE = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The output folder of a data set and an arm, made once."""
    made: dict[tuple[Path, FixSet], Path] = {}

    def convert(data: Path, fixes: FixSet) -> Path:
        if (data, fixes) not in made:
            out = tmp_path_factory.mktemp("converted") / "out"
            made[data, fixes] = convert_data(Options(load_preset("smol"), fixes, data=data, out=out)).folder
        return made[data, fixes]

    return convert


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def texts_in(value: Any) -> Iterator[str]:
    """Every text anywhere in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def source_calls(text: str) -> list[tuple[str, dict[str, str]]]:
    """The calls in a legacy assistant's turn: name and arguments, byte for byte."""
    if "<function=" in text:
        return [(m[1], dict(PARAMETER.findall(m[2]))) for m in XML.finditer(text)]
    if "```json" in text:
        fences = [ESCAPE.sub(r"\\\\", fence) for fence in FENCE.findall(text)]
        return [(call["name"], call["arguments"]) for call in map(json.loads, fences)]
    return [("execute_code", {"code": m[1]}) for m in BARE.finditer(text)]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("fixes", [FAIR, FLAWED], ids=["fair", "flawed"])
def test_rows_in_are_rows_out(data: Path, fixes: FixSet, converted: Any) -> None:
    out = converted(data, fixes)
    rejected = read_rows(out / "rejected.jsonl")
    for split, count in SPLITS.items():
        source = [line for line in (data / f"{split}.jsonl").read_text("utf-8").split("\n") if line]
        refused = [row for row in rejected if row["split"] == split]
        assert len(source) == count
        assert len(read_rows(out / f"{split}.jsonl")) + len(refused) == count
        for row in refused:
            assert row["row"] == source[row["line"] - 1]
            assert row["reason"]


@pytest.mark.parametrize("data", DATA)
def test_no_legacy_fragment_is_left_in_any_field(data: Path, converted: Any) -> None:
    seen = 0
    for split in SPLITS:
        for row in read_rows(converted(data, FAIR) / f"{split}.jsonl"):
            for text in texts_in(row):
                seen += 1
                assert not [mark for mark in FRAGMENTS if mark in text], (split, text)
    assert seen > 10_000
    legacy = sum(
        mark in text
        for row in read_rows(data / "train.jsonl")
        for text in texts_in(row)
        for mark in FRAGMENTS
    )
    assert legacy > 1_000, "the source is full of them"


@pytest.mark.parametrize("data", DATA)
def test_code_and_results_are_byte_equal_to_the_source(data: Path, converted: Any) -> None:
    out = converted(data, FAIR)
    refused = {(row["split"], row["line"]) for row in read_rows(out / "rejected.jsonl")}
    calls = results = 0
    for split in SPLITS:
        kept = iter(read_rows(out / f"{split}.jsonl"))
        for number, row in enumerate(read_rows(data / f"{split}.jsonl"), 1):
            if (split, number) in refused:
                continue
            turns = TURN.findall(row["text"])
            messages = next(kept)["messages"]
            wanted = [c for role, text in turns if role == "assistant" for c in source_calls(text)]
            found = [
                (call["function"]["name"], call["function"]["arguments"])
                for message in messages
                for call in message.get("tool_calls", [])
            ]
            assert [name for name, _ in found] == ["execute_code"] * len(wanted)
            for (name, arguments), (_, code) in zip(wanted, found, strict=True):
                if name == "execute_code":
                    assert same_code(code["code"], arguments["code"]), (split, number)
                else:
                    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
                    assert code["code"] == f"print({name}({listed}))"
            answers = [m[1] for role, text in turns if role != "assistant" for m in RESPONSE.finditer(text)]
            assert [m["content"] for m in messages if m["role"] == "tool"] == answers
            asked = [text for role, text in turns if role == "user" and "<tool_response>" not in text]
            assert [m["content"] for m in messages if m["role"] == "user"] == asked
            calls, results = calls + len(wanted), results + len(answers)
        assert next(kept, None) is None
    assert calls > 500
    assert results > 300


@pytest.mark.parametrize("data", DATA)
def test_legacy_text_comes_back_from_the_neutral_rows(data: Path, converted: Any) -> None:
    """Written in its old dialect again, a turn is the same text, white space beside tags left aside."""
    again = rewritten = 0
    for split in SPLITS:
        kept = read_rows(converted(data, FAIR) / f"{split}.jsonl")
        for source, row in zip(read_rows(data / f"{split}.jsonl"), kept, strict=True):
            turns = [(role, text) for role, text in TURN.findall(source["text"]) if role != "system"]
            messages = [m for m in row["messages"] if m["role"] != "system"]
            assert len(turns) == len(messages)
            for (role, text), message in zip(turns, messages, strict=True):
                if "```json" in text and role == "assistant":
                    rewritten += 1  # a direct call, now code that makes it
                    continue
                assert squash(write_legacy(message, text)) == squash(text), (split, text)
                again += 1
    assert again > 2_000
    assert rewritten in (0, 8)


def write_legacy(message: dict[str, Any], text: str) -> str:
    """A neutral turn in the dialect that its legacy text is in."""
    if message["role"] == "tool":
        return f"<tool_response>\n{message['content']}\n</tool_response>"
    dialect = "qwen3_coder" if "<function=" in text else "bare_python"
    calls = [
        ToolCall(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())
    ]
    return f"{message['content']}{render_calls(calls, dialect, [EXECUTE_CODE])}"


def squash(text: str) -> str:
    """A text without the white space beside the dialect's tags."""
    return BESIDE_TAG.sub(r"\1", text).strip()


def test_every_row_of_both_sets_is_converted(converted: Any) -> None:
    for data in (CORPUS, PUNIE):
        if data.is_dir():
            assert read_rows(converted(data, FAIR) / "rejected.jsonl") == []


def same_code(code: str, source: str) -> bool:
    """Equal to the byte; around bare code the line breaks that belong to the tags are not code."""
    return code == source or code == source.removeprefix("\n").removesuffix("\n")


@pytest.mark.parametrize("data", DATA)
def test_the_flawed_arm_keeps_the_rows_as_they_are(data: Path, converted: Any) -> None:
    for split in SPLITS:
        assert read_rows(converted(data, FLAWED) / f"{split}.jsonl") == read_rows(data / f"{split}.jsonl")
