"""The report's pages, from real records: replies scored by eval's scorer, artifacts as stages build them."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifact import MANIFEST, build_artifact, read_manifest
from stages.core.cli import Options, build_parser, read_options
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.flags import add_row_flags, sections_taken
from stages.core.preset import SECTIONS, load_preset
from stages.core.query import Expected, Query
from stages.core.records import (
    AuditReport,
    EvalSummary,
    Finding,
    Given,
    LossPoint,
    Manifest,
    Rate,
    RawReply,
    Recipe,
    Timing,
    Verdict,
    read_lines,
    read_record,
    write_lines,
    write_record,
)
from stages.core.suite import load_suite
from stages.eval.score import SCORER_VERSION, score_replies
from stages.eval.summary import summarize_scores
from stages.report.__main__ import main
from stages.report.arms import write_findings
from stages.report.cells import compare_size, compare_speed, fenced, inline_code, plain, sparkline, table
from stages.report.lineage import MADE_FROM, SHARED
from stages.report.recorded import load_recorded
from stages.report.request import Request
from stages.report.results import find_arms
from stages.report.stage import write_reports

NASTY = (
    "a | b\n```\n# heading\n| x | y |\n````` \x1b[31mred\x07 \u202eabc "
    "<img src=x> [l](http://e) \\| *b* __i__"
)
DIRECT = "A plain answer."
ROOT = Path(__file__).resolve().parents[2]


def call_for(query: Query) -> str:
    """A Hermes call that the query accepts."""
    accepted = query.accept[0]
    assert isinstance(accepted, Expected)
    values = []
    for name, matcher in accepted.arguments.items():
        best = matcher.any_of[0] if matcher.any_of else matcher
        value = best.exact or best.path or " ".join(best.contains or ()) or "pytest -q"
        values.append(f"{name}={value!r}")
    code = f"result = {accepted.function}({', '.join(values)})"
    arguments = {"name": "execute_code", "arguments": {"code": code}}
    return f"<tool_call>\n{json.dumps(arguments)}\n</tool_call>"


def answer_right(query: Query) -> str:
    return call_for(query) if query.kind == "tool" else DIRECT


class World:
    """An artifacts folder that the tests fill as the stages would."""

    def __init__(self, root: Path) -> None:
        self.reports = root / "reports"
        self.artifacts = root / "artifacts"

    def evaluate(
        self,
        fixes: FixSet,
        answer: Callable[[Query], str],
        *,
        suite: str = "core20",
        model: str = "smol",
        seed: int = 0,
        given: Given | None = None,
        **changed: Any,
    ) -> Path:
        """The output of eval for one arm: scored replies and their summary."""
        options = Options(load_preset(model), fixes, seed)
        asked = load_suite(suite)
        replies = [
            RawReply(id=q.id, text=answer(q), tokens=20, finish="stop", seconds=0.5) for q in asked.queries
        ]
        scores = score_replies(asked, replies, options.parser)
        timing = Timing(
            load_seconds=0.3, seconds_per_query=0.5, tokens_per_second=40, peak_memory_gb=1.25, disk_gb=0.12
        )
        summary = summarize_scores(asked, scores, options, "local", timing).model_copy(update=changed)
        folder = options.place("eval") / asked.name
        with build_artifact(folder, self.recipe("eval", options), given=given) as build:
            write_lines(build.folder / "replies.jsonl", replies)
            write_lines(build.folder / "scores.jsonl", scores)
            write_record(build.folder / "summary.json", summary)
        return folder

    def audit(self, fixes: FixSet, findings: Sequence[Finding] = (), model: str = "smol") -> None:
        """The output of audit for one arm."""
        options = Options(load_preset(model), fixes)
        report = AuditReport(model=model, arm=options.arm, checks=["mixed_dialects"], findings=list(findings))
        with build_artifact(options.place("audit"), self.recipe("audit", options)) as build:
            write_record(build.folder / "audit.json", report)

    def convert(self, fixes: FixSet, rows: str, given: Given | None = None) -> None:
        """The output of convert_data for one arm."""
        options = Options(load_preset("smol"), fixes)
        recipe = self.recipe("convert_data", options)
        with build_artifact(options.place("convert_data"), recipe, given=given) as build:
            (build.folder / "train.jsonl").write_text(rows, "utf-8")

    def train(self, fixes: FixSet, stop_ids: Sequence[int] = (2,)) -> None:
        """The outputs of train, fuse and quantize for one arm."""
        options = Options(load_preset("smol"), fixes)
        losses = [
            LossPoint(step=step, kind="train", loss=2 / step, tokens_per_second=600, seconds=step)
            for step in range(10, 241, 10)
        ]
        losses += [
            LossPoint(step=step, kind="valid", loss=loss, tokens_per_second=None, seconds=step)
            for step, loss in ((0, 2.5), (80, 0.42), (160, 0.34), (240, 0.26))
        ]
        with build_artifact(options.place("train"), self.recipe("train", options)) as build:
            write_lines(build.folder / "log.jsonl", losses)
            build.facts |= {
                "steps": 240,
                "train_seconds": 240.0,
                "rows": 685,
                "stop_ids": [2],
                "device_peak_gb": 3.5,
            }
        self.fuse(fixes, stop_ids)
        self.quantize(fixes, 6 if "six_bit" in fixes else 5)

    def fuse(self, fixes: FixSet, stop_ids: Sequence[int], weights: str = "w") -> None:
        """The output of fuse for one arm."""
        options = Options(load_preset("smol"), fixes)
        with build_artifact(options.place("fuse"), self.recipe("fuse", options)) as build:
            (build.folder / "config.json").write_text(json.dumps([list(stop_ids), weights]), "utf-8")
            build.facts |= {"stop_ids": list(stop_ids), "template": "0123456789abcdef"}

    def quantize(self, fixes: FixSet, bits: int) -> None:
        """The output of quantize for one arm."""
        options = Options(load_preset("smol"), fixes)
        with build_artifact(options.place("quantize"), self.recipe("quantize", options, bits=bits)) as build:
            (build.folder / "config.json").write_text(json.dumps({"bits": bits}), "utf-8")

    @staticmethod
    def recipe(stage: str, options: Options, **settings: Any) -> Recipe:
        """A recipe with the output upstream that is there, as the stage itself would name it."""
        inputs = {"data": "d" * 64, "model": "b" * 64}
        if stage in MADE_FROM:
            role, upstream = MADE_FROM[stage]
            made = read_manifest(options.place(upstream))
            inputs[role] = made.content if made else "d" * 64
        return Recipe(stage=stage, settings={"fixes": list(options.fixes), **settings}, inputs=inputs)

    def write(self, model: str | None = "smol", **request: Any) -> dict[str, Verdict]:
        return write_reports(Request(model=model, out=self.reports, **request))

    def page(self, name: str = "smol") -> str:
        return (self.reports / f"{name}.md").read_text("utf-8")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAIR_RETEST_ARTIFACTS", raising=False)
    monkeypatch.delenv("FAIR_RETEST_LOG", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield World(tmp_path)
    for number, handler in before.items():  # the command line sets its own
        signal.signal(number, handler)


@pytest.fixture
def two_arms(world: World) -> World:
    """The flawed arm answers everything in prose, the fair one is always right."""
    for fixes in (FLAWED, FAIR):
        world.train(fixes)
    world.evaluate(FLAWED, lambda _: DIRECT)
    world.evaluate(FAIR, answer_right)
    finding = Finding(
        check="mixed_dialects",
        severity="critical",
        place="data",
        flaw=3,
        message="419 rows with XML | 62 with bare Python",
        count=481,
        total=685,
        fix="convert with the fix json",
    )
    world.audit(FLAWED, [finding])
    world.audit(FAIR)
    return world


def check_tables(page: str) -> int:
    """Every row of every table has as many cells as its header; returns the number of rows outside fences."""
    width, rows, fence = 0, 0, ""
    for line in page.splitlines():
        if fence or line.startswith("```"):
            marks = line[: len(line) - len(line.lstrip("`"))]
            if not fence:
                fence = marks
            elif line.strip("`") == "" and len(line) >= len(fence):
                fence = ""
            continue
        if not line.startswith("|"):
            width = 0
            continue
        width = width or line.count("|")
        assert line.count("|") == width, line
        assert line.endswith("|"), line
        rows += 1
    assert not fence, "a fence was left open"
    return rows


def test_first_experiment_says_what_was_published(world: World) -> None:
    verdict = world.write(model=None)["first-experiment"]
    page = world.page("first-experiment")
    assert (verdict.supported_answer, verdict.point_answer) == ("inconclusive", "stay with large")
    assert (verdict.cause, verdict.ratio, verdict.seed) == ("flawed set-up", 0.35, None)
    head = page.split("## Decision matrix")[0]
    assert head.startswith("# First experiment: ")
    assert head.splitlines()[2] == "**Verdict: INCONCLUSIVE** (flawed set-up)"
    for text in ("stay with large (30B)", "35 % of 30B", "Flaw 5", "Flaw 1", "398 of 685"):
        assert text in head, text
    rows = {row[1].strip(): [cell.strip() for cell in row[2:5]] for row in map(split_row, table_lines(page))}
    assert rows["time per query"] == ["19.15 s", "1.94 s", "10x slower (9.9)"]
    assert rows["time to load"] == ["1.43 s", "5.96 s", "4.2x faster"]
    assert rows["peak memory"] == ["4.88 GB", "19.55 GB", "75 % less"]
    assert rows["size on disk"] == ["4.89 GB", "19.56 GB", "75 % less"]
    assert rows["tool-or-direct accuracy"][2] == "35 % (18 to 57)"
    assert rows["tool queries decided right"][0].startswith("0/13 = 0.0 %")
    assert rows["direct queries decided right"][0].startswith("7/7 = 100.0 %")
    assert rows["less than 70 %"] == ["stay with large (30B)", "**← 35.0 %**", ""]
    for text in (
        "3.640 → 0.549",
        "0.400",
        "2139 s",
        "13.365 GB",
        "0.293",
        "recorded, not measured here",
        "151645",
    ):
        assert text in page, text
    assert check_tables(page) > 30


def table_lines(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]


def split_row(line: str) -> list[str]:
    return [*line.split("|"), "", "", ""]


def test_recorded_figures_agree_with_each_other() -> None:
    recorded = load_recorded()
    flaws = {flaw.number: flaw for flaw in recorded.flaws}
    assert sorted(n for n in flaws if n) == [1, 2, 3, 4, 5]
    assert [flaws[n].severity for n in range(1, 6)] == [
        "critical",
        "critical",
        "moderate",
        "moderate",
        "minor",
    ]
    for result in (recorded.candidate, recorded.reference):
        tools, direct = result.tool_queries, result.direct_queries
        assert tools is not None
        assert direct is not None
        assert (tools.k + direct.k, tools.n + direct.n) == (result.tool_or_direct.k, result.tool_or_direct.n)
        assert sum(r.decision.n for r in result.by_category.values()) == tools.n
    suite = load_suite("core20")
    kinds = [query.kind for query in suite.queries]
    assert (suite.version, len(kinds), kinds.count("tool")) == (recorded.candidate.suite_version, 20, 13)
    for result in (recorded.candidate, recorded.reference):
        assert result.suite_fingerprint == suite.fingerprint
    for category, published in recorded.reference.by_category.items():
        assert sum(query.category == category for query in suite.queries) == published.decision.n


def test_a_model_is_compared_with_the_recorded_reference(two_arms: World) -> None:
    verdict = two_arms.write()["smol"]
    assert (verdict.reference_source, verdict.suite, verdict.arm) == ("recorded", "core20", "fair")
    assert (verdict.candidate_decision.k, verdict.ratio) == (20, 1.0)
    assert (verdict.supported_answer, verdict.point_answer) == ("inconclusive", "use small")
    assert verdict.queries_needed == 36
    assert read_record(two_arms.reports / "smol.json", Verdict) == verdict
    page = two_arms.page()
    head = page.split("## Decision matrix")[0]
    assert (
        "On suite core20, smol decides 20/20 = 100.0 % (83.9 to 100.0) right, 30B (recorded) 20/20 = 100.0 % "
        "(83.9 to 100.0): **100 % of 30B**, 95 % interval 84 % to 120 %." in head
    )
    assert (
        "Arms, decided right: core20 flawed 7/20 = 35.0 % (18.1 to 56.7), "
        "fair 20/20 = 100.0 % (83.9 to 100.0)." in head
    )
    assert check_tables(page) > 60


def test_arms_stand_beside_each_other_with_a_paired_test(two_arms: World) -> None:
    two_arms.write()
    page = two_arms.page()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table_lines(page)]
    # 13 tool queries are right in the fair arm alone: p = 2 / 2^13.
    assert ["flawed → fair", "decision", "0", "13", f"{2 / 2**13:.2g}"] in rows
    assert ["`json`", "off", "on"] in [[row[0], *row[-2:]] for row in rows]
    assert "`eos` has no effect on this model: the fused models of both arms stop at the same ids" in page
    assert "`six_bit` has no effect" not in page
    assert "`parser` has no effect" not in page


def test_stop_ids_that_differ_are_no_idle_fix(two_arms: World) -> None:
    for fixes, stops in ((FLAWED, [0]), (FAIR, [2, 0])):
        two_arms.train(fixes, stops)
        two_arms.evaluate(fixes, answer_right)
    two_arms.write()
    assert "`eos` has no effect" not in two_arms.page()


def test_findings_and_training_are_shown(two_arms: World) -> None:
    two_arms.write()
    page = two_arms.page()
    assert "- **flawed**: 1 critical, 0 warnings, 0 info, from 1 check.\n- **fair**: 0 critical," in page
    assert "419 rows with XML &#124; 62 with bare Python" in page
    assert "Validation loss 2.5000 at step 0, 0.2600 at step 240, best 0.2600 at step 240." in page
    assert "240 steps, 685 rows, 240 s, 600 tokens a second, peak 3.50 GB." in page
    assert "## Training\n\n![Losses of training and validation by step](smol-loss.svg)\n\n### flawed" in page
    picture = (two_arms.reports / "smol-loss.svg").read_text("utf-8")
    assert picture.startswith("<?xml")
    assert picture.count(">flawed</text>") == 1


def test_a_critical_finding_of_the_arm_decides(two_arms: World) -> None:
    verdict = two_arms.write(fixes="flawed")["smol"]
    assert (verdict.cause, verdict.supported_answer) == ("flawed set-up", "inconclusive")
    (command,) = next_commands(two_arms.page())
    assert command == "nox -s retest_fair -- --model smol --arms fair", "the arm that has what this one lacks"
    assert verdict.point_answer == "stay with large"
    assert "419 rows" in verdict.reasons[0]


@pytest.mark.parametrize(("runaways", "cause"), [(2, None), (3, "flawed set-up")])
def test_many_runaway_replies_forbid_a_verdict(world: World, runaways: int, cause: str | None) -> None:
    world.evaluate(FAIR, answer_right, runaway=Rate(k=runaways, n=20))
    world.audit(FAIR)
    verdict = write_reports(Request("smol", out=world.reports))["smol"]
    assert (verdict.cause == "flawed set-up") == (cause is not None)
    page = (world.reports / "smol.md").read_text("utf-8")
    assert (f"{runaways} of 20 replies on core20 ran into the token limit" in page) == (cause is not None)


def test_a_measured_reference_takes_the_place_of_the_recorded_one(two_arms: World) -> None:
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    two_arms.evaluate(FAIR, answer_right, suite="extended", model="30b")
    verdict = two_arms.write()["smol"]
    assert (verdict.reference_source, verdict.suite) == ("measured", "extended")
    assert verdict.supported_answer == "use small"
    assert "30B (measured)" in two_arms.page()


def test_a_suite_without_a_reference_is_named(two_arms: World) -> None:
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    verdict = two_arms.write()["smol"]
    assert verdict.suite == "core20"
    page = two_arms.page()
    assert page.index("## Results on core20") < page.index("## Results on extended")
    assert (
        page.count("No comparable result of 30B on suite extended: none was measured here; recorded: ") == 1
    )
    assert (
        "36 queries to each model would decide (estimate: the 95 % score interval of the ratio at the "
        "observed rates, the same number put to each model), and there are as many here: measure 30B on "
        "extended (200 queries): `nox -s retest_fair -- --model 30b`, then " in page
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"suite_version": 7}, f"suite core20 version 7 against {load_suite('core20').version}"),
        ({"suite": "extended"}, "suite extended against core20"),
    ],
)
def test_other_suites_and_versions_are_not_compared(world: World, changed: dict[str, Any], why: str) -> None:
    world.evaluate(FAIR, answer_right, **changed)
    world.audit(FAIR)
    verdict = world.write()["smol"]
    assert (verdict.cause, verdict.ratio, verdict.point_answer) == ("no comparable reference", None, None)
    assert why in verdict.reasons[0]
    assert why in world.page()


def test_arms_of_different_scorers_are_not_paired(two_arms: World) -> None:
    shutil.rmtree(two_arms.artifacts / "smol" / "eval" / "none")
    two_arms.evaluate(FLAWED, lambda _: DIRECT, scorer_version=SCORER_VERSION + 1)
    two_arms.write()
    versions = f"scorer version {SCORER_VERSION + 1} against {SCORER_VERSION}"
    assert f"flawed and fair are not compared: {versions}" in two_arms.page()
    assert "exact McNemar" not in two_arms.page()


def test_nasty_replies_break_nothing(two_arms: World) -> None:
    shutil.rmtree(two_arms.artifacts / "smol" / "eval")
    two_arms.evaluate(FAIR, lambda _: NASTY)
    two_arms.write()
    page = two_arms.page()
    check_tables(page)
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "``````text" in page
    assert "\\x1b[31mred\\x07 \\u202eabc" in page
    assert page.count("### ") >= 5
    failures = page.split("## Failures")[1].split("## Provenance")[0]
    assert failures.count("Expected: ") == 5


def test_a_failure_says_what_was_asked_and_expected(two_arms: World) -> None:
    two_arms.write(fixes="flawed")
    failures = two_arms.page().split("## Failures")[1]
    assert "13 replies of 20 failed: 13 times decided wrong, no call was made." in failures
    shown = [line.split("(")[1].split(")")[0] for line in failures.splitlines() if line.startswith("### ")]
    assert sorted(shown) == ["pytest_run", "read_file", "ruff_check", "run_command", "typecheck"]
    query = load_suite("core20").queries[0]
    assert f"Asked: {query.query}" in failures
    assert "Expected: `typecheck(path='src/payments/gateway.py')`" in failures


def test_what_went_wrong_first_is_counted_per_arm(world: World) -> None:
    """Each cause has its row, each arm its column, and a lenient reading is told."""

    def answer(query: Query) -> str:
        if query.category == "typecheck":
            return call_for(query).replace("typecheck(", "ruff_check(")
        if query.category == "ruff_check":
            return call_for(query).replace("path=", "path='x' + ")
        if query.category == "pytest_run":
            return call_for(query).removesuffix("\n</tool_call>")
        return answer_right(query)  # whose commands are not those that the two of run_command want

    world.evaluate(FLAWED, lambda _: DIRECT)
    world.evaluate(FAIR, answer)
    world.audit(FAIR)
    world.write()
    page = world.page()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table_lines(page)]
    for row in (
        ["decided wrong", "13", "0"],
        ["malformed", "0", "3"],
        ["wrong tool", "0", "3"],
        ["wrong arguments", "0", "5"],
        ["all failed replies", "13 of 20", "11 of 20"],
    ):
        assert row in rows, row
    assert "11 replies of 20 failed: 3 times malformed, read leniently all was right; 3 times wrong" in page
    assert [row[1] for row in rows if row[0] == "the whole right"] == ["7/20 = 35.0 % (18.1 to 56.7)"]
    assert "The whole right, by category:" in page
    assert "by tool" not in page, "categories of Code Mode are its functions"
    check_tables(page)


def test_a_suite_with_tools_of_its_own(world: World, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    tools = [{"name": name, "parameters": {"type": "object"}} for name in ("left", "right")]
    calls = [{"function": "left", "arguments": {"by": {"exact": n}}} for n in (1, 2)]
    queries = [
        {"id": "one", "query": "Left!", "accept": calls[:1], "category": "moves"},
        {"id": "two", "query": "Left and right!", "accept": [{"calls": [calls[1], {"function": "right"}]}]},
        {"id": "none", "query": "And up?", "messages": [{"role": "user", "content": "Stay."},
                                                        {"role": "assistant", "content": "Yes."}]},
    ]  # fmt: skip
    path.write_text("\n".join(json.dumps(line) for line in ({"tools": tools}, *queries)), "utf-8")
    given = Given(model="smol", data=None, options={"suites": [str(path)]})
    world.evaluate(FAIR, lambda _: '<tool_call>\n{"name": "left", "arguments": {"by": 1}}\n</tool_call>',
                   suite=str(path), given=given)  # fmt: skip
    world.audit(FAIR)
    world.write()
    page = world.page()
    assert "Expected: `left(by=2) and right()`" in page
    assert "Asked (behind 2 turns): And up?" in page
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table_lines(page)]
    assert "The whole right, by tool:" in page
    assert ["left", "1/2 = 50.0 % (9.5 to 90.5)"] in rows
    assert ["right", "0/1 = 0.0 % (0.0 to 79.3)"] in rows
    check_tables(page)


def test_a_result_of_another_version_is_scored_anew(two_arms: World) -> None:
    place = Options(load_preset("smol"), FAIR).place("eval") / "core20" / "summary.json"
    data = json.loads(place.read_text("utf-8"))
    data["decision"] = data.pop("tool_or_direct")
    place.write_text(json.dumps(data), "utf-8")
    with pytest.raises(StageError, match=r"run nox -s eval again, which scores the kept replies anew$"):
        two_arms.write()


def test_same_records_same_bytes(two_arms: World) -> None:
    two_arms.write()
    first = {p.name: p.read_bytes() for p in two_arms.reports.iterdir()}
    two_arms.write()
    assert {p.name: p.read_bytes() for p in two_arms.reports.iterdir()} == first
    assert sorted(first) == ["smol-loss.svg", "smol.json", "smol.md"]


def test_several_seeds_are_shown_and_the_lowest_decides(two_arms: World) -> None:
    wrong = load_suite("core20").queries[0].id
    two_arms.evaluate(FAIR, lambda q: DIRECT if q.id == wrong else answer_right(q), seed=3)
    assert two_arms.write()["smol"].candidate_decision.k == 20
    assert "fair, seed 3" in two_arms.page()
    verdict = two_arms.write(seed=3)["smol"]
    assert (verdict.seed, verdict.candidate_decision.k) == (3, 19)


def wrong_on(*numbers: int) -> Callable[[Query], str]:
    """Right answers but for these queries of core20."""
    wrong = {load_suite("core20").queries[number].id for number in numbers}
    return lambda query: DIRECT if query.id in wrong else answer_right(query)


def test_the_spread_over_seeds_stands_beside_the_verdict(two_arms: World) -> None:
    tools = [number for number, query in enumerate(load_suite("core20").queries) if query.kind == "tool"]
    two_arms.evaluate(FAIR, wrong_on(*tools[:1]), seed=2)
    two_arms.evaluate(FAIR, wrong_on(*tools[:3]), seed=5)
    two_arms.evaluate(FLAWED, lambda _: DIRECT, seed=2)
    verdict = two_arms.write()["smol"]
    assert (verdict.seed, verdict.candidate_decision.k, verdict.point_answer) == (0, 20, "use small")
    assert [(a.seed, a.decision.k, a.ratio, a.point_answer) for a in verdict.seeds] == [
        (0, 20, 1.0, "use small"),
        (2, 19, 0.95, "use small"),
        (5, 17, 0.85, "split"),
    ]
    head = two_arms.page().split("## Decision matrix")[0]
    assert (
        "The verdict is about seed 0. With 3 seeds of this arm 85.0 to 100.0 % are decided right on core20 "
        "(median 95.0 %), 85.0 to 100.0 % of 30B. **The rule's answer depends on the seed**: use small with "
        "seeds 0, 2, split with seed 5. What the evidence supports is the same with every seed." in head
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_lines(two_arms.page())]
    spread = ["85.0 %", "95.0 %", "100.0 %", "15.0"]
    assert ["core20", "fair", "0, 2, 5", "tool or direct", *spread] in rows
    assert ["core20", "flawed", "0, 2", "right tool", "0.0 %", "0.0 %", "0.0 %", "0.0"] in rows
    assert read_record(two_arms.reports / "smol.json", Verdict) == verdict
    third = two_arms.write(seed=5)["smol"]
    assert (third.seed, third.candidate_decision.k, third.seeds) == (5, 17, verdict.seeds)


def test_a_reader_hears_that_the_answer_hangs_on_the_seed(
    two_arms: World, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "another seed would have led to another answer"
    two_arms.evaluate(FAIR, answer_right, seed=1)
    two_arms.write()
    assert said not in capsys.readouterr().out
    assert two_arms.page().count(" is the same with every seed.") == 2
    two_arms.evaluate(FAIR, answer_right, seed=2, runaway=Rate(k=20, n=20))
    two_arms.evaluate(FAIR, lambda _: DIRECT, seed=4)
    two_arms.write()
    assert said in capsys.readouterr().out


def test_a_seed_of_another_set_up_is_no_part_of_the_spread(two_arms: World) -> None:
    place = two_arms.evaluate(FAIR, wrong_on(0), seed=1)
    two_arms.evaluate(FAIR, answer_right, seed=2)
    made = json.loads((place / MANIFEST).read_text("utf-8"))
    made["recipe"]["settings"]["max_tokens"] = 7
    (place / MANIFEST).write_text(json.dumps(made), "utf-8")
    verdict = two_arms.write()["smol"]
    assert [answer.seed for answer in verdict.seeds] == [0, 2]
    assert "- core20: fair, seed 1 is not counted: eval had other settings or data." in two_arms.page()


def test_one_seed_says_what_it_does_not(two_arms: World) -> None:
    assert two_arms.write()["smol"].seeds == []
    page = two_arms.page()
    assert "The verdict is about seed" not in page
    command = "nox -s retest_fair -- --model smol --seeds 0,1,2"
    assert f"how much the result depends on the seed is not measured. `{command}` does it." in page


def test_missing_upstream_is_one_line_with_the_command(world: World) -> None:
    with pytest.raises(StageError, match=r"no evaluation of smol, arm fair: run nox -s eval -- --model smol"):
        world.write()
    folder = world.evaluate(FAIR, answer_right)
    with pytest.raises(StageError, match=r"no audit of smol, arm fair: run nox -s audit -- --model smol"):
        world.write()
    world.audit(FAIR)
    world.write()
    assert "No training log here; it would come from `nox -s train -- --model smol" in world.page()
    with pytest.raises(
        StageError, match="arm flawed: run nox -s eval -- --model smol --fixes flawed --seed 4"
    ):
        world.write(fixes="flawed", seed=4)
    (folder / "scores.jsonl").unlink()
    with pytest.raises(StageError, match=r"has no scores\.jsonl: run nox -s eval"):
        world.write()


def test_an_audit_of_another_arm_does_not_count(world: World) -> None:
    world.evaluate(FAIR, answer_right)
    place = Options(load_preset("smol"), FAIR).place("audit")
    other = AuditReport(model="smol", arm="json+tools", checks=[], findings=[])
    with build_artifact(place, world.recipe("audit", Options(load_preset("smol"), FAIR))) as build:
        write_record(build.folder / "audit.json", other)
    with pytest.raises(StageError, match="no audit of smol, arm fair"):
        world.write()


def test_a_summary_that_its_scores_deny_is_refused(two_arms: World) -> None:
    place = Options(load_preset("smol"), FAIR).place("eval") / "core20"
    summary = read_record(place / "summary.json", EvalSummary)
    wrong = summary.tool_or_direct.model_copy(update={"k": 12})
    write_record(place / "summary.json", summary.model_copy(update={"tool_or_direct": wrong}))
    with pytest.raises(StageError, match="the summary says 12 of 20, the scores say 20 of 20"):
        two_arms.write()


def test_a_broken_line_is_named(two_arms: World) -> None:
    replies = Options(load_preset("smol"), FAIR).place("eval") / "core20" / "replies.jsonl"
    assert len(read_lines(replies, RawReply)) == 20
    replies.write_bytes(replies.read_bytes() + b'{"id": 1\n')
    with pytest.raises(StageError, match=r"replies\.jsonl:21 is not a valid RawReply"):
        two_arms.write()


def test_all_reports_are_written_and_a_problem_comes_last(two_arms: World) -> None:
    assert sorted(two_arms.write(model=None)) == ["first-experiment", "smol"]
    two_arms.evaluate(FAIR, answer_right, model="8b")
    shutil.rmtree(two_arms.reports)
    with pytest.raises(StageError, match="no audit of 8b, arm fair"):
        two_arms.write(model=None)
    assert sorted(p.name for p in two_arms.reports.glob("*.md")) == ["first-experiment.md", "smol.md"]


def redo(world: World, stage: str, fixes: FixSet = FAIR) -> None:
    """What `--force` of one stage alone leaves behind."""
    options = Options(load_preset("smol"), fixes)
    if stage == "convert_data":
        world.convert(fixes, "other rows")
    elif stage == "train":
        with build_artifact(options.place("train"), world.recipe("train", options)) as build:
            write_lines(build.folder / "log.jsonl", [LossPoint(step=1, kind="train", loss=1, seconds=1)])
    elif stage == "fuse":
        world.fuse(fixes, [2], "other weights")
    else:
        world.quantize(fixes, 8)


@pytest.fixture
def chain(world: World) -> World:
    """One arm with the outputs of every stage."""
    world.convert(FAIR, "rows")
    world.audit(FAIR)
    world.train(FAIR)
    world.evaluate(FAIR, answer_right)
    world.evaluate(FAIR, answer_right, suite="extended")
    return world


LATER = {
    "train": ", then fuse, quantize, eval likewise",
    "fuse": ", then quantize, eval likewise",
    "quantize": ", then eval likewise",
    "eval": "",
    "audit": "",
}


@pytest.mark.parametrize(
    ("again", "stale"),
    [("convert_data", "audit"), ("train", "fuse"), ("fuse", "quantize"), ("quantize", "eval")],
)
def test_a_stage_that_ran_again_alone_stops_the_report(chain: World, again: str, stale: str) -> None:
    chain.write()
    shutil.rmtree(chain.reports)
    redo(chain, again)
    with pytest.raises(StageError) as raised:
        chain.write()
    said = str(raised.value)
    assert "\n" not in said
    title = "eval core20" if stale == "eval" else stale
    assert said.startswith(f"smol, arm fair: {title} was not made from the output of {again} in ")
    assert f"run nox -s {stale} -- --model smol --fixes fair --force{LATER[stale]}; or remove " in said
    assert not chain.reports.exists()


def test_new_rows_under_an_old_training_stop_the_report(chain: World) -> None:
    redo(chain, "convert_data")
    chain.audit(FAIR)
    with pytest.raises(StageError, match="train was not made from the output of convert_data") as raised:
        chain.write()
    assert LATER["train"] in str(raised.value)


def test_following_the_advice_gives_a_report(chain: World) -> None:
    redo(chain, "quantize")
    for suite in ("core20", "extended"):
        with pytest.raises(StageError, match=f"eval {suite} was not made from the output of quantize"):
            chain.write()
        chain.evaluate(FAIR, answer_right, suite=suite)
    chain.write()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_lines(chain.page())]
    assert [row[-1] for row in rows[1:] if row[0] == "fair" and row[1] == "0"] == ["8"]


def test_a_stale_arm_can_be_taken_out(two_arms: World) -> None:
    redo(two_arms, "quantize", FLAWED)
    with pytest.raises(StageError, match="smol, arm flawed: eval core20 was not made from") as raised:
        two_arms.write()
    place = Options(load_preset("smol"), FLAWED).place("eval")
    assert f"or remove {place} to leave this arm out" in str(raised.value)
    shutil.rmtree(place)
    two_arms.write()


def test_what_is_newer_is_said(chain: World) -> None:
    place = Options(load_preset("smol"), FAIR).place("quantize")
    redo(chain, "quantize")
    made = read_record(place / MANIFEST, Manifest)
    for year, age in (("2999", "newer"), ("1999", "another one")):
        write_record(place / MANIFEST, made.model_copy(update={"created": f"{year}-01-01T00:00:00+00:00"}))
        with pytest.raises(StageError, match=rf"seed0, which is {age} \({year}-01-01"):
            chain.write()


@pytest.mark.parametrize("stage", ["convert_data", "train", "fuse", "quantize"])
def test_a_folder_that_is_gone_proves_nothing(chain: World, stage: str) -> None:
    shutil.rmtree(Options(load_preset("smol"), FAIR).place(stage))
    chain.write()


@pytest.mark.parametrize(("role", "noun"), SHARED.items())
def test_audit_and_training_share_rows_and_base(chain: World, role: str, noun: str) -> None:
    options = Options(load_preset("smol"), FAIR)
    shutil.rmtree(options.place("convert_data"))
    path = options.place("audit") / MANIFEST
    audit = read_record(path, Manifest)
    inputs = audit.recipe.inputs | {role: "0" * 64}
    recipe = audit.recipe.model_copy(update={"inputs": inputs})
    for created, older in (("1999", "audit"), ("2999", "train")):
        write_record(path, audit.model_copy(update={"recipe": recipe, "created": created}))
        told = f"had different {noun}, {older} is the older: run nox -s {older} -- --model smol"
        with pytest.raises(StageError, match=f"audit and train {told}"):
            chain.write()


@pytest.mark.parametrize("stage", MADE_FROM)
def test_the_stages_name_their_inputs_as_the_report_reads_them(stage: str) -> None:
    modules = sorted((ROOT / "stages" / stage).glob("*.py"))
    tree = ast.Module([part for path in modules for part in ast.parse(path.read_text("utf-8")).body], [])
    recipes = [
        {ast.literal_eval(key) for key in keyword.value.keys if key is not None}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Recipe"
        for keyword in node.keywords
        if keyword.arg == "inputs" and isinstance(keyword.value, ast.Dict)
    ]
    assert len(recipes) == 1
    assert MADE_FROM[stage][0] in recipes[0]
    if stage in ("audit", "train"):
        assert SHARED.keys() <= recipes[0]


def test_commands_name_the_model_as_it_was_given(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "my `own` $(models)"
    folder.mkdir()
    preset = folder / "tiny.toml"
    preset.write_bytes((ROOT / "stages/core/presets/smol.toml").read_bytes())
    given = f"--model {shlex.quote(str(preset))}"
    assert shlex.split(given) == ["--model", str(preset)]

    def complaint() -> str:
        with pytest.raises(StageError) as raised:
            world.write(model=str(preset))
        return str(raised.value)

    assert complaint() == (
        f"no evaluation of tiny, arm fair: run nox -s eval -- {given} --fixes fair "
        f"(or nox -s retest_fair -- {given} --arms fair for all stages)"
    )
    options = Options(load_preset(str(preset)), FAIR)
    made = world.evaluate(FAIR, answer_right)
    shutil.copytree(made, options.place("eval") / "core20")
    assert complaint() == f"no audit of tiny, arm fair: run nox -s audit -- {given} --fixes fair"
    finding = Finding(
        check="c", severity="critical", place="data", message="m", count=1, total=1, fix="f", flaw=None
    )
    report = AuditReport(model="tiny", arm="fair", checks=["c"], findings=[finding])
    with build_artifact(options.place("audit"), world.recipe("audit", options)) as build:
        write_record(build.folder / "audit.json", report)
    world.write(model=str(preset))
    page = world.page("tiny")
    assert f"run `` nox -s retest_fair -- {given} --arms fair --force ``; no number" in page
    assert f"it would come from `` nox -s train -- {given} --fixes fair ``." in page
    shutil.rmtree(options.place("audit"))
    findings = write_findings(find_arms(options.preset, str(preset)))
    assert f"not audited; run `` nox -s audit -- {given} --fixes fair ``." in findings


def test_a_reference_given_as_a_path_is_named_by_it(two_arms: World, tmp_path: Path) -> None:
    large = tmp_path / "large one.toml"
    large.write_bytes((ROOT / "stages/core/presets/30b.toml").read_bytes())
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    two_arms.write(reference=str(large))
    command = f"nox -s retest_fair -- --model {shlex.quote(str(large))}"
    assert f"`{command}`, then `nox -s report -- --model smol --reference '{large}'" in two_arms.page()


GIVEN = {"suites": ["core20", "my suite.json"], "source": "a b", "max_tokens": 64, "iters": 30}
QUERIES = [{"id": f"q{i}", "category": "concept", "kind": "direct", "query": "What?"} for i in range(40)]
OWN_SUITE = {"name": "core20", "version": 2, "description": "A suite of that name.", "queries": QUERIES}


def write_suite(path: Path, **changed: Any) -> str:
    path.write_text(json.dumps(OWN_SUITE | changed), "utf-8")
    return str(path)


def read_command(command: str) -> Options:
    """The options that a printed command gives its stage, read by the stage's own parser."""
    words = shlex.split(command)
    words = words[words.index("nox") :]
    assert words[:2] == ["nox", "-s"]
    assert words[3] == "--"
    sections = [name for name in sections_taken(words[2]) if name in SECTIONS and name != "model"]
    parser = build_parser(words[2], "", sections)
    if words[2] == "retest_fair":
        add_row_flags(parser)
    parser.add_argument("--arms")
    return read_options(parser.parse_args(words[4:]))


