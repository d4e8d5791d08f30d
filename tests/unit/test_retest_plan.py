"""The plan of a retest: its steps, what each stage is told, and the disk it will need."""

from __future__ import annotations

import ast
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from stages.convert_data.__main__ import main as convert
from stages.core.chatml import Turn, join_chatml
from stages.core.cli import SEEDLESS, Options, build_parser, read_options
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FLAWED, FixSet, arm_slug, require_taken
from stages.core.preset import SECTIONS, load_preset
from stages.retest_fair.__main__ import main
from stages.retest_fair.processes import stage_python
from stages.retest_fair.stage import (
    SIDE_BY_SIDE,
    Plan,
    Step,
    check_inputs,
    choose_jobs,
    estimate_disk_gb,
    explain_all,
    list_calls,
    list_groups,
    list_steps,
    name_command,
    report_arguments,
    stage_arguments,
)

ROOT = Path(__file__).resolve().parents[2]
SUBSETS: list[FixSet] = [subset for n in range(6) for subset in combinations(FAIR, n)]
ORDER = ("convert_data", "audit", "train", "fuse", "quantize", "eval")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters=",\0"), min_size=1).map(str.strip)
WORD = TEXT.filter(lambda text: text not in ("", "--"))  # argparse of Python 3.11 loses a value of --
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "iters": st.integers(1, 10**6),
        "learning_rate": st.floats(1e-9, 1e3),
        "grad_checkpoint": st.booleans(),
        "lora_keys": st.lists(WORD, max_size=3).map(tuple),
        "suites": st.lists(WORD, min_size=1, max_size=3, unique=True).map(tuple),
        "bits": st.sampled_from([3, 4, 5, 6, 8]),
        "legacy_bits": st.sampled_from([3, 4, 5, 6, 8]),
        "max_tokens": st.integers(1, 9999),
        "system": WORD,
        "schedule": st.sampled_from(["constant", "cosine", "linear"]),
    },
)


