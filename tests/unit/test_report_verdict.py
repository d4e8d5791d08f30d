"""The verdict and its matrix: what a model is compared with, and what forbids an answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifact import MANIFEST
from stages.core.fixes import FAIR
from stages.core.records import Given, Manifest, Rate, Verdict, read_record, write_record
from stages.core.suite import load_suite
from stages.eval.score import SCORER_VERSION
from stages.report.recorded import load_recorded
from stages.report.request import Request
from stages.report.stage import write_reports
from tests.report_world import World, answer_right, check_tables, next_commands, table_rows, write_suite


def test_first_experiment_says_what_was_published(world: World) -> None:
    verdict = world.write(model=None)["first-experiment"]
    page = world.page("first-experiment")
    assert (verdict.supported_answer, verdict.point_answer) == ("inconclusive", "stay with large")
    assert (verdict.cause, verdict.ratio, verdict.seed) == ("flawed set-up", 0.35, None)
    head = page.split("## Decision matrix")[0]
    assert head.startswith("# First experiment: ")
    assert head.splitlines()[2] == "**Verdict: INCONCLUSIVE** (flawed set-up)"
    for text in ("stay with large (30B)", "stay with 30B", "35 % of 30B", "Flaw 5", "Flaw 1", "398 of 685"):
        assert text in head, text
    rows = {row[0]: row[1:4] for row in table_rows(page)}
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
    called = re.search(r"To decide right is not yet to call right: the fair arm has on core20 [^\n]+", head)
    assert called is not None
    assert re.findall(r"(\d+/\d+) = ", called[0]) == ["13/13", "11/13", "18/20"]
    assert check_tables(page) > 60


def test_a_measured_reference_takes_the_place_of_the_recorded_one(two_arms: World) -> None:
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    two_arms.evaluate(FAIR, answer_right, suite="extended", model="30b")
    two_arms.audit(FAIR, model="30b")
    verdict = two_arms.write()["smol"]
    assert (verdict.reference_source, verdict.suite) == ("measured", "extended")
    assert verdict.supported_answer == "use small"
    assert "30B (measured)" in two_arms.page()


def test_a_reference_that_nobody_audited_supports_nothing(two_arms: World) -> None:
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    two_arms.evaluate(FAIR, answer_right, suite="extended", model="30b")
    verdict = two_arms.write()["smol"]
    assert (verdict.supported_answer, verdict.cause) == ("inconclusive", "flawed set-up")
    assert verdict.reasons[0].startswith("reference, fair: it was not audited")
    assert verdict.point_answer == "use small"
    assert next_commands(two_arms.page()) == ["nox -s audit -- --model 30b --fixes fair"]
    two_arms.audit(FAIR, model="30b")
    assert two_arms.write()["smol"].supported_answer == "use small"


def test_a_suite_that_the_audit_did_not_look_at_is_told(two_arms: World, tmp_path: Path) -> None:
    """A leak of its queries would have gone unseen. The numbers decide as before."""
    audited = {name: load_suite(name).fingerprint for name in ("core20", "extended")}
    for suites in ({}, audited):  # older audits do not say what they looked at
        two_arms.audit(FAIR, suites=suites)
        told = two_arms.write()["smol"]
        assert not any("did not look" in reason for reason in told.reasons)
    two_arms.audit(FAIR, suites=audited | {"core20": "of an older version"})
    verdict = two_arms.write()["smol"]
    assert verdict.model_dump(exclude={"reasons", "digest"}) == told.model_dump(exclude={"reasons", "digest"})
    (added,) = set(verdict.reasons) - set(told.reasons)
    assert added.startswith("fair: the audit did not look at these queries of core20, so nobody checked ")
    assert added.endswith(": run nox -s audit -- --model smol --fixes fair.")


@pytest.mark.parametrize("suite", ["core20", "extended"])
def test_a_reference_that_was_scored_otherwise_is_passed_over_and_that_is_said(
    two_arms: World, suite: str
) -> None:
    """Another scorer, or another sandbox that ran its code: no measured figure of it is compared."""
    two_arms.evaluate(FAIR, answer_right, suite=suite)
    two_arms.audit(FAIR, model="30b")
    place = two_arms.evaluate(FAIR, answer_right, suite=suite, model="30b")
    assert two_arms.write()["smol"].reference_source == "measured"
    older: dict[str, Any] = {"scorer_version": SCORER_VERSION - 1}
    two_arms.evaluate(FAIR, answer_right, suite=suite, model="30b", **older)
    check_passed_over(two_arms, suite, f"scorer version {SCORER_VERSION} against {SCORER_VERSION - 1}")
    two_arms.evaluate(FAIR, answer_right, suite=suite, model="30b")
    for model, version in (("smol", "monty 2"), ("30b", "monty 1")):
        path = Path(str(place).replace("30b", model)) / MANIFEST
        made = read_record(path, Manifest)
        settings = made.recipe.settings | {"sandbox": version}
        recipe = made.recipe.model_copy(update={"settings": settings})
        write_record(path, made.model_copy(update={"recipe": recipe}))
    check_passed_over(two_arms, suite, "their code ran in different sandboxes: monty 2 against monty 1")


def check_passed_over(world: World, suite: str, why: str) -> None:
    verdict = world.write()["smol"]
    assert (verdict.reference_source, verdict.suite) == ("recorded", "core20")
    told = f"30B on suite {suite}" + (" does not compare: " if suite == "core20" else ": measured: ")
    assert f"{told}{why} (nox -s eval of both scores" in world.page()
    assert any(why in reason for reason in verdict.reasons) == (suite == "core20")


@pytest.mark.parametrize(
    ("engine", "told"), [("endpoint", "as its server serves it"), ("recorded", "a file")]
)
def test_what_no_audit_knows_of_a_reference_is_told(two_arms: World, engine: str, told: str) -> None:
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    two_arms.evaluate(FAIR, answer_right, suite="extended", model="30b", engine=engine)
    verdict = two_arms.write()["smol"]
    assert (verdict.supported_answer, verdict.cause) == ("use small", None)
    assert told in verdict.reasons[-1]
    assert "no audit here knows" in two_arms.page()
    # Half the replies ran away: that is a set-up that does not work, whoever serves it.
    ran: dict[str, Any] = {"engine": engine, "runaway": Rate(k=100, n=200)}
    two_arms.evaluate(FAIR, answer_right, suite="extended", model="30b", **ran)
    verdict = two_arms.write()["smol"]
    assert (verdict.supported_answer, verdict.cause) == ("inconclusive", "flawed set-up")
    assert verdict.reasons[0].startswith("reference, fair: 100 of 200 replies on extended ran into the token")


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


def test_where_no_suite_decides_each_one_says_why(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.evaluate(FAIR, answer_right, suite_version=2)
    world.evaluate(FAIR, answer_right, suite="extended")
    world.audit(FAIR)
    verdict = world.write()["smol"]
    assert (verdict.cause, verdict.suite) == ("no comparable reference", "extended")
    why = f"recorded: suite core20 version 2 against {load_suite('core20').version}."
    assert any(reason.endswith(why) for reason in verdict.reasons)
    assert why in world.page().split("## Decision matrix")[0]
    assert f"  smol: No comparable result of 30B on suite core20: none was measured here; {why}\n" in (
        capsys.readouterr().out
    )


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


def test_another_reference_than_the_recorded_one_is_not_recorded(two_arms: World) -> None:
    verdict = two_arms.write(reference="14b")["smol"]
    assert (verdict.cause, verdict.reference) == ("no comparable reference", None)
    assert verdict.reasons == ["No comparable result of 14B on suite core20: none was measured here."]
    assert next_commands(two_arms.page())[0] == "nox -s retest_fair -- --model 14b"


def test_the_reference_itself_is_not_measured_against_itself(world: World) -> None:
    world.evaluate(FAIR, answer_right, model="30b", suite="extended")
    world.audit(FAIR, model="30b")
    assert world.write(model="30b")["30b"].cause == "no comparable reference"
    assert next_commands(world.page("30b")) == ["--reference"]


def test_times_and_memory_of_other_machines_are_not_compared(two_arms: World) -> None:
    def cells(name: str) -> list[str]:
        rows = table_rows(two_arms.page())
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


def test_replies_that_nothing_seems_to_have_given_are_told_with_the_verdict(two_arms: World) -> None:
    odd = "on core20 all 20 replies are the same text (A plain answer.): look at replies.jsonl"
    verdict = two_arms.write(fixes="flawed")["smol"]
    page = two_arms.page()
    assert any(reason.startswith(f"flawed: {odd}") for reason in verdict.reasons)
    assert f"- flawed: {odd}" in page.split("## Decision matrix")[0]
    assert not any(odd in reason for reason in two_arms.write()["smol"].reasons), "of the other arm"
    two_arms.evaluate(FAIR, lambda _: "", model="30b")
    two_arms.audit(FAIR, model="30b")
    verdict = two_arms.write()["smol"]
    empty = "reference, fair: on core20 20 of 20 replies are empty: look at"
    assert any(reason.startswith(empty) for reason in verdict.reasons)
    assert verdict.cause == "flawed set-up", "nobody who is asked right says nothing"


def test_the_page_says_what_the_whole_of_a_direct_query_is(two_arms: World) -> None:
    two_arms.write()
    page = two_arms.page()
    assert [row[1] for row in table_rows(page) if row[0] == "the whole right (of a direct answer its form)"]
    assert "Whether the answer is true or on the question's terms is no part of it." in page
