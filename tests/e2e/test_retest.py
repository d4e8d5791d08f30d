"""The whole experiment as a user starts it, on the embedded model and a handful of rows.

Two training steps teach nothing, and the verdict is not looked at: this is about the way from
rows to a report, and about a second run that finds everything done.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.core.records import (
    EvalSummary,
    LossPoint,
    Manifest,
    Verdict,
    read_lines,
    read_record,
    write_record,
)
from tests.pipeline import ROOT, cut_corpus, start_stage
from tests.waiting import HANGS

STAGES = ("convert_data", "audit", "train", "fuse", "quantize", "eval", "report")
SUITE = {
    "name": "own",
    "version": 1,
    "description": "Three requests of our own.",
    "queries": [
        {
            "id": "types", "category": "typecheck", "kind": "tool", "query": "Are there type errors in src?",
            "accept": [{"function": "typecheck", "arguments": {"path": {"path": "src"}}}],
        },
        {
            "id": "lint", "category": "ruff_check", "kind": "tool", "query": "Lint app.py for me.",
            "accept": [{"function": "ruff_check"}],
        },
        {"id": "concept", "category": "concept", "kind": "direct", "query": "What is a context manager?"},
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Retest:
    """One run of the command."""

    code: int
    out: str
    error: str
    seconds: float
    log: list[dict[str, Any]]

    def ends(self) -> list[tuple[str, bool | None]]:
        """The stages that ended, in order, and whether each had nothing to do."""
        ends = [line for line in self.log if line["event"] == "end" and line["stage"] in STAGES]
        return [(line["stage"], line.get("up_to_date")) for line in ends]


def run_retest(arguments: list[str], place: Path) -> Retest:
    before = set(place.glob("logs/*.jsonl"))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "stages.retest_fair", *arguments, "--out", str(place)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("FAIR_RETEST_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    seconds = time.perf_counter() - started
    (log,) = set(place.glob("logs/*.jsonl")) - before
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return Retest(done.returncode, done.stdout, done.stderr, seconds, lines)


def list_arguments(root: Path, *, arms: str = "fair", iters: int = 2, tokens: int = 12) -> list[str]:
    return [
        *("--arms", arms, "--data", str(root / "data"), "--suites", str(root / "own.json")),
        *("--max-tokens", str(tokens), "--iters", str(iters)),
        *("--num-layers", "1", "--batch-size", "2", "--despite-audit"),
    ]


def list_reports() -> dict[str, int]:
    """The user's own reports, with the time of their last change."""
    return {str(p): p.stat().st_mtime_ns for p in (ROOT / "reports").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Retest, Retest]:
    """The place of the outputs, and the same command run twice."""
    root = tmp_path_factory.mktemp("retest")
    cut_corpus(root / "data", {"train": (1, 2, 3, 6, 10, 21), "valid": (0,)})
    (root / "own.json").write_text(json.dumps(SUITE), "utf-8")
    arguments = list_arguments(root)
    reports = list_reports()
    place = root / "out"
    both = run_retest(arguments, place), run_retest([*arguments, "--json"], place)
    assert list_reports() == reports  # a run with --out leaves the user's reports alone
    return place, *both


def test_it_ends_with_a_report(runs: tuple[Path, Retest, Retest]) -> None:
    place, first, _ = runs
    assert (first.code, first.error) == (0, ""), first.out
    assert [stage for stage, _ in first.ends()] == list(STAGES)
    assert {done for stage, done in first.ends() if stage != "report"} == {False}
    page = (place / "reports" / "smol.md").read_text("utf-8")
    assert "SmolLM2-135M-Instruct" in page
    verdict = read_record(place / "reports" / "smol.json", Verdict)
    assert (verdict.suite, verdict.candidate_decision.n, verdict.arm) == ("own", 3, "fair")
    assert verdict.supported_answer == "inconclusive"
    assert str(place / "reports" / "smol.md") in first.out


def test_the_report_names_the_command_that_was_typed(runs: tuple[Path, Retest, Retest]) -> None:
    place = runs[0]
    page = (place / "reports" / "smol.md").read_text("utf-8")
    data, suite = place.parent / "data", place.parent / "own.json"
    options = "--iters=2 --batch-size=2 --num-layers=1 --max-tokens=12"
    typed = f"--model smol --arms fair --data {data} {options} --suites={suite} --force --out {place}"
    assert f"run `nox -s retest_fair -- {typed}`; no number from this set-up decides." in page


