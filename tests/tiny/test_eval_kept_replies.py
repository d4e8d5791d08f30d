"""What is kept of a model in this process: whole replies where they are wanted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.core.records import RawReply, read_lines
from stages.eval.__main__ import main
from tests.models import BuiltOnce
from tests.parrot import write_parrot

CALL = '<tool_call>{"name":"f" ,"arguments":{} }</tool_call>'
F = {"type": "function", "function": {"name": "f", "description": "Does it.", "parameters": {}}}


def write_suite(place: Path, *queries: dict[str, Any]) -> str:
    path = place / "own.jsonl"
    path.write_text("".join(json.dumps(query) + "\n" for query in queries), "utf-8")
    return str(path)


def test_a_reply_that_may_have_several_calls_is_not_cut_off_behind_the_first(
    built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    parrot = str(write_parrot(built.model("qwen2", quantize=False), tmp_path / "parrot", CALL, " again"))
    one = {"function": "f"}
    suite = write_suite(
        tmp_path,
        {"id": "one", "query": "Do it.", "tools": [F], "accept": [one]},
        {"id": "either", "query": "Do it.", "tools": [F], "accept": [one, {"calls": [one, one]}]},
        {"id": "both", "query": "Do it twice.", "tools": [F], "accept": [{"calls": [one, one]}]},
        {"id": "none", "query": "Hello.", "tools": [F]},
    )
    words = ["--model", parrot, "--data", parrot, "--suites", suite, "--max-tokens", "24"]
    for out, more, ends in (
        ("cut", ["--stop-at-call"], ["call", "length", "length", "call"]),
        ("whole", [], ["length"] * 4),
    ):
        assert main([*words, *more, "--out", str(tmp_path / out)]) == 0
        (folder,) = (tmp_path / out).glob("*/")
        replies = read_lines(folder / "replies.jsonl", RawReply)
        assert [reply.finish for reply in replies] == ends
        assert {reply.text.startswith(CALL) for reply in replies} == {True}


def test_a_query_that_the_template_refuses_is_named(
    built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    folder = tmp_path / "model"
    shutil.copytree(built.model("qwen2"), folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    refusal = "{%- if tools %}{{ raise_exception('No tools\\n here.') }}{%- endif %}"
    config["chat_template"] = refusal + config["chat_template"]
    path.write_text(json.dumps(config), "utf-8")
    suite = write_suite(
        tmp_path, {"id": "hi", "query": "Hi.", "tools": []}, {"id": "do", "query": "Do.", "tools": [F]}
    )
    words = ["--model", str(folder), "--data", str(folder), "--suites", suite, "--max-tokens", "2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "eval: the chat template refuses query do (No tools here.): name another one with" in error
    assert error.count("\n") == 1