def next_commands(page: str) -> list[str]:
    """The commands of the line that says what to do next."""
    (line,) = [line for line in page.splitlines() if line.startswith("Next: ")]
    return re.findall("(?<!`)`([^`]+)`", line)


def test_a_repeated_retest_makes_the_same_rows(world: World) -> None:
    rows = {"valid_share": 0.1, "tools": "my tools.json", "dedup": True}
    world.convert(FLAWED, "rows", Given(model="smol", data="my rows", options={}, rows=rows))
    world.evaluate(FLAWED, answer_right)
    finding = Finding(
        check="c", severity="critical", place="data", message="m", count=1, total=1, fix="f", flaw=None
    )
    world.audit(FLAWED, [finding])
    world.write(fixes="flawed")
    (command,) = next_commands(world.page())
    assert read_command(command).rows == rows


def test_commands_say_again_what_the_runs_said(world: World) -> None:
    given = Given(model="smol", data="my rows", options=GIVEN)
    world.convert(FAIR, "rows", given)
    world.evaluate(FAIR, lambda _: DIRECT, given=given, runaway=Rate(k=20, n=20))
    with pytest.raises(StageError, match="no audit of smol, arm fair: run ") as raised:
        world.write()
    audit = read_command(str(raised.value).partition(": run ")[2])
    wanted = {name: tuple(v) if isinstance(v, list) else v for name, v in GIVEN.items()}
    assert (audit.overrides, audit.fixes, audit.data) == (wanted, FAIR, None)
    world.audit(FAIR)
    world.write(reference="14b")
    (again,) = next_commands(world.page())
    assert again.endswith(" --force")
    assert " --arms fair " in again
    repeated = read_command(again)
    assert repeated.overrides == wanted | {"reference": "14b"}
    assert (repeated.data, repeated.force, repeated.out) == (Path("my rows"), True, None)
    train = re.search("it would come from `(.*)`", world.page())
    assert train is not None
    assert read_command(train[1]).overrides == {"source": "a b", "iters": 30}
    with pytest.raises(StageError, match="no evaluation of smol, arm flawed: run ") as raised:
        world.write(fixes="flawed")
    whole = str(raised.value).partition(" (or ")[2].removesuffix(" for all stages)")
    assert read_command(whole).overrides == wanted
    assert " --arms flawed --data 'my rows' " in whole