@pytest.fixture(autouse=True)
def keep_signals() -> Iterator[None]:
    """What a command does to signals stays in the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def plan(*arms: FixSet, **more: Any) -> Plan:
    overrides, seeds = more.pop("overrides", {}), more.pop("seeds", (0,))
    options = Options(load_preset("smol", overrides), FAIR, overrides=overrides, **more)
    return Plan(options, arms, "smol", seeds)


def sections_of(stage: str) -> tuple[str, ...]:
    """The preset sections whose options a stage's command line takes, read from its own source."""
    tree = ast.parse((ROOT / "stages" / stage / "__main__.py").read_text("utf-8"))
    given_sections = [
        ast.literal_eval(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "sections"
    ]
    return tuple(given_sections[0]) if given_sections else ()


def test_both_arms_convert_and_audit_before_any_training() -> None:
    stages = ("fuse", "quantize", "eval")
    assert list(list_steps(plan(FLAWED, FAIR))) == [
        Step("convert_data", FLAWED), Step("audit", FLAWED), Step("convert_data", FAIR), Step("audit", FAIR),
        Step("train", FLAWED, 0), Step("train", FAIR, 0),
        *(Step(stage, FLAWED, 0) for stage in stages), *(Step(stage, FAIR, 0) for stage in stages),
    ]  # fmt: skip


def test_only_trainings_of_one_seed_run_side_by_side() -> None:
    asked = plan(FLAWED, FAIR, ("json", "tools"), seeds=(4, 1))
    groups = list(list_groups(asked, 2))
    assert [step for group in groups for step in group] == list(list_steps(asked))
    assert [(group[0].seed, len(group)) for group in groups if group[0].stage == "train"] == [(4, 2), (1, 2)]
    assert {len(group) for group in groups if group[0].stage != "train"} == {1}
    assert {len(group) for group in list_groups(asked, 1)} == {1}
    done = {Step("train", FLAWED, 4)}
    left = [group for group in list_groups(asked, 2, done) if group[0].stage == "train"]
    assert [len(group) for group in left] == [1, 2], "what is finished keeps no place"


def test_the_lines_of_arms_side_by_side_begin_with_their_names() -> None:
    asked = plan(FLAWED, FAIR)
    both = list_calls(asked, [Step("train", FLAWED, 0), Step("train", FAIR, 0)])
    assert [call.label for call in both] == ["flawed", "fair  "]
    assert [call.label for call in list_calls(asked, [Step("train", FAIR, 0)])] == [""]


def test_a_large_model_trains_one_arm_after_the_other() -> None:
    smol, large = plan(FLAWED, FAIR), plan(FLAWED, FAIR, overrides={"billions": 7.0})
    assert choose_jobs(large, memory_gb=2000, cores=64) == 1
    assert choose_jobs(plan(FLAWED, FAIR, overrides={"ranks": 2}), memory_gb=64, cores=8) == 1
    assert [choose_jobs(smol, memory_gb=gb, cores=2) for gb in (4, 10.7, 10.9, 64)] == [1, 1, 2, SIDE_BY_SIDE]
    assert choose_jobs(smol, memory_gb=64, cores=1) == 1
    doubled = plan(FLAWED, FAIR, overrides={"batch_size": 16})
    assert [choose_jobs(doubled, memory_gb=gb, cores=2) for gb in (20, 22)] == [1, 2]
    for own in ({"dropout": 0.1}, {"fine_tune_type": "dora"}):
        tripled = plan(FLAWED, FAIR, overrides=own)
        assert [choose_jobs(tripled, memory_gb=gb, cores=2) for gb in (32, 33)] == [1, 2]
    assert choose_jobs(plan(FLAWED, FAIR, overrides={"billions": 1e-10})) == 1, "counted as none"
    assert choose_jobs(smol) in (1, 2)


def test_every_seed_trains_every_arm_and_data_are_converted_once() -> None:
    steps = list(list_steps(plan(FLAWED, FAIR, seeds=(4, 1))))
    assert [step.seed for step in steps] == [None] * 4 + [4] * 8 + [1] * 8
    trained = [(step.fixes, step.seed) for step in steps if step.stage == "train"]
    assert trained == [(FLAWED, 4), (FAIR, 4), (FLAWED, 1), (FAIR, 1)]
    shared = list(list_steps(plan(("json", "tools"), FAIR, seeds=(4, 1))))
    assert [(step.fixes, step.seed) for step in shared if step.stage == "train"] == [
        (("json", "tools"), 4),
        (("json", "tools"), 1),
    ]


def test_the_flags_of_the_rows_reach_the_conversion_alone() -> None:
    asked = plan(FAIR, rows={"valid_share": 0.1, "tools": "my tools.json", "dedup": True})
    words = ["--valid-share=0.1", "--tools=my tools.json", "--dedup"]
    assert stage_arguments(asked, Step("convert_data", FAIR))[-3:] == words
    assert not set(words) & set(stage_arguments(asked, Step("train", FAIR, 0)))


def test_the_conversion_counts_rows_that_are_too_long_for_this_training() -> None:
    asked = plan(FAIR, overrides={"max_seq_length": 512, "iters": 7})
    arguments = stage_arguments(asked, Step("convert_data", FAIR))
    assert arguments[-1] == "--max-seq-length=512"
    assert (
        read_options(build_parser("convert_data", "").parse_args(arguments)).preset.train.max_seq_length
        == 512
    )
    assert asked.options.command("convert_data").endswith(" --max-seq-length=512")
    assert "--iters=7" in stage_arguments(asked, Step("train", FAIR, 0))


def test_the_seed_of_the_rows_that_are_set_aside_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    assert main(["--seed", "3", "--valid-share", "0.2", "--suites", "no_such.json"]) == 2
    assert "valid: 0.2 of the rows, drawn with seed 0, the same ones for every seed" in capfd.readouterr().out


def test_shared_work_is_done_once() -> None:
    steps = list(list_steps(plan(("json", "tools"), FAIR)))
    assert [step.stage for step in steps] == [
        "convert_data", "audit", "audit", "train", "fuse", "quantize", "eval", "fuse", "quantize", "eval",
    ]  # fmt: skip


@given(st.lists(st.sampled_from(SUBSETS), min_size=1, max_size=5))
def test_every_arm_gets_every_output_after_what_it_needs(arms: list[FixSet]) -> None:
    steps = list(list_steps(plan(*arms)))
    made = [(step.stage, arm_slug(step.fixes, step.stage)) for step in steps]
    assert len(made) == len(set(made))
    for fixes in arms:
        at = [made.index((stage, arm_slug(fixes, stage))) for stage in ORDER]
        assert at == sorted(at)
    first_training = next(n for n, (stage, _) in enumerate(made) if stage == "train")
    assert {stage for stage, _ in made[:first_training]} == {"convert_data", "audit"}
    assert {stage for stage, _ in made[first_training:]} == {"train", "fuse", "quantize", "eval"}


@pytest.mark.parametrize("stage", ORDER)
@given(overrides=OVERRIDES, fixes=st.sampled_from(SUBSETS), seed=st.integers(0, 2**31), force=st.booleans())
def test_a_stage_reads_back_what_it_is_told(
    stage: str, overrides: dict[str, Any], fixes: FixSet, seed: int, force: bool
) -> None:
    """The stage's own parser makes the same set-up of the arguments, as far as it takes part in it."""
    run = plan(fixes, overrides=overrides, seeds=(seed,), force=force, data=Path("some folder"))
    step = next(step for step in list_steps(run) if step.stage == stage)
    arguments = stage_arguments(run, step)
    options = read_options(build_parser(stage, "", sections_of(stage)).parse_args(arguments))
    assert (options.fixes, options.force) == (fixes, force)
    assert options.seed == (0 if stage in SEEDLESS else seed)
    assert options.data == (Path("some folder") if stage == "convert_data" else None)
    assert options.out is None
    if stage == "quantize":  # it is told the arm's own number of bits alone
        assert options.preset.model == run.options.preset.model
        assert options.preset.quantize.group_size == run.options.preset.quantize.group_size
        assert options.bits == replace(run.options, fixes=fixes).bits
        require_taken(options.overrides, [fixes])
        return
    for section in ("model", *sections_of(stage)):
        assert getattr(options.preset, section) == getattr(run.options.preset, section)


def test_every_option_reaches_a_stage() -> None:
    reached = {"model"}.union(*(sections_of(stage) for stage in ORDER))
    assert reached == set(SECTIONS)
    assert set(sections_of("audit")) == set(SECTIONS) - {"model"}


def test_to_ask_again_is_for_the_evaluation_alone() -> None:
    asked = replace(plan(FAIR), ask_again=True)
    told = {step.stage: "--ask-again" in stage_arguments(asked, step) for step in list_steps(asked)}
    assert told == {stage: stage == "eval" for stage in ORDER}
    assert "--ask-again" not in stage_arguments(plan(FAIR), Step("eval", FAIR, 0))


def write_rows(folder: Path) -> Path:
    folder.mkdir()
    row = json.dumps({"text": join_chatml([Turn("user", "Why?"), Turn("assistant", "So.")])})
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text(row)
    return folder


def test_an_output_made_otherwise_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The arm `flawed`, which comes first, has none yet, and gets none."""
    data, out = write_rows(tmp_path / "data"), tmp_path / "out"
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(out))
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    assert convert(["--data", str(data), "--max-seq-length", "500"]) == 0
    made = sorted((out / "smol").rglob("*"))
    capfd.readouterr()
    assert main(["--arms", "flawed,fair", "--data", str(data), "--out", str(out)]) == 2
    assert capfd.readouterr().err == (
        f"retest_fair: {out}/smol/convert_data/json+tools was made with max_seq_length=500 (now 1024): "
        "--force makes everything anew, --out FOLDER keeps what is there\n"
    )
    assert sorted((out / "smol").rglob("*")) == made


def test_a_damaged_output_is_made_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A retest with --force would train anew for one file that is gone."""
    data, out = write_rows(tmp_path / "data"), tmp_path / "out"
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(out))
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    assert convert(["--data", str(data)]) == 0
    (out / "smol/convert_data/json+tools/valid.jsonl").unlink()
    capfd.readouterr()
    assert main(["--arms", "fair", "--data", str(data), "--out", str(out)]) == 2
    error = capfd.readouterr().err
    place, command = error.removesuffix("\n").split(": put it back, or make it again with ")
    assert place == f"retest_fair: {out}/smol/convert_data/json+tools lacks valid.jsonl"
    start = f"FAIR_RETEST_ARTIFACTS={out} nox -s convert_data -- "
    assert convert(shlex.split(command.removeprefix(start))) == 0
    assert (out / "smol/convert_data/json+tools/valid.jsonl").is_file()
    kept = "E: its files are not as eval wrote them: make it again of the kept replies with"
    named = name_command(f"{kept} --force", plan(FAIR), Step("eval", FAIR, 0))
    assert named.startswith(f"{kept} FAIR_RETEST_ARTIFACTS={out} nox -s eval -- --model ")
    assert explain_all([named]) == named


