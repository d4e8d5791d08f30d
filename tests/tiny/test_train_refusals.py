"""What training refuses in one line, before hours of work."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stages.core import progress
from stages.core.cli import Options
from stages.core.errors import INTERRUPTED_EARLY, StageError
from stages.core.fixes import parse_fixes
from stages.core.preset import load_preset
from stages.core.records import LossPoint, read_lines, write_record
from stages.core.render import find_turns
from stages.core.tokenizer import load_tokenizer
from stages.train.__main__ import main
from stages.train.checkpoint import State
from stages.train.recipe import make_recipe
from stages.train.rows import load_rows
from tests.models import BuiltOnce
from tests.pipeline import Pipeline, run_work, start_stage
from tests.training import train_arguments
from tests.waiting import finish, wait_for_line


def expect_refusal(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], pattern: str, out: Path
) -> str:
    """What was said before it."""
    capsys.readouterr()
    assert main(arguments) == 2
    said, error = capsys.readouterr()
    assert re.fullmatch(rf"train: {pattern}\n", error), error
    assert not out.exists()
    return said


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        ({"batch_size": 14}, "batch size 14 is larger than the 13 rows: lower --batch-size"),
        ({"num_layers": 3}, "--num-layers 3 is more than the model's 2 layers"),
        ({"lora_keys": "self_attn.qkv_proj"}, "--lora-keys self_attn.qkv_proj names no module of this model"),
        (
            {"max_seq_length": 100},
            r"\S+/train\.jsonl: \d rows are longer than 100 tokens, the first in line \d+ "
            r"\(1\d\d\): raise --max-seq-length or shorten them",
        ),
        ({"learning_rate": -1}, r"--learning-rate -1\.0: use a number above 0"),
        ({"seed": -1}, "--seed -1: use 0 or a positive number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unusable_options(
    overrides: dict[str, Any],
    pattern: str,
    qwen2_run: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    arguments = train_arguments(qwen2_run, tmp_path / "out", **overrides)
    said = expect_refusal(capsys, arguments, pattern, tmp_path / "out")
    assert "loading 1/" not in said, "before the weights are read"


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ('{"messages": ', "is not a converted row: run nox -s convert_data on this data"),
        ('{"prompt": "x"}', "is not a converted row: run nox -s convert_data on this data"),
        ("[1]", "is not a converted row: run nox -s convert_data on this data"),
        ('{"messages": {"role": "user"}}', "is not a converted row: run nox -s convert_data on this data"),
        (
            '{"text": "<|im_start|>user\\nHi<|im_end|>"}',
            "has no assistant's turn to learn from: remove the row",
        ),
    ],
)
def test_unusable_rows(line: str, pattern: str, built: BuiltOnce, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    good = '{"text": "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHo<|im_end|>"}\n'
    path.write_text(good + line + "\n", "utf-8")
    tokenizer = load_tokenizer(built.tokenizer("qwen2.5"))
    with pytest.raises(StageError, match=rf"train\.jsonl:2 {pattern}$"):
        load_rows(tmp_path, "train", tokenizer, find_turns(tokenizer), 64)
    path.write_text("", "utf-8")
    (tmp_path / "valid.jsonl").touch()
    for split, what in (("train", "train on"), ("valid", "validate with")):
        with pytest.raises(StageError, match=rf"{split}\.jsonl is empty: nothing to {what}$"):
            load_rows(tmp_path, split, tokenizer, find_turns(tokenizer), 64)


def test_missing_data_names_the_command(
    qwen2_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    arguments = ["--model", str(qwen2_run.model), "--out", str(tmp_path / "out")]
    model = re.escape(str(qwen2_run.model))
    place = rf"FAIR_RETEST_ARTIFACTS={tmp_path}/artifacts"
    same = rf"-- --model {model} --fixes fair"
    pattern = (
        rf"no output of convert_data in \S+, which does not exist: run {place} nox -s convert_data {same} "
        rf"\(or {place} nox -s retest_fair {same} for all stages\)"
    )
    expect_refusal(capsys, arguments, pattern, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (
            ["--fixes", "fair"],
            r"\S+ was converted for json, and --fixes fair is about rows of json\+tools: give the --fixes of "
            "its conversion, or other rows",
        ),
        (["--fixes", "eos"], r".* for json, and --fixes eos is about rows of flawed: give the --fixes .*"),
        (
            ["--dialect", "qwen3_coder"],
            r"\S+ was converted for the dialect hermes, not qwen3_coder: give the --model and --dialect of "
            "its conversion, or other rows",
        ),
        (
            ["--backend", "nccl"],
            "--backend nccl is how several machines talk, and .*: name the machines with --hosts, or .*",
        ),
        (["--rank", str(2**31)], "--rank 2147483648: use a number below 2147483648"),
    ],
)
def test_options_that_contradict_the_rows_or_each_other(
    words: list[str], pattern: str, qwen2_run: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*train_arguments(qwen2_run, tmp_path / "out"), *words]
    expect_refusal(capsys, arguments, pattern, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_rows_serve_every_arm_that_differs_later_and_every_preset_of_their_dialect(
    qwen2_run: Pipeline,
) -> None:
    options = qwen2_run.options("train")
    for text in ("json", "json+eos", "json+parser+six_bit"):
        assert make_recipe(replace(options, fixes=parse_fixes(text))) == make_recipe(options)
    preset = load_preset("7b", {"source": str(qwen2_run.model)})
    assert make_recipe(replace(options, preset=preset)).inputs == make_recipe(options).inputs


def test_what_is_stopped_before_anything_is_saved_says_so(qwen2_run: Pipeline, tmp_path: Path) -> None:
    arguments = train_arguments(qwen2_run, tmp_path / "out")
    process = start_stage("train", arguments, tmp_path / "artifacts")
    wait_for_line(process, "LoRA on")
    process.send_signal(signal.SIGTERM)
    code, _, error = finish(process)
    assert (code, error) == (130, f"train: {INTERRUPTED_EARLY}\n")


def refuse_run(options: Options, out: Path, reason: str) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(StageError, match=reason):
        run_work("train", type(options)(**vars(options) | {"out": out}))
    assert sorted(out.parent.iterdir()) == before, "a refusal leaves nothing behind"


def test_what_is_wrong_is_said_before_the_rows_are_read(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """The last row is broken, which would come first if rows were read first."""
    data = tmp_path / "data"
    shutil.copytree(qwen2_run.folder("convert_data"), data)
    with (data / "train.jsonl").open("a") as file:
        file.write("no row\n")
    place = tmp_path / "runs"
    place.mkdir()

    def options(**overrides: Any) -> Options:
        made = qwen2_run.options("train", **overrides)
        return type(made)(**vars(made) | {"data": data})

    refuse_run(options(batch_size=15), place / "out", r"^batch size 15 is larger than the 14 rows")
    refuse_run(options(num_layers=3), place / "out", r"^--num-layers 3 is more than the model's 2 layers")
    refuse_run(options(lora_keys=["mlp.up"]), place / "out", r"^--lora-keys mlp.up names no module")
    refuse_run(options(report_to=["wandb"]), place / "out", r"^--report-to wandb: install wandb")
    with FileLock(place / ".out.lock"):
        refuse_run(options(), place / "out", r"^another process is writing \S+/out: wait for it to end$")
    begun = place / ".out.partial" / "checkpoints" / "0000002"
    begun.mkdir(parents=True)
    write_record(begun / "state.json", State(step=2))
    write_record(begun.parents[1] / "recipe.json", make_recipe(options(iters=9)))
    refuse_run(
        options(), place / "out", r"^an unfinished run with iters=9 \(now 4\) is in \S+/\.out\.partial: "
    )
    recipe = make_recipe(options())
    others = recipe.model_copy(update={"inputs": recipe.inputs | {"data": "0" * 64}})
    write_record(begun.parents[1] / "recipe.json", others)
    refuse_run(options(), place / "out", r"^an unfinished run with other data is in \S+\.out\.partial: ")
    refuse_run(options(), place / "other", r"train\.jsonl:14 is not a converted row")


def test_a_run_that_saved_nothing_blocks_no_other(
    qwen2_run: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = qwen2_run.options("train", learning_rate=1e30, num_layers=1, save_every=100)
    reason = (
        r"in step 2, rows .*: lower --learning-rate or set --clip-norm 1; there is no good checkpoint yet$"
    )
    with pytest.raises(StageError, match=reason):
        run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"}))
    assert (tmp_path / ".out.partial" / "log.jsonl").is_file()
    capsys.readouterr()
    options = qwen2_run.options("train", iters=1, num_layers=1, warmup=1)
    assert not run_work("train", type(options)(**vars(options) | {"out": tmp_path / "out"})).up_to_date
    said = capsys.readouterr().out
    assert f"\n  until it is done, log.jsonl and checkpoints are in {tmp_path}/.out.partial\n" in said
    assert "  WARNING: --warmup 1 leaves no step of 1 " in said
    points = read_lines(tmp_path / "out" / "log.jsonl", LossPoint)
    assert [point.kind for point in points] == ["valid", "train", "valid"]
    assert all(point.memory_gb for point in points)


def test_a_choice_by_calls_needs_calls(qwen2_run: Pipeline, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(qwen2_run.folder("convert_data"), data)
    lines = (data / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (data / "valid.jsonl").write_text("".join(line for line in lines if "tool_calls" not in line), "utf-8")
    options = qwen2_run.options("train", choose_by="calls")
    options = type(options)(**vars(options) | {"data": data})
    refuse_run(options, tmp_path / "out", r"^--choose-by calls: no row of valid has a call")


def test_rows_that_were_edited_are_other_rows(qwen2_run: Pipeline, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(qwen2_run.folder("convert_data"), data)
    options = replace(qwen2_run.options("train", iters=1, num_layers=1), data=data)
    run_work("train", replace(options, out=out))
    assert run_work("train", replace(options, out=out)).up_to_date
    rows = (data / "train.jsonl").read_text("utf-8")
    (data / "train.jsonl").write_text(
        rows.replace('"role":"user","content":"', '"role":"user","content":"So: ', 1)
    )
    assert (data / "train.jsonl").read_text("utf-8") != rows
    refuse_run(options, out, "was made with other data: --force replaces it")