def test_the_newest_word_counts_and_all_suites_do(world: World) -> None:
    for suite, options in (
        ("core20", {"suites": ["core20"], "max_tokens": 9}),
        ("extended", {"suites": ["extended", "own.json"]}),
    ):
        folder = world.evaluate(
            FAIR, lambda _: DIRECT, suite=suite, given=Given(model="smol", data="not rows", options=options)
        )
        made = read_record(folder / MANIFEST, Manifest)
        year = {"core20": "1999", "extended": "1998"}[suite]
        write_record(folder / MANIFEST, made.model_copy(update={"created": f"{year}-01-01T00:00:00+00:00"}))
    (arm,) = find_arms(load_preset("smol"))
    assert arm.options.overrides == {"max_tokens": 9, "suites": ("core20", "extended", "own.json")}
    assert arm.options.data is None, "the replies' model, not the rows"


def test_commands_find_the_outputs_where_they_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place = world.artifacts.parent / "my place"
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(place))
    world.evaluate(FAIR, answer_right, suite_version=7)
    world.audit(FAIR)
    for out in (world.reports, place / "reports"):
        world.reports = out
        world.write()
        measure, renew = next_commands(world.page())
        prefix = f"FAIR_RETEST_ARTIFACTS={shlex.quote(str(place))} "
        assert renew == f"{prefix}nox -s report -- --model smol --out {shlex.quote(str(out))}"
        if out == place / "reports":  # as retest_fair --out has it
            assert measure == f"nox -s retest_fair -- --model 30b --out {shlex.quote(str(place))}"
        else:
            assert measure == f"{prefix}nox -s retest_fair -- --model 30b"
        assert read_command(measure).out == (place if out == place / "reports" else None)
        assert f"from `{prefix}nox -s train -- --model smol --fixes fair`" in world.page()