def test_several_problems_share_their_remedy() -> None:
    made = "A was made with x=1 (now 2)"
    begun = "an unfinished run with y=1 (now 2) is in B"
    remedy = ": --force makes everything anew, --out FOLDER keeps what is there"
    problems = [
        f"{made}: --force replaces it, --out FOLDER keeps both",
        f"{begun}: finish it with those options, or discard it with --force",
    ]
    assert explain_all(problems) == f"{made}; {begun}{remedy}"
    assert explain_all(problems[:1]) == made + remedy
    busy = "another process is writing C: wait for it to end"
    assert explain_all([busy]) == busy
    assert explain_all([problems[0], busy]) == f"{made}; {busy}{remedy}"


def test_the_report_is_told_the_seed_and_the_reference() -> None:
    assert report_arguments(plan(FAIR, seeds=(3, 1))) == ["--model", "smol", "--seed", "3"]
    run = plan(FAIR, overrides={"reference": "14b"})
    assert report_arguments(run) == ["--model", "smol", "--seed", "0", "--reference", "14b"]
    again = plan(FAIR, force=True, out=Path("my out"))
    assert report_arguments(again)[4:] == ["--force", "--out", "my out/reports"]


@pytest.mark.parametrize("name", ["smol.md", "smol.json", "smol-loss.svg"])
def test_a_report_changed_by_hand_is_found_before_anything_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "out")
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    for words, place in (([], Path("reports")), (["--out", "here"], Path("here/reports"))):
        place.mkdir(parents=True)
        (place / name).write_text("# My notes\n")
        before = sorted(Path().rglob("*"))
        assert main(words) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"retest_fair: {place / name} was not written by the report, or was changed")
        assert error.count("\n") == 1
        assert sorted(Path().rglob("*")) == before
    forced = plan(FAIR, force=True)
    check_inputs(forced)


