"""One model in this process and behind a real mlx_lm.server: the same decisions, whoever reads the calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.core.records import EvalSummary, RawReply, Score, read_lines, read_record
from stages.core.tokenizer import read_template
from stages.eval.__main__ import main
from tests.mlx_server import serving_model
from tests.models import BuiltOnce
from tests.parrot import CUT, write_parrot
from tests.small_suite import SUITE

CALL = '<tool_call>{"name":"f" ,"arguments":{} }</tool_call>'


@pytest.mark.parametrize(
    ("says", "template"), [("a call", None), ("a call", "chatml_hermes"), ("anything", None)]
)
def test_the_same_model_decides_the_same_behind_a_server(
    says: str, template: str | None, built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With the model's own chat template or with ours: the server tells by its text how calls are written."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    model = built.model("qwen2", quantize=False)
    if says == "a call":
        text = template and read_template(template)
        model = write_parrot(model, tmp_path / "parrot", CALL, "<|endoftext|>", text)
    suite = tmp_path / "three.json"
    suite.write_text(json.dumps(SUITE), "utf-8")
    words = ["--model", str(model), "--suites", str(suite), "--max-tokens", "14"]
    assert main([*words, "--data", str(model), "--out", str(tmp_path / "here")]) == 0
    with serving_model(model, tmp_path / "home") as address:
        assert main([*words, "--endpoint", address, "--out", str(tmp_path / "there")]) == 0
    here, there = (tmp_path / side / "three" for side in ("here", "there"))
    mine, theirs = (read_lines(side / "replies.jsonl", RawReply) for side in (here, there))
    assert [reply.prompt_tokens for reply in mine] == [reply.prompt_tokens for reply in theirs]
    assert [reply.finish for reply in mine] == [reply.finish for reply in theirs]
    assert [reply.tokens for reply in mine] == [reply.tokens for reply in theirs]
    decided = [
        [(score.strict.calls, score.strict.decision) for score in read_lines(side / "scores.jsonl", Score)]
        for side in (here, there)
    ]
    assert decided[0] == decided[1]
    if says == "a call":
        assert {reply.text for reply in mine} == {CALL}
        assert {reply.calls_by for reply in theirs} == {"server"}
        assert decided[0][0][0] == [{"name": "f", "arguments": {}}]
    else:
        assert [reply.text for reply in mine] == [reply.text for reply in theirs]
        assert {reply.finish for reply in theirs} == {"length"}
    assert read_record(there / "summary.json", EvalSummary).engine == "endpoint"
    capsys.readouterr()
    assert main(["--compare", str(here), str(there)]) == 0
    out = capsys.readouterr().out
    assert "queries that differ in: decision 0, calls 0, dialect 0, stop 0, prompt 0" in out


def test_what_the_server_cannot_read_is_malformed_and_ends_nothing(
    built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It drops a call that is no JSON, and the connection where a call has no arguments."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    # The last character of a question says what is replied, and the comment that calls are read as JSON.
    template = "{# <tool_call> tool_call.name #}{{ messages[-1]['content'] }}"
    unread = CUT.join(["<", "tool", "_call", ">", "{[", "</tool_call>"])
    replies = {".": '<tool_call>{"name":"f"}</tool_call>', "!": unread, "?": "Hello"}
    model = write_parrot(
        built.model("qwen2", quantize=False), tmp_path / "parrot", replies, "<|endoftext|>", template
    )
    queries = [
        {"id": "dropped", "query": "Run the tests.", "accept": [{"function": "pytest_run"}]},
        {"id": "unread", "query": "Run them!", "accept": [{"function": "pytest_run"}]},
        {"id": "direct", "query": "What is a generator?", "kind": "direct"},
    ]
    suite = tmp_path / "three.json"
    suite.write_text(json.dumps({**SUITE, "queries": queries}), "utf-8")
    words = ["--model", str(model), "--dialect", "hermes", "--suites", str(suite), "--max-tokens", "20"]
    with serving_model(model, tmp_path / "home") as address:
        assert main([*words, "--endpoint", address, "--out", str(tmp_path / "there")]) == 0
    assert "could not read 1 reply of its model, such as dropped: counted" in capsys.readouterr().out
    replied = read_lines(tmp_path / "there" / "three" / "replies.jsonl", RawReply)
    assert [(reply.text, reply.calls_by, reply.finish) for reply in replied] == [
        ("", "server", None), ("", "server", "stop"), ("Hello", "model", "stop"),
    ]  # fmt: skip
    scores = read_lines(tmp_path / "there" / "three" / "scores.jsonl", Score)
    assert [score.cause for score in scores] == ["malformed", "malformed", None]