def test_the_reference_is_asked_what_the_candidate_was(world: World, tmp_path: Path) -> None:
    own = write_suite(tmp_path / "own.json", name="own")
    given = Given(model="smol", data="my rows", options={"suites": [own], "iters": 3})
    world.convert(FAIR, "rows", given)
    world.evaluate(FAIR, answer_right, suite=own, given=given)
    world.audit(FAIR)
    world.write()
    measure, renew = next_commands(world.page())
    assert measure == f"nox -s retest_fair -- --model 30b --data 'my rows' --suites={own}"
    assert renew.startswith("nox -s report -- --model smol")
    # Once it is trained, it is only asked: the audit of its training knows other suites.
    world.evaluate(FAIR, answer_right, model="30b")
    world.write()
    measure = next_commands(world.page())[0]
    assert measure == f"nox -s eval -- --model 30b --fixes fair --suites={own}"
    world.evaluate(FAIR, answer_right, model="30b", suite=own, suite_version=7)
    world.write()
    assert next_commands(world.page())[0] == f"{measure} --force"
    world.evaluate(FAIR, answer_right, model="30b", suite=own)
    assert world.write()["smol"].reference_source == "measured"


def test_the_reference_itself_is_not_measured_against_itself(world: World) -> None:
    world.evaluate(FAIR, answer_right, model="30b", suite="extended")
    world.audit(FAIR, model="30b")
    assert world.write(model="30b")["30b"].cause == "no comparable reference"
    assert next_commands(world.page("30b")) == ["--reference"]


