"""Evaluation: batched replies are the model's own; they are used again only for the same question."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx_lm
import pytest

from stages.core import cpu
from stages.core.artifact import build_artifact, require_artifact
from stages.core.bfcl import CATEGORIES
from stages.core.cli import Options, artifacts_root
from stages.core.compute import load_arrays
from stages.core.errors import StageError
from stages.core.fixes import FAIR
from stages.core.preset import Preset, load_preset
from stages.core.prompts import case_row
from stages.core.records import EvalSummary, Rate, RawReply, Recipe, Score, read_lines, read_record
from stages.core.render import find_turns
from stages.core.suite import load_suite
from stages.core.tokenizer import load_tokenizer
from stages.eval.__main__ import main
from stages.eval.engines import Question, Sampling
from stages.eval.engines.generation import Generator, common_prefix, write_prompt
from stages.eval.engines.local import LocalEngine
from stages.eval.request import Request
from stages.eval.score import SCORER_VERSION
from stages.eval.stage import evaluate
from tests.models import END_OF_TEXT, FAMILIES, IM_END, KINDS, BuiltOnce, Family, Kind
from tests.parrot import write_parrot
from tests.pipeline import Pipeline, run_work, stock_functions

SYSTEM = {"role": "system", "content": "You are a coding assistant for Python projects."}
QUESTIONS = (
    "Check the types in src/app.py, please.",
    "Hi",
    "What is a generator? Explain it with one short example, and say when a list is better than one.",
    "Hi",
    "Run the tests of tests/test_cart.py and tell me which of them fail.",
)
ROWS: list[dict[str, Any]] = [
    {"messages": [SYSTEM, {"role": "user", "content": q}], "tools": []} for q in QUESTIONS
]
IDS = [f"q{i}" for i in range(len(ROWS))]
SUITE = {
    "name": "three",
    "version": 1,
    "description": "Three requests.",
    "queries": [
        {
            "id": "types", "category": "typecheck", "kind": "tool", "query": QUESTIONS[0],
            "accept": [{"function": "typecheck", "arguments": {"path": {"path": "src/app.py"}}}],
        },
        {
            "id": "tests", "category": "pytest_run", "kind": "tool", "query": QUESTIONS[4],
            "accept": [{"function": "pytest_run"}],
        },
        {"id": "direct", "category": "concept", "kind": "direct", "query": QUESTIONS[2]},
    ],
}  # fmt: skip


def load_engine(folder: Path, batch: int = 16, dialect: str = "hermes") -> Generator:
    return Generator.load(folder, None, batch, dialect)


def answer(
    engine: Generator | LocalEngine, max_tokens: int, picked: slice = slice(None), **sampling: Any
) -> list[RawReply]:
    """The engine's replies to the questions, in their order."""
    kept: dict[str, RawReply] = {}
    questions = [Question(query, row) for query, row in zip(IDS, ROWS, strict=True)][picked]
    engine.answer(
        questions, Sampling(max_tokens, **sampling), lambda q, reply: kept.update({q.id: reply}), "test"
    )
    return [kept[question.id] for question in questions]


def generate_alone(folder: Path, max_tokens: int, stops: list[int] | None = None) -> list[list[int]]:
    """The greedy replies of stock mlx-lm, one prompt after the other, in float32 like ours."""
    with stock_functions():
        loaded: Any = mlx_lm.load(str(folder))
        model, tokenizer = loaded
        model.set_dtype(mx.float32)
        if stops is not None:
            tokenizer.eos_token_ids = set(stops)
        replies = []
        for row in ROWS:
            prompt = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)
            stream = mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=max_tokens)
            replies.append([response.token for response in stream])
    return replies


def strengthen_layers(folder: Path, target: Path) -> Path:
    """A copy whose layers say more: with tied embeddings and random weights a model echoes its last token."""
    shutil.copytree(folder, target)
    arrays = load_arrays(folder / "model.safetensors")
    for name in arrays:
        if name.endswith(("o_proj.scales", "o_proj.biases", "down_proj.scales", "down_proj.biases")):
            arrays[name] = arrays[name] * 40
    mx.save_safetensors(str(target / "model.safetensors"), arrays, {"format": "mlx"})
    return target


