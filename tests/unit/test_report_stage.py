"""The files that a report writes, whose it replaces, and what the command line says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.errors import StageError
from stages.core.fixes import FAIR
from stages.core.records import Verdict
from stages.report.__main__ import main
from stages.report.request import Request
from tests.report_world import World, answer_right

ROOT = Path(__file__).resolve().parents[2]


def test_all_reports_are_written_and_a_problem_comes_last(two_arms: World) -> None:
    assert sorted(two_arms.write(model=None)) == ["first-experiment", "smol"]
    two_arms.evaluate(FAIR, answer_right, model="8b")
    shutil.rmtree(two_arms.reports)
    with pytest.raises(StageError, match="no audit of 8b, arm fair"):
        two_arms.write(model=None)
    assert sorted(p.name for p in two_arms.reports.glob("*.md")) == ["first-experiment.md", "smol.md"]


def test_same_records_same_bytes(two_arms: World) -> None:
    two_arms.write()
    first = {p.name: p.read_bytes() for p in two_arms.reports.iterdir()}
    two_arms.write()
    assert {p.name: p.read_bytes() for p in two_arms.reports.iterdir()} == first
    assert sorted(first) == ["smol-loss.svg", "smol.json", "smol.md"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("smol.md", "# My notes\n"), ("smol.md", ""), ("smol.json", "[1]"), ("smol.json", "{")),
        ("smol-loss.svg", "<svg/>"),
    ],
)
def test_files_of_others_are_not_written_over(two_arms: World, name: str, text: str) -> None:
    two_arms.reports.mkdir()
    path = two_arms.reports / name
    path.write_text(text)
    with pytest.raises(StageError) as raised:
        two_arms.write()
    assert str(raised.value).startswith(f"{path} was not written by the report, or was changed since: ")
    assert [p.name for p in two_arms.reports.iterdir()] == [name]
    assert path.read_text() == text
    two_arms.write(force=True)
    assert "**Verdict:" in two_arms.page()
    two_arms.write()


def test_a_report_that_was_changed_is_kept(two_arms: World) -> None:
    two_arms.write()
    for name, old, new in (
        ("smol.md", "## Decision matrix", "We decided to wait.\n\n## Decision matrix"),
        ("smol.md", "", "We decided to wait.\n"),
        ("smol.json", '"seed": 0', '"seed": 1'),
        ("smol-loss.svg", "</svg>", "<!-- ours --></svg>"),
    ):
        path = two_arms.reports / name
        text = path.read_text()
        changed = text.replace(old, new, 1) if old else text + new
        assert changed != text
        path.write_text(changed)
        with pytest.raises(StageError, match=f"{name} was not written by the report, or was changed since"):
            two_arms.write()
        assert path.read_text() == changed
        path.write_text(text)
    two_arms.write()


def test_reports_of_other_outputs_lie_beside_them(
    two_arms: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(two_arms.artifacts))  # main sets it anew
    assert main(["--data", str(two_arms.artifacts), "--model", "smol"]) == 0
    assert (two_arms.artifacts / "reports" / "smol.md").is_file()
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("model", [[], ["--model", "smol"]])
def test_a_folder_without_evaluations_of_a_stage_is_no_root(
    model: list[str], world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "artifacts")  # main sets it anew
    Path("empty").mkdir()
    suite = world.evaluate(FAIR, answer_right)
    suite.parent.rename("my_served")  # as eval --out my_served leaves it
    for folder, words in (
        ("empty", "no evaluation in empty: --data takes the root of all outputs, such as artifacts or"),
        ("my_served", "my_served is an output of nox -s eval -- --out, which is for --compare and in no"),
        (f"my_served/{suite.name}", "is an output of nox -s eval -- --out, which is for --compare and in no"),
    ):
        before = sorted(Path().rglob("*"))
        assert main(["--data", folder, *model]) == 2
        out, error = capsys.readouterr()
        assert words in error
        assert (out, error.count("\n")) == ("", 1)
        assert sorted(Path().rglob("*")) == before, "no report of anything else, not even a log"


def test_several_files_of_others_are_one_readable_line(two_arms: World) -> None:
    """The reports that can be written are, and no file is named twice."""
    two_arms.write(model=None)
    places = [
        two_arms.reports / name for name in ("first-experiment.md", "smol.md", "smol.json", "smol-loss.svg")
    ]
    for path in places[:2]:
        path.write_text("# My notes")
    with pytest.raises(StageError) as two:
        two_arms.write(model=None)
    changed = "were not written by the report, or were changed since: move them away, "
    assert str(two.value).startswith(f"{places[0]}, {places[1]} {changed}")
    for path in places[2:]:
        path.write_text("{}")
    with pytest.raises(StageError) as four:
        two_arms.write(model=None)
    assert str(four.value).startswith(f"{places[0]}, {places[1]}, {places[2]} and 1 more {changed}")
    assert str(four.value).count("--force") == 1
    assert [path.read_text() for path in places] == ["# My notes"] * 2 + ["{}"] * 2


def test_another_reports_verdict_is_kept(two_arms: World) -> None:
    two_arms.write(model=None)
    other = (two_arms.reports / "first-experiment.json").read_bytes()
    (two_arms.reports / "smol.json").write_bytes(other)
    with pytest.raises(StageError, match=r"smol\.json was not written by the report"):
        two_arms.write(model=None)
    assert (two_arms.reports / "smol.json").read_bytes() == other


def test_the_last_lines_say_verdict_rule_and_place(
    two_arms: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "smol", "--out", str(two_arms.reports)]) == 0
    rule, why, verdict, done = capsys.readouterr().out.splitlines()
    assert (
        why == "  smol: Too few queries: the 95 % interval of the ratio reaches from 'split' to 'use small'."
    )
    assert rule == (
        "  smol: the rule's answer to the point estimate: use small; 20 of 20 queries of core20 decided "
        "right, 100 % of 30B, 95 % interval 84 % to 120 %"
    )
    place = two_arms.reports / "smol.md"
    assert verdict == f"  smol: verdict INCONCLUSIVE (too few queries), report {place}"
    assert done.startswith("report: done in ")
    assert done.endswith(f" s: {place}")


def test_without_a_ratio_the_last_lines_say_so(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.evaluate(FAIR, answer_right, suite_version=7)
    world.audit(FAIR)
    world.write()
    rule, why, verdict = capsys.readouterr().out.splitlines()
    assert why.startswith("  smol: ")
    assert "suite core20 version 7 against" in why
    assert rule == (
        "  smol: the rule gives no answer: 20 of 20 queries of core20 decided right, "
        "and no ratio to 30B can be formed"
    )
    assert "verdict INCONCLUSIVE (no comparable reference), report " in verdict


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--modle", "smol"], "unrecognized arguments: --modle smol"),
        (["--seed", "one"], "argument --seed: 'one' is not a whole number"),
        (["--seed", "-1"], "--seed -1: use 0 or a positive number"),
        (["--model"], "argument --model: expected one argument"),
        (["--model", "smol", "--fixes", "foul"], "unknown fix foul"),
        (["--model", "smol", "--reference", "31b"], "unknown model '31b'"),
        (["--model", "smol", "--fixes", ""], "no fix is named"),
        (["--model", "smol", "--reference", ""], "--reference '': it must not be empty"),
        (["--model", ""], "unknown model ''"),
        (["--out", ""], "argument --out: name a folder"),
        (["--data", "nowhere"], "no folder nowhere: --data takes the root of all outputs"),
    ],
)
def test_mistakes_are_said_in_one_line(
    world: World, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    world.evaluate(FAIR, answer_right)
    world.audit(FAIR)
    before = sorted(world.artifacts.parent.rglob("*"))
    assert main([*arguments, "--out", str(world.reports)]) == 2
    assert sorted(world.artifacts.parent.rglob("*")) == before, "not even a log"
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("report: ")
    assert reason in error
    assert error.count("\n") == 1


def test_an_interrupt_is_one_line(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_request: Request) -> dict[str, Verdict]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr("stages.report.__main__.write_reports", stop)
    assert main(["--out", str(world.reports)]) == 130
    error = capsys.readouterr().err
    assert error.startswith("report: interrupted")
    assert error.count("\n") == 1


def test_command_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(world.reports), "--json"]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["reports"]["first-experiment"]["supported_answer"] == "inconclusive"
    assert "INCONCLUSIVE (flawed set-up)" in printed.err
    assert main(["--model", "nonsense", "--out", str(world.reports)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("report: unknown model 'nonsense'")
    assert error.count("\n") == 1


def test_the_outputs_of_another_root(two_arms: World, monkeypatch: pytest.MonkeyPatch) -> None:
    two_arms.artifacts.rename("moved here")
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", "artifacts")
    assert main(["--model", "smol", "--data", "moved here", "--out", str(two_arms.reports)]) == 0
    assert "100.0 %" in two_arms.page()
    assert (
        "`FAIR_RETEST_ARTIFACTS='moved here' nox -s retest_fair -- --model smol --seeds 0,1,2`"
        in two_arms.page()
    )
    assert not two_arms.artifacts.exists()
    assert len([*Path("moved here/logs").iterdir()]) == 1


def test_the_report_loads_no_numeric_package() -> None:
    # scipy.stats alone takes longer to import than a report may take.
    code = (
        "import sys, stages.report.__main__; print(*{'scipy', 'numpy', 'mlx', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