def test_another_reference_than_the_recorded_one_is_not_recorded(two_arms: World) -> None:
    verdict = two_arms.write(reference="14b")["smol"]
    assert (verdict.cause, verdict.reference) == ("no comparable reference", None)
    assert verdict.reasons == ["No comparable result of 14B on suite core20: none was measured here."]
    assert next_commands(two_arms.page())[0] == "nox -s retest_fair -- --model 14b"


@pytest.mark.parametrize("source", ["recorded", "measured"])
def test_an_own_suite_of_a_shipped_name_is_another_one(world: World, tmp_path: Path, source: str) -> None:
    own = write_suite(tmp_path / "mine.json")
    world.evaluate(
        FAIR, answer_right, suite=own, given=Given(model="smol", data=None, options={"suites": [own]})
    )
    world.audit(FAIR)
    if source == "measured":
        world.evaluate(FAIR, answer_right, model="30b")
    verdict = world.write()["smol"]
    assert (verdict.cause, verdict.ratio) == ("no comparable reference", None)
    assert (
        f"{source}: two suites are named core20: their queries or accepted calls differ" in verdict.reasons[0]
    )
    assert world.page().count("two suites are named core20") == (2 if source == "measured" else 1)
    if source == "measured":
        world.evaluate(FAIR, answer_right, model="30b", suite=own)
        assert world.write()["smol"].reference_source == "measured"