def slide_attention(folder: Path) -> None:
    """Give the first layer of a llama a sliding window, wider than any prompt here."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4096}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


# Replies


@pytest.mark.parametrize("batch", [16, 2])
@pytest.mark.parametrize("kind", [*KINDS, "sliding"])
def test_batched_replies_are_those_of_one_by_one_generation(
    kind: Kind | Literal["sliding"], batch: int, built: BuiltOnce, tmp_path: Path
) -> None:
    folder = built.model("llama" if kind == "sliding" else kind, quantize=kind != "qwen3_moe")
    if kind in ("llama", "sliding"):
        folder = strengthen_layers(folder, tmp_path / "llama")
    if kind == "sliding":  # whose layers cannot share a prefix
        slide_attention(folder)
    expected = generate_alone(folder, 12)
    assert all(len(set(reply)) > 1 for reply in expected)
    assert len({tuple(reply) for reply in expected}) == 4
    engine = load_engine(folder, batch)
    replies = answer(engine, 12)
    assert [reply.id for reply in replies] == IDS
    assert [reply.text for reply in replies] == [engine.tokenizer.decode(tokens) for tokens in expected]
    assert [reply.tokens for reply in replies] == [len(tokens) for tokens in expected]
    assert replies[1].text == replies[3].text
    if kind == "llama":
        assert cpu.sees_prefixes(engine.model)
        with stock_functions():  # as on a GPU: the prefix lies under each row
            assert not cpu.sees_prefixes(engine.model)
            assert [reply.text for reply in answer(engine, 12)] == [reply.text for reply in replies]


def test_a_stop_token_ends_a_reply_and_the_limit_makes_it_a_runaway(built: BuiltOnce) -> None:
    folder = built.model("qwen2")
    free = generate_alone(folder, 9)
    stops = [free[0][4], free[2][2]]  # what the first and the third reply say at some point
    expected = generate_alone(folder, 9, stops)
    assert len(expected[0]) <= 5
    assert len(expected[2]) <= 3
    engine = load_engine(folder)
    engine.stops = stops
    replies = answer(engine, 9)
    for reply, tokens in zip(replies, expected, strict=True):
        ended = tokens[-1] in stops
        assert reply.finish == ("stop" if ended else "length")
        assert reply.tokens == len(tokens)
        assert reply.text == engine.tokenizer.decode(tokens[:-1] if ended else tokens)
    assert {reply.finish for reply in replies} == {"stop", "length"}
    assert [reply.prompt_tokens for reply in replies] == [
        len(engine.tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)["input_ids"])
        for row in ROWS
    ]


def test_one_query_alone(built: BuiltOnce) -> None:
    engine = load_engine(built.model("qwen2"))
    together = answer(engine, 6)
    for i in (0, 1):
        assert answer(engine, 6, slice(i, i + 1))[0].text == together[i].text


def test_a_sampled_reply_depends_on_its_prompt_and_draw_alone(built: BuiltOnce) -> None:
    engine = load_engine(built.model("qwen2"))
    first, second = (answer(engine, 3, temperature=0.8, sample=i) for i in (0, 1))
    greedy = answer(engine, 3)
    assert len({tuple(reply.text for reply in replies) for replies in (first, second, greedy)}) == 3
    assert first[1].text == first[3].text, "the same prompt"
    engine.batch = 2
    again = answer(engine, 3, temperature=0.8, sample=1)
    assert [reply.text for reply in again] == [reply.text for reply in second]
    cold = answer(engine, 3, slice(2), temperature=1e-6)
    assert [reply.text for reply in cold] == [reply.text for reply in greedy[:2]]


def test_the_time_is_measured(built: BuiltOnce) -> None:
    engine = LocalEngine(built.model("qwen2"), "content", 2, "hermes")
    engine.load()
    started = time.perf_counter()
    replies = answer(engine, 6)
    passed = time.perf_counter() - started
    parts = [reply.seconds or 0.0 for reply in replies]
    assert all(part > 0 for part in parts)
    assert 0.02 * passed < sum(parts) <= passed  # a busy machine may stop between any two of them
    costs = engine.costs()
    assert (costs.first_token_seconds or 0) > 0
    assert costs.load_seconds is not None
    assert (costs.disk_gb or 0) > 0.01
    assert (costs.peak_memory_gb or 0) > 0.1
    answer(engine, 2)
    assert engine.costs().first_token_seconds == costs.first_token_seconds, "measured once"


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2]], 1),
        ([[1, 2, 3, 4], [1, 2, 4], [1, 2, 3, 5]], 2),
        ([[1], [1, 2]], 0),
        ([[2, 1], [1, 2]], 0),
    ],
)
def test_common_prefix_leaves_each_prompt_a_token(prompts: list[list[int]], length: int) -> None:
    assert common_prefix(prompts) == length


def test_a_model_without_a_stop_token_is_refused(built: BuiltOnce, tmp_path: Path) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(built.model("qwen2"), folder)
    for name in ("config.json", "generation_config.json"):
        data = json.loads((folder / name).read_text("utf-8"))
        data.pop("eos_token_id")
        (folder / name).write_text(json.dumps(data), "utf-8")
    with pytest.raises(StageError, match=r"/config\.json names no eos_token_id: no reply would ever end$"):
        load_engine(folder)


# The stage


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "three.json"
    path.write_text(json.dumps(SUITE), "utf-8")
    return str(path)


@pytest.fixture
def options(qwen2_run: Pipeline, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """An evaluation of the quantized model into the default place."""
    qwen2_run.folder("quantize")
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    return replace(qwen2_run.options("eval", suites=(suite,), max_tokens=5), out=None)


def test_a_whole_evaluation(options: Options) -> None:
    outcome = run_work("eval", options)
    folder = outcome.folder / "three"
    assert sorted(p.name for p in folder.iterdir()) == [
        "codes.jsonl", "manifest.json", "replies.jsonl", "scores.jsonl", "summary.json",
    ]  # fmt: skip
    replies = read_lines(folder / "replies.jsonl", RawReply)
    assert [reply.id for reply in replies] == ["types", "tests", "direct"]
    assert {(reply.finish, reply.tokens) for reply in replies} == {("length", 5)}
    scores = read_lines(folder / "scores.jsonl", Score)
    assert all(score.runaway for score in scores)
    summary = read_record(folder / "summary.json", EvalSummary)
    assert (summary.suite, summary.suite_version, summary.dialect) == ("three", 1, "hermes")
    (suite,) = options.preset.eval.suites
    assert summary.suite_fingerprint == load_suite(suite).fingerprint
    manifest = require_artifact(folder, "eval", "")
    assert manifest.given == options.given
    assert options.data is not None
    quantized = require_artifact(options.data, "quantize", "")
    assert manifest.stop_ids == quantized.stop_ids == [IM_END, END_OF_TEXT]
    assert (manifest.seed, manifest.template) == (0, quantized.template)
    # Random words are no call: right for the direct query alone.
    assert (summary.tool_or_direct.k, summary.tool_or_direct.n) == (1, 3)
    assert summary.tool_queries is not None
    assert summary.direct_queries is not None
    assert summary.runaway is not None
    assert (summary.tool_queries.k, summary.tool_queries.n) == (0, 2)
    assert (summary.direct_queries.k, summary.direct_queries.n) == (1, 1)
    assert (summary.runaway.k, summary.runaway.n) == (3, 3)
    assert summary.strict is not None
    assert (summary.strict.format, summary.strict.whole) == (None, Rate(k=0, n=3))
    assert sum(summary.causes.values()) == 3
    assert summary.timing.generated_tokens == 15
    assert summary.timing.disk_gb is not None
    assert summary.timing.disk_gb > 0.01
    assert outcome.lines[0].startswith("three: tool or direct 1/3 (33%), tool 0/2 (0%), ")
    again = run_work("eval", options)
    assert (again.up_to_date, again.lines) == (True, outcome.lines)


def kept_replies(options: Options) -> Path:
    """The file of the replies that were kept for later runs."""
    (path,) = artifacts_root().glob(f"{options.preset.name}/replies/*/replies.jsonl")
    return path


def test_a_chat_template_that_was_not_trained_with_is_refused(options: Options, tmp_path: Path) -> None:
    """No manifest tells that a file was exchanged after it was written."""
    assert options.data is not None
    model = shutil.copytree(options.data, tmp_path / "exchanged")
    with (model / "chat_template.jinja").open("a", encoding="utf-8") as file:
        file.write("{# changed #}")
    with pytest.raises(StageError, match=r"^\S+/exchanged holds another chat template than [^\n]+--force$"):
        run_work("eval", replace(options, data=model))


def test_replies_are_scored_again_for_another_parser(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_work("eval", options)
    # What only a model could tell apart: the kept reply is changed, so a new one would be seen.
    path = kept_replies(options)
    code = 'typecheck("src/app.py")'
    call = (
        f"<tool_call><function=execute_code>\n<parameter=code>\n{code}\n</parameter>\n</function></tool_call>"
    )
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    (types,) = (line for line in lines if line["reply"]["id"] == "types")
    types["reply"]["text"] = call
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    capsys.readouterr()
    legacy = replace(options, fixes=tuple(fix for fix in options.fixes if fix != "parser"))
    second = run_work("eval", legacy)
    assert "three: 3 replies of an earlier run used again" in capsys.readouterr().out
    assert second.folder != first.folder
    assert (second.folder / "three" / "replies.jsonl").read_text("utf-8").count("function=execute_code") == 1
    summary = read_record(second.folder / "three" / "summary.json", EvalSummary)
    assert summary.dialect == "qwen3_coder"
    timing = read_record(first.folder / "three" / "summary.json", EvalSummary).timing
    assert summary.timing == timing
    assert summary.strict is not None
    assert (summary.tool_or_direct.k, summary.strict.arguments) == (2, Rate(k=1, n=2))  # strictly readable


@pytest.mark.parametrize("change", ["accepted calls", "version", "scorer"])
def test_replies_are_kept_when_only_their_scores_change(
    change: str, options: Options, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_work("eval", options)
    before = (first.folder / "three" / "replies.jsonl").read_bytes()
    changed = json.loads(json.dumps(SUITE))
    if change == "accepted calls":
        changed["queries"][1]["accept"] = [{"function": "typecheck"}]
    elif change == "version":
        changed["version"] = 2
    else:
        for module in ("recipe", "summary"):
            monkeypatch.setattr(f"stages.eval.{module}.SCORER_VERSION", SCORER_VERSION + 1)
    Path(options.preset.eval.suites[0]).write_text(json.dumps(changed), "utf-8")
    monkeypatch.setattr(Generator, "load", None)  # a model that is gone cannot be asked again
    path = first.folder / "three" / "summary.json"
    timing = read_record(path, EvalSummary).timing
    capsys.readouterr()
    second = run_work("eval", options)
    assert "three: 3 replies of an earlier run used again" in capsys.readouterr().out
    assert (second.folder / "three" / "replies.jsonl").read_bytes() == before
    assert read_record(path, EvalSummary).timing == timing
    assert run_work("eval", options).up_to_date
    other = replace(options, preset=with_max_tokens(options, 4))
    with pytest.raises(StageError, match=r"max_tokens=5 \(now 4\): --force replaces it"):
        run_work("eval", other)


def with_max_tokens(options: Options, tokens: int) -> Preset:
    setup = options.preset.eval.model_copy(update={"max_tokens": tokens})
    return options.preset.model_copy(update={"eval": setup})


@pytest.mark.parametrize(
    ("change", "used"),
    [
        ("tools", 0),
        ("system", 0),
        ("max_tokens", 0),
        ("query", 2),
        ("model", 0),
        ("force", 3),
        ("ask again", 0),
    ],
)
def test_replies_to_another_question_are_not_used_again(
    change: str, used: int, options: Options, qwen2_run: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    run_work("eval", options)
    legacy = tuple(fix for fix in options.fixes if fix != "parser")
    other = replace(options, fixes=legacy)  # in a place of its own, where nothing is yet
    if change == "tools":
        other = replace(options, fixes=FAIR)
    elif change == "system":
        setup = options.preset.model.model_copy(update={"system": "You are a pirate."})
        other = replace(other, preset=options.preset.model_copy(update={"model": setup}))
    elif change == "max_tokens":
        setup_ = options.preset.eval.model_copy(update={"max_tokens": 4})
        other = replace(other, preset=options.preset.model_copy(update={"eval": setup_}))
    elif change == "query":
        changed = json.loads(json.dumps(SUITE))
        changed["queries"][2]["query"] += " Why?"
        Path(options.preset.eval.suites[0]).write_text(json.dumps(changed), "utf-8")
    elif change == "model":
        other = replace(other, data=qwen2_run.folder("fuse"))
    else:
        other = replace(options, force=True)
    capsys.readouterr()
    evaluate(other, Request(ask_again=change == "ask again"))
    out = capsys.readouterr().out
    assert ("of an earlier run used again" in out) == bool(used)
    if used:
        assert f"three: {used} replies of an earlier run used again" in out


@pytest.mark.parametrize("sampled", [False, True])
def test_a_killed_evaluation_goes_on_with_what_is_left(sampled: bool, options: Options) -> None:
    if sampled:
        setup = options.preset.eval.model_copy(update={"temperature": (0.8,), "samples": 2})
        options = replace(options, preset=options.preset.model_copy(update={"eval": setup}))
    first = run_work("eval", options)
    texts = {path: read_texts(path) for path in sorted(first.folder.glob("**/replies.jsonl"))}
    assert len(texts) == (2 if sampled else 1)
    path = kept_replies(options)
    lines = path.read_bytes().splitlines()
    # As a kill leaves it: no output, one reply kept, the next one cut off in the middle.
    shutil.rmtree(first.folder)
    path.write_bytes(b"\n".join(lines[:2]) + b"\n" + lines[2][:50])
    run_work("eval", options)
    assert {path: read_texts(path) for path in texts} == texts
    kept = [json.loads(line) for line in path.read_bytes().splitlines() if line and line.endswith(b"}")]
    assert len({(line["prompt"], line["sample"]) for line in kept}) == len(kept) == 3 * len(texts)


def read_texts(path: Path) -> list[str]:
    return [reply.text for reply in read_lines(path, RawReply)]


@pytest.mark.parametrize(
    ("dialect", "text", "then"),
    [
        ("pythonic", "[f(a=1)]", " again"),
        ("hermes", '<tool_call>{"name":"f" ,"arguments":{} }</tool_call>', " again"),
    ],
)
def test_a_reply_can_be_cut_off_behind_its_call(
    dialect: str, text: str, then: str, built: BuiltOnce, tmp_path: Path
) -> None:
    parrot = write_parrot(built.model("qwen2", quantize=False), tmp_path / "parrot", text, then)
    engine = load_engine(parrot, 2, dialect)
    engine.stops = []
    endless = answer(engine, 20, slice(2))
    assert {reply.finish for reply in endless} == {"length"}
    assert all(reply.text.startswith(text + then) for reply in endless)
    cut = answer(engine, 20, slice(2), stop_at_call=True)
    assert {(reply.finish, reply.text) for reply in cut} == {("call", text)}
    engine.dialect = "qwen3_coder"
    assert [r.text for r in answer(engine, 20, slice(2), stop_at_call=True)] == [r.text for r in endless]


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_every_template_writes_the_given_turns_of_situations(family: Family | None, built: BuiltOnce) -> None:
    """Qwen's own ones, and the one that SmolLM2 gets."""
    setup = load_preset("smol").model
    if family is None:
        tokenizer = load_tokenizer(built.model("llama"), setup)
    else:
        tokenizer = load_tokenizer(built.tokenizer(family))
    turns = find_turns(tokenizer)
    for query in load_suite("situations").queries:
        row = case_row(query, setup, FAIR)
        text = write_prompt(Question(query.id, row), tokenizer)
        assert text.endswith(turns.opening + turns.given), query.id
        assert [turn["content"] for turn in row["messages"] if turn["content"] not in text] == [], query.id
        calls = [call["function"] for turn in row["messages"] for call in turn.get("tool_calls", ())]
        names = [tool["function"]["name"] for tool in row["tools"]] + [call["name"] for call in calls]
        assert [name for name in names if name not in text] == [], query.id