def test_the_estimate_counts_the_arms_that_have_no_model_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    one, two = estimate_disk_gb(plan(FAIR)), estimate_disk_gb(plan(FLAWED, FAIR))
    # An arm keeps a 16-bit model (2 bytes a weight) and a 6-bit one with scales (about 0.8).
    assert two - one == pytest.approx(one - 0.1)
    assert 0.135 * 2.8 < two - one < 0.135 * 4
    assert estimate_disk_gb(plan(FAIR, tuple(n for n in FAIR if n != "parser"))) == one, (
        "they share the model"
    )
    made = plan(FAIR).options.place("quantize")
    made.mkdir(parents=True)
    assert estimate_disk_gb(plan(FAIR)) == one, "an empty folder is no model"
    (made / "manifest.json").write_text("{}")
    assert estimate_disk_gb(plan(FAIR)) == 0.1
    assert estimate_disk_gb(plan(FLAWED, FAIR)) == one
    assert estimate_disk_gb(plan(FAIR, seeds=(1,))) == one, "that one has another seed"
    assert estimate_disk_gb(plan(FAIR, seeds=(0, 1, 2))) == two, "two seeds lack theirs"


def test_no_room_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    assert main(["--billions", "1000000000"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("retest_fair: the whole retest needs about ")
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", [["--samples", "3"], ["--temperature", "0.7"], ["--prompts", "a.txt"]])
def test_a_sweep_is_no_retest(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "out"))
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    assert main(words) == 2
    error = capfd.readouterr().err
    assert error.startswith("retest_fair: --temperature, --samples and --prompts make a sweep")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", ["model", "weights", "shard", "suite"])
def test_what_is_missing_is_found_before_anything_runs(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "out"))
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    folder = tmp_path / "model"
    folder.mkdir()
    arguments, reason = ["--model", "7b", "--source", str(folder)], f"no model folder {folder}"
    if lost != "model":
        (folder / "config.json").write_text("{}")
        reason = f"{folder} lacks its weights (.safetensors)"
    if lost == "shard":
        shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        (folder / "model-1.safetensors").write_bytes(b"")
        reason = f"{folder} lacks model-2.safetensors and 1 more"
    if lost == "suite":
        arguments, reason = ["--suites", "core21"], "no suite 'core21'"
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"retest_fair: {reason}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_whole_model_folder_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.zeros((3, 5), np.float16)}, tmp_path / "model.safetensors")
    preset = load_preset("7b", {"source": str(tmp_path)})
    check_inputs(Plan(Options(preset, FAIR), (FAIR,), "7b", (0,)))
    check_inputs(plan(FAIR))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(StageError, match=r"model\.safetensors is cut off, or no safetensors file"):
        check_inputs(Plan(Options(preset, FAIR), (FAIR,), "7b", (0,)))