def test_failures_on_an_own_suite_say_what_was_asked(world: World, tmp_path: Path) -> None:
    own = write_suite(tmp_path / "mine.json")
    given = Given(model="smol", data=None, options={"suites": [own]})
    world.evaluate(FAIR, lambda query: call_for(load_suite("core20").queries[0]), suite=own, given=given)
    world.audit(FAIR)
    world.write()
    assert world.page().count("Asked: What?") == 5
    write_suite(tmp_path / "mine.json", queries=[{**query, "query": "Why?"} for query in QUERIES])
    world.write()
    assert "Asked: " not in world.page()


def test_nothing_is_said_twice_about_one_arm_and_suite(world: World, tmp_path: Path) -> None:
    own = write_suite(tmp_path / "own.json", name="own")
    world.evaluate(FAIR, answer_right, suite=own)
    world.audit(FAIR)
    world.write()
    page = world.page()
    assert page.count("tool-or-direct accuracy") == 1
    assert page.count("No comparable result") == page.count("\nNext: ") == 1
    world.evaluate(FAIR, answer_right)
    world.write()
    assert world.page().count("tool-or-direct accuracy") == 2  # one table per suite
    parts = world.page().split("\n\n")
    paragraphs = [part for part in parts if len(part) > 60 and not part.startswith(("```", "### "))]
    assert len(paragraphs) == len(set(paragraphs))


