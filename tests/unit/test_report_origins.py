"""What a report concludes of replies that a server or a file gave, and what it says of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifact import MANIFEST
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FLAWED, parse_fixes
from stages.core.query import Query
from stages.core.records import Given, Manifest, read_record, write_record
from stages.report.__main__ import main
from tests.report_world import DIRECT, World, answer_right, call_for, next_commands

URL = "http://127.0.0.1:8080/v1"
SERVED = {"engine": "endpoint", "url": URL, "served_model": "my model"}
FILED = {"engine": "recorded", "file": "mine.jsonl"}


def answer_from(
    world: World, facts: dict[str, Any], answer: Callable[[Query], str], model: str = "smol", **more: Any
) -> None:
    """An evaluation of the fair arm by a server or from a file: of `extended`, if no other suite is named."""
    suite = more.pop("suite", "extended")
    given = Given(model=model, data=None, options={"suites": [suite]})
    how = {"suite": suite, "given": given, "model": model, "engine": facts["engine"], **more}
    path = world.evaluate(FAIR, answer, **how) / MANIFEST
    write_record(path, read_record(path, Manifest).model_copy(update={"facts": facts}))


def answer_in_prose(query: Query) -> str:
    """As behind a server that drops the tools."""
    return f"{DIRECT} {query.id}"


def answer_well(query: Query) -> str:
    """As another right model would."""
    return f"So be it.\n{call_for(query)}" if query.kind == "tool" else f"Simply {query.id}."


@pytest.fixture
def measured(two_arms: World) -> World:
    """A reference that was measured and audited here, always right."""
    two_arms.evaluate(FAIR, answer_right, suite="extended", model="30b")
    two_arms.audit(FAIR, model="30b")
    return two_arms


def head(world: World) -> str:
    return world.page().split("## Decision matrix")[0]


def test_a_candidate_from_a_file_decides_nothing(measured: World) -> None:
    answer_from(measured, FILED, answer_well)
    verdict = measured.write()["smol"]
    assert (verdict.point_answer, verdict.supported_answer) == ("use small", "inconclusive")
    assert verdict.cause == "unaudited set-up"
    assert "replies from a file, mine.jsonl. Nobody here saw how they were made" in verdict.reasons[0]
    assert "**Verdict: INCONCLUSIVE** (unaudited set-up)" in head(measured)
    assert "smol (replies from a file, mine.jsonl) decides 200/200" in head(measured)
    assert "extended fair (replies from a file, mine.jsonl) 200/200" in head(measured)
    own, renew = next_commands(measured.page())[:2]
    assert own.startswith("nox -s eval -- --model smol --fixes fair")
    assert own.endswith(" --force")
    assert renew.startswith("nox -s report -- --model smol")
    page = measured.page()
    assert "| fair (replies from a file, mine.jsonl) " in page
    assert "fair (measured)" in page, "on the other suite it was"
    assert "- Replies from a file, mine.jsonl: figures of " in page
    assert "file of replies `" in page
    assert "prompts `" not in page, "these outputs have none"


def test_arms_and_seeds_that_answered_elsewhere_are_no_pair(measured: World) -> None:
    """What lies between them is a set-up too, and not the fixes or the seed alone."""
    measured.evaluate(FLAWED, answer_right, suite="extended")
    measured.evaluate(FAIR, answer_right, suite="extended", seed=1)
    answer_from(measured, SERVED, answer_well)
    assert measured.write()["smol"].seeds == []
    page = measured.page()
    elsewhere = "measured against served by 127.0.0.1:8080/v1, so they differ in more than their fixes"
    assert f"- flawed and fair are not compared: {elsewhere}." in page
    assert "fair, seed 1 is not counted: measured, where fair is served by 127.0.0.1:8080/v1." in page
    assert "on extended (served by 127.0.0.1:8080/v1) the right tool in" in head(measured)


def test_a_served_candidate_that_is_good_enough_is_used_as_it_is_served(measured: World) -> None:
    answer_from(measured, SERVED, answer_well)
    verdict = measured.write()["smol"]
    assert (verdict.supported_answer, verdict.cause) == ("use small", None)
    told = "(candidate: served by 127.0.0.1:8080/v1; no audit knows how it was set up)"
    assert f"**Verdict: use small** {told}" in head(measured)
    assert "smol (served by 127.0.0.1:8080/v1) decides 200/200" in head(measured)
    assert any("the candidate, was measured as its server serves it" in r for r in verdict.reasons)


def test_a_served_candidate_that_fails_may_be_a_good_model(measured: World) -> None:
    """Its server drops the tools; nobody would say that of the model, whose audit found nothing."""
    answer_from(measured, SERVED, answer_in_prose)
    verdict = measured.write()["smol"]
    assert (verdict.point_answer, verdict.supported_answer) == ("stay with large", "inconclusive")
    assert verdict.cause == "unaudited set-up"
    assert "a server that drops the tools" in verdict.reasons[0]


def test_without_a_quantized_model_its_whole_retest_is_named(measured: World) -> None:
    shutil.rmtree(measured.artifacts / "smol" / "quantize")
    shutil.rmtree(measured.artifacts / "smol" / "eval")
    answer_from(measured, FILED, answer_well)
    measured.write()
    command = "nox -s retest_fair -- --model smol --arms fair --suites=extended --force"
    assert next_commands(measured.page())[0] == command


def test_flaws_outweigh_what_nobody_audited(measured: World) -> None:
    answer_from(measured, SERVED, lambda _: "")
    verdict = measured.write()["smol"]
    assert verdict.cause == "flawed set-up"
    assert any("a server that drops the tools" in reason for reason in verdict.reasons)
    assert not any("the same text" in reason for reason in verdict.reasons), "they are empty, once is enough"
    assert next_commands(measured.page()) == [
        "nox -s eval -- --model smol --fixes fair --suites=extended "
        f"--endpoint {URL} --served-model 'my model' --ask-again"
    ]


def test_a_server_is_told_at_the_verdict_of_the_reference_too(two_arms: World) -> None:
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    answer_from(two_arms, SERVED, answer_well, model="30b")
    assert two_arms.write()["smol"].supported_answer == "use small"
    told = "(reference: served by 127.0.0.1:8080/v1; no audit knows how it was set up)"
    assert f"**Verdict: use small** {told}" in head(two_arms)
    assert "30B (served by 127.0.0.1:8080/v1) 200/200" in head(two_arms)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (SERVED, f"--suites=extended --endpoint {URL} --served-model 'my model' --ask-again"),
        (FILED, "--suites=extended --replies mine.jsonl --force"),
    ],
)
def test_a_reference_that_says_nothing_is_asked_again_and_not_trained(
    two_arms: World, facts: dict[str, Any], words: str
) -> None:
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    answer_from(two_arms, facts, lambda _: "", model="30b")
    assert two_arms.write()["smol"].cause == "flawed set-up"
    assert next_commands(two_arms.page()) == [f"nox -s eval -- --model 30b --fixes fair {words}"]


def test_a_served_reference_is_asked_for_the_suite_that_it_lacks(two_arms: World) -> None:
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    answer_from(two_arms, SERVED, answer_well, model="30b", suite="core20")
    assert two_arms.write()["smol"].cause == "too few queries"
    measure = next_commands(two_arms.page())[-2]
    assert measure.startswith("nox -s eval -- --model 30b --fixes fair ")
    assert measure.endswith(f"--endpoint {URL} --served-model 'my model'")


def test_an_arm_that_lacks_fixes_gets_these_first(measured: World) -> None:
    """Whatever else is wrong: the command beside `has all five` is the one that makes such an arm."""
    lacking = parse_fixes("json,tools,eos,parser")
    for model in ("smol", "30b"):
        measured.evaluate(lacking if model == "smol" else FAIR, answer_well, model=model, answered_by="one")
    measured.audit(lacking)
    assert measured.write(fixes="json,tools,eos,parser")["smol"].cause == "flawed set-up"
    assert "run the one that has all five, `nox -s retest_fair -- --model smol --arms fair`" in head(measured)


def test_a_useless_reference_hides_nothing_of_a_served_candidate(measured: World) -> None:
    """No ratio can be formed then; that no audit knows the server is told all the same."""
    answer_from(measured, SERVED, answer_well)
    call = '<tool_call>\n{"name": "execute_code", "arguments": {"code": "1"}}\n</tool_call>'

    def answer_wrong(query: Query) -> str:
        return DIRECT if query.kind == "tool" else call + query.id

    measured.evaluate(FAIR, answer_wrong, suite="extended", model="30b")
    verdict = measured.write()["smol"]
    assert verdict.cause == "no comparable reference"
    assert any("a call that it drops counts against the candidate" in reason for reason in verdict.reasons)


def test_one_file_for_both_compares_a_model_with_itself(measured: World) -> None:
    for model in ("smol", "30b"):
        answer_from(measured, FILED, answer_right, model=model, answered_by="one")
    verdict = measured.write()["smol"]
    assert (verdict.supported_answer, verdict.cause) == ("inconclusive", "flawed set-up")
    assert verdict.reasons[0] == "one file gave the replies of both sides: smol is compared with itself"
    assert next_commands(measured.page())[0].startswith("nox -s eval -- --model smol --fixes fair")


def test_equal_replies_of_both_are_told(measured: World) -> None:
    said = "All 200 replies of SmolLM2-135M-Instruct on extended are those of the reference"
    answer_from(measured, SERVED, answer_right)
    assert any(reason.startswith(said) for reason in measured.write()["smol"].reasons)
    answer_from(measured, SERVED, answer_well)
    assert not any(reason.startswith(said) for reason in measured.write()["smol"].reasons)


def test_a_model_that_is_a_reference_alone_has_no_report_of_its_own(
    two_arms: World, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_from(two_arms, FILED, answer_right, model="30b")
    assert main([]) == 0
    assert "  30b: a reference and no candidate, so it has no report of its own: " in capsys.readouterr().out
    assert sorted(path.stem for path in Path("reports").glob("*.md")) == ["first-experiment", "smol"]
    with pytest.raises(StageError, match="no audit of 30b, arm fair"):
        two_arms.write("30b")
    two_arms.evaluate(FAIR, answer_right, model="30b")  # one of its suites ran here
    assert main([]) == 2