def test_a_bare_model_folder(
    built: BuiltOnce, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --data any model folder is evaluated, the base model for one."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    folder, out = built.model("qwen2"), tmp_path / "out"
    arguments = ["--model", str(folder), "--data", str(folder), "--fixes", "json,eos,parser"]
    assert main([*arguments, "--suites", suite, "--max-tokens", "3", "--out", str(out)]) == 0
    summary = read_record(out / "three" / "summary.json", EvalSummary)
    assert (summary.title, summary.arm) == ("qwen2-4bit", "json+eos+parser")


def test_missing_model_names_the_command(
    built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    folder = str(built.model("qwen2"))
    place = f"FAIR_RETEST_ARTIFACTS={tmp_path}"
    same = f"-- --model {folder} --fixes fair --seed 2"
    more = f"{same} --suites=core20"
    known = ", ".join(["core20, extended, situations", *CATEGORIES])
    suites = f"use one of {known}, or the path of a .json or .jsonl file\n"
    adapter = tmp_path / "adapter"
    with build_artifact(adapter, Recipe(stage="train", settings={}, inputs={})):
        pass
    for extra, words in (
        ([], f": run {place} nox -s quantize {same} (or {place} nox -s retest_fair {same} for all stages)\n"),
        (["--data", str(adapter)], f"or run {place} nox -s quantize {same}\n"),
        (
            ["--suites", "core20"],
            f": run {place} nox -s quantize {same} (or {place} nox -s retest_fair {more} for all stages)\n",
        ),
        (["--data", folder, "--suites", "core21"], f"eval: no suite 'core21': {suites}"),
        (["--suites", "core20,core20"], "--suites core20,core20: name each suite once\n"),
    ):
        assert main(["--model", folder, "--seed", "2", *extra]) == 2
        error = capsys.readouterr().err
        assert error.startswith("eval: ")
        assert error.endswith(words)
        assert error.count("\n") == 1