def test_times_and_memory_of_other_machines_are_not_compared(two_arms: World) -> None:
    def cells(name: str) -> list[str]:
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_lines(two_arms.page())]
        (row,) = [row for row in rows if row[0] == name]
        return row[1:]

    names = ("time per query", "time to load", "peak memory", "size on disk")
    two_arms.write()
    assert [cells(name)[-1] for name in names] == ["–", "–", "–", "99.4 % less"]
    assert "The two come from different machines: times and memory do not compare." in two_arms.page()
    folder = two_arms.evaluate(FAIR, answer_right, model="30b")
    two_arms.write()
    assert [cells(name)[-1] for name in names] == ["the same"] * 4
    assert "different machines" not in two_arms.page()
    made = read_record(folder / MANIFEST, Manifest)
    for platform, compares in ((made.platform.partition(",")[0] + ", Python 3.99", True), ("Other x", False)):
        write_record(folder / MANIFEST, made.model_copy(update={"platform": platform}))
        two_arms.write()
        assert (cells("time per query")[-1] == "the same") == compares
        assert ("Costs beside the reference: disk the same; times" in two_arms.page()) != compares


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
    page = two_arms.reports / "smol.md"
    page.write_text(two_arms.page() + "\nWe decided to wait.\n")
    with pytest.raises(StageError, match="was not written by the report, or was changed since"):
        two_arms.write()
    assert "We decided to wait." in two_arms.page()