@pytest.mark.parametrize(("dtype", "width"), [(np.float16, 2), (np.float32, 4)])
def test_a_model_folder_needs_the_disk_of_its_own_weights(
    dtype: Any, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the preset's billions nor 16 bits are taken for those of a folder that is here."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "out"))
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.zeros((1000, 500), dtype)}, tmp_path / "model.safetensors")
    for preset in (load_preset(str(tmp_path)), load_preset("7b", {"source": str(tmp_path)})):
        needed = estimate_disk_gb(Plan(Options(preset, FAIR), (FAIR,), "own", (0,)))
        assert needed == pytest.approx(0.1 + 500_000 * (width + 1.2) / 1e9)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--arms", "fair,foul"], "unknown fix foul"),
        (["--model", "9b"], "unknown model '9b'"),
        (["--iters", "0"], "--iters 0: use 1 or more"),
        (["--arms", ""], "no fix is named: use fair, flawed, or any of json"),
        (["--arms", "fair,,flawed"], "no fix is named"),
        (["--fixes", ""], "no fix is named"),
        (["--arms", "fair", "--fixes", "flawed"], "--fixes names one arm and --arms several"),
        (["--arms", "fair,flawed,fair"], "the arm fair is named twice"),
        (["--suites", ""], "--suites '': name at least 1"),
        (["--suites", "core20,core20"], "--suites core20,core20: name each suite once"),
        (["--itres", "5"], "unrecognized arguments: --itres 5"),
        (["--check", "--suites", "nosuch"], "no suite 'nosuch'"),
        (["--seed", "-1"], "--seed -1"),
        (["--seeds", "0,0"], "argument --seeds: '0,0': name each seed once, as in 0,1,2"),
        (["--seeds", "-1,2"], "--seeds"),
        (["--seeds", ","], "argument --seeds: ',': name each seed once"),
        (["--seeds", "1,x"], "argument --seeds: 'x' is not a whole number"),
        (["--valid-share", "0"], "--valid-share 0: training needs a valid split, use a share above 0 and"),
        (["--valid-share", "1.5"], "--valid-share 1.5: training needs a valid split"),
        (["--seeds", "0,1", "--seed", "0"], "--seed names one seed and --seeds several"),
        (
            ["--arms", "flawed,json", "--bits", "8"],
            "--bits 8 is for the fix six_bit, and not for flawed and json: give --legacy-bits 8",
        ),
        (
            ["--fixes", "fair", "--legacy-bits", "4"],
            "--legacy-bits 4 is for arms without the fix six_bit, and not for fair: give --bits 4",
        ),
    ],
)
def test_mistakes_are_said_in_one_line(
    arguments: list[str], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert reason in error
    assert error.count("\n") == 1


def test_a_check_looks_where_the_outputs_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "elsewhere"))
    (tmp_path / "out").mkdir()
    asked = ["--check", "--billions", "1000000000", "--out", str(tmp_path / "out")]
    assert main(asked) == 2
    assert f"GB of disk in {tmp_path / 'out'}, " in capfd.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("ending", ["", "-3-12"])
def test_without_environments_of_their_own_stages_run_in_this_one(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nox -P 3.12` gives every environment its version's ending."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / f"retest_fair{ending}"))
    assert stage_python("train") == sys.executable
    own = tmp_path / f"train{ending}" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert stage_python("train") == str(own)
    assert (
        subprocess.run([stage_python("train"), "-c", "print(1)"], capture_output=True, check=True).stdout
        == b"1\n"
    )


def test_a_stage_that_fails_says_the_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "")
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    assert main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    out, error = capfd.readouterr()
    assert error.startswith("convert_data: ")
    assert error.count("\n") == 1
    assert out.endswith("retest_fair: stopped at convert_data; what was finished before it is kept\n")


def test_a_retest_says_which_arm_an_option_reaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("FAIR_RETEST_LOG", "")
    asked = ["--arms", "flawed,fair", "--bits", "8", "--iters", "3", "--billions", "1000000000"]
    assert main(asked) == 2, "no disk has that much room"
    out = capfd.readouterr().out
    assert "  --bits=8 reaches fair alone\n" in out
    assert out.count("reaches") == 1


def test_an_arm_that_is_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--arms", ","]) == 2
    assert "no fix is named" in capfd.readouterr().err
    with pytest.raises(StageError):
        load_preset("smol", {"arms": ()})