def test_every_stage_left_its_output(runs: tuple[Path, Retest, Retest]) -> None:
    place = runs[0]
    folders = {
        "convert_data": "json+tools",
        "audit": "json+tools+eos+parser+six_bit",
        "train": "json+tools/seed0",
        "fuse": "json+tools+eos/seed0",
        "quantize": "json+tools+eos+six_bit/seed0",
        "eval": "json+tools+eos+parser+six_bit/seed0/own",
    }
    found = {p.parent.relative_to(place).as_posix() for p in (place / "smol").rglob("manifest.json")}
    assert found == {f"smol/{stage}/{slug}" for stage, slug in folders.items()}
    losses = read_lines(place / "smol/train/json+tools/seed0/log.jsonl", LossPoint)
    assert [(p.step, p.kind) for p in losses] == [(0, "valid"), (2, "train"), (2, "valid")]
    assert losses[0].loss < 8  # a real model knows the language
    summary = read_record(
        place / "smol/eval" / folders["eval"].removeprefix("eval/") / "summary.json", EvalSummary
    )
    assert summary.tool_or_direct.n == 3
    assert summary.timing.disk_gb == pytest.approx(0.11, abs=0.03)


def test_the_log_has_timings_and_memory(runs: tuple[Path, Retest, Retest]) -> None:
    log = runs[1].log
    for stage in STAGES:
        events = [line["event"] for line in log if line["stage"] == stage]
        assert events[0] == "start"
        assert events[-1] == "end"
        assert "memory" in events
    assert all(line["rss_gb"] > 0.01 for line in log if line["event"] == "memory")
    ends = [line for line in log if line["event"] == "end"]
    assert all(line["ok"] and line["seconds"] > 0 for line in ends)


def test_a_second_run_redoes_nothing(runs: tuple[Path, Retest, Retest]) -> None:
    _, _, second = runs
    assert second.code == 0, second.error
    assert second.ends() == [(stage, None if stage == "report" else True) for stage in STAGES]


def test_what_was_made_otherwise_is_named_before_any_work(runs: tuple[Path, Retest, Retest]) -> None:
    """Outputs and an unfinished training of the arm and the seed that would come last."""
    place = runs[0]
    begun = place / "smol/train/json+tools/.seed5.partial"
    recipe = read_record(place / "smol/train/json+tools/seed0/manifest.json", Manifest).recipe
    settings = recipe.settings | {"iters": 9, "seed": 5}
    (begun / "checkpoints" / "0000001").mkdir(parents=True)
    (begun / "checkpoints" / "0000001" / "state.json").write_text("{}")
    write_record(begun / "recipe.json", recipe.model_copy(update={"settings": settings}))
    arguments = [*list_arguments(place.parent, arms="flawed,fair", iters=3, tokens=13), "--seeds", "0,5"]
    files = sorted((place / "smol").rglob("*"))
    done = run_retest(arguments, place)
    assert done.code == 2
    made = {
        "audit/json+tools+eos+parser+six_bit": "max_tokens=12 (now 13)",
        "train/json+tools/seed0": "iters=2 (now 3), and a finished run takes no more steps",
        "eval/json+tools+eos+parser+six_bit/seed0/own": "max_tokens=12 (now 13)",
    }
    told = [f"{place}/smol/{folder} was made with {changed}" for folder, changed in made.items()]
    told.append(f"an unfinished run with iters=9 (now 3) is in {begun}")
    remedy = "--force makes everything anew, --out FOLDER keeps what is there"
    assert done.error == f"retest_fair: {'; '.join(told)}: {remedy}\n"
    assert done.ends() == [("convert_data", True), ("fuse", True), ("quantize", True)]
    assert sorted((place / "smol").rglob("*")) == files
    shutil.rmtree(begun)


def test_with_json_stdout_holds_nothing_else(runs: tuple[Path, Retest, Retest]) -> None:
    _, first, second = runs
    answer = json.loads(second.out)
    assert (answer["stage"], list(answer["reports"])) == ("report", ["smol"])
    told = [line.partition(" in ")[0] for line in second.error.splitlines() if ": up to date in " in line]
    assert told == [f"{stage}: up to date" for stage in STAGES if stage != "report"]
    assert first.error == ""


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_keeps_stdout_clean_for_json(stage: str, runs: tuple[Path, Retest, Retest]) -> None:
    """With `--force` all of its work is done, the words of the libraries below included."""
    place = runs[0]
    options: dict[str, list[str]] = {
        "convert_data": ["--data", str(place.parent / "data")],
        "train": ["--iters", "2", "--num-layers", "1", "--batch-size", "2", "--ranks", "1"],
        "eval": ["--suites", str(place.parent / "own.json"), "--max-tokens", "12"],
        "audit": ["--suites", str(place.parent / "own.json")],
        "report": ["--out", str(place.parent / "reports")],
    }
    out = [] if stage == "report" else ["--force", "--out", str(place.parent / "again" / stage)]
    process = start_stage(stage, [*options.get(stage, []), *out, "--json"], place)
    written, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0
    assert json.loads(written)["stage"] == stage
    assert written.count("\n") == 1