def test_another_reports_verdict_is_kept(two_arms: World) -> None:
    two_arms.write(model=None)
    other = (two_arms.reports / "first-experiment.json").read_bytes()
    (two_arms.reports / "smol.json").write_bytes(other)
    with pytest.raises(StageError, match=r"smol\.json was not written by the report"):
        two_arms.write(model=None)
    assert (two_arms.reports / "smol.json").read_bytes() == other


def test_the_output_of_another_stage_is_said(chain: World) -> None:
    places = [Options(load_preset("smol"), FAIR).place(stage) for stage in ("train", "fuse")]
    shutil.rmtree(places[0])
    shutil.copytree(places[1], places[0])
    with pytest.raises(
        StageError, match="is the output of fuse, not of train: name another folder, or run nox"
    ):
        chain.write()


def test_a_long_title_leaves_a_legible_heading(world: World) -> None:
    world.evaluate(FAIR, answer_right, title="A\nlong | title " * 40)
    world.audit(FAIR)
    world.write()
    heading = world.page().splitlines()[0]
    assert heading.startswith("# smol: A⏎long &#124; title A⏎long")
    assert heading.endswith("…, fair arm")
    assert len(heading) < 200
    check_tables(world.page())


def test_the_last_lines_say_verdict_rule_and_place(
    two_arms: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "smol", "--out", str(two_arms.reports)]) == 0
    rule, verdict, done = capsys.readouterr().out.splitlines()
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
    rule, verdict = capsys.readouterr().out.splitlines()
    assert rule == (
        "  smol: the rule gives no answer: 20 of 20 queries of core20 decided right, "
        "and no ratio to 30B can be formed"
    )
    assert "verdict INCONCLUSIVE (no comparable reference), report " in verdict


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--modle", "smol"], "unrecognized arguments: --modle smol"),
        (["--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["--seed", "-1"], "--seed -1: use 0 or a positive number"),
        (["--model"], "argument --model: expected one argument"),
        (["--model", "smol", "--fixes", "foul"], "unknown fix foul"),
        (["--model", "smol", "--reference", "31b"], "unknown model '31b'"),
        (["--model", "smol", "--fixes", ""], "no fix is named"),
        (["--model", "smol", "--reference", ""], "--reference '': it must not be empty"),
        (["--model", ""], "unknown model ''"),
        (["--out", ""], "argument --out: name a folder"),
    ],
)
def test_mistakes_are_said_in_one_line(
    world: World, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    world.evaluate(FAIR, answer_right)
    world.audit(FAIR)
    assert main([*arguments, "--out", str(world.reports)]) == 2
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


def test_the_report_loads_no_numeric_package() -> None:
    # scipy.stats alone takes longer to import than a report may take.
    code = (
        "import sys, stages.report.__main__; print(*{'scipy', 'numpy', 'mlx', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_figures_in_words() -> None:
    assert [compare_speed(s, 2.0) for s in (2.0, 3.0, 1.0, 40.0, 0, None)] == [
        "the same",
        "1.5x slower",
        "2.0x faster",
        "20x slower (20.0)",
        "–",
        "–",
    ]
    assert [compare_size(s, 10.0) for s in (10.0, 2.5, 12.0, 30.0, 0.04, None)] == [
        "the same",
        "75 % less",
        "20 % more",
        "3.0x as much",
        "99.6 % less",
        "–",
    ]
    assert sparkline([0.0, 1.0, 0.5]) in ("▁█▄", "▁█▅")
    assert sparkline([1.0, 1.0]) == "▁▁"


def test_text_is_made_harmless() -> None:
    cell = plain(NASTY)
    assert not set(cell) & set("|\n`<[*\x1b")
    assert inline_code("a `b` | \x1b") == "`` a `b` | \\x1b ``"
    assert plain("read_file") == "read_file"
    assert plain("__init__") == "&#95;&#95;init&#95;&#95;"
    assert check_tables(table(["a", "b"], [[cell, "x"], ["007", "1e5"]])) == 4
    block = fenced(NASTY)
    assert block.startswith("``````text\n")
    assert block.endswith("\n``````")
    long = fenced("x" * 5000)
    assert "(cut: 3800 more characters)" in long
