"""What is kept of a model in this process: whole replies where they are wanted, costs, scores without it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.core.cli import Options, artifacts_root
from stages.core.errors import StageError
from stages.core.records import EvalSummary, RawReply, read_lines, read_record
from stages.eval.__main__ import main
from stages.eval.engines.generation import Generator
from stages.eval.score import SCORER_VERSION
from stages.eval.store import ReplyStore
from tests.models import BuiltOnce
from tests.parrot import write_parrot
from tests.pipeline import Pipeline, run_work
from tests.small_suite import SUITE

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


@pytest.fixture
def options(qwen2_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """An evaluation of the quantized model into the default place."""
    model = qwen2_run.folder("quantize")
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    suite = tmp_path / "three.json"
    suite.write_text(json.dumps(SUITE), "utf-8")
    options = replace(qwen2_run.options("eval", suites=(str(suite),), max_tokens=5), out=None, data=None)
    shutil.copytree(model, options.input("quantize"))
    return options


def test_a_run_that_is_stopped_keeps_its_costs(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = ReplyStore.keep
    kept: list[Any] = []

    def stop_after_one(*given: Any) -> None:
        if kept:
            raise KeyboardInterrupt
        kept.append(given)
        keep(*given)

    with monkeypatch.context() as patch:
        patch.setattr(ReplyStore, "keep", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            run_work("eval", options)
    (path,) = artifacts_root().glob("*/replies/*/costs.json")
    costs = json.loads(path.read_text("utf-8"))
    begun = costs["suites"]["three"]
    assert begun["load_seconds"] > 0
    assert begun["peak_memory_gb"] > 0.1
    begun["peak_memory_gb"] = 99.0  # as a session that is over would have left it
    path.write_text(json.dumps(costs), "utf-8")
    folder = run_work("eval", options).folder / "three"
    timing = read_record(folder / "summary.json", EvalSummary).timing
    assert timing.peak_memory_gb == 99.0
    assert (timing.load_seconds, timing.first_token_seconds) == (
        begun["load_seconds"], begun["first_token_seconds"],
    )  # fmt: skip


@pytest.mark.parametrize("kept", [True, False])
def test_a_model_that_is_gone_is_scored_again(
    kept: bool, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_work("eval", options).folder / "three"
    names = ("replies.jsonl", "scores.jsonl")
    before = [(folder / name).read_bytes() for name in names]
    timing = read_record(folder / "summary.json", EvalSummary).timing
    shutil.rmtree(options.input("quantize"))
    assert run_work("eval", options).up_to_date
    if not kept:
        shutil.rmtree(folder.parents[3] / "replies")
    monkeypatch.setattr("stages.eval.recipe.SCORER_VERSION", SCORER_VERSION + 1)
    monkeypatch.setattr(Generator, "load", None)
    assert not run_work("eval", options).up_to_date
    assert [(folder / name).read_bytes() for name in names] == before
    assert read_record(folder / "summary.json", EvalSummary).timing == timing
    more = options.preset.eval.model_copy(update={"max_tokens": 6})
    longer = replace(options, preset=options.preset.model_copy(update={"eval": more}), force=True)
    with pytest.raises(StageError, match=r"no output of quantize in .*: run .*nox -s quantize"):
        run_work("eval", longer)
    elsewhere = replace(options, data=folder / "none")
    with pytest.raises(StageError, match=r"no output of quantize in .*none, which does not exist: run"):
        run_work("eval", elsewhere)
