"""Several seeds of one arm: the lowest decides, the others stand beside it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from stages.core.artifact import MANIFEST
from stages.core.fixes import FAIR, FLAWED
from stages.core.query import Query
from stages.core.records import Rate, Verdict, read_record
from stages.core.suite import load_suite
from tests.report_world import DIRECT, World, answer_right, table_rows


def wrong_on(*numbers: int) -> Callable[[Query], str]:
    """Right answers but for these queries of core20."""
    wrong = {load_suite("core20").queries[number].id for number in numbers}
    return lambda query: DIRECT if query.id in wrong else answer_right(query)


def test_several_seeds_are_shown_and_the_lowest_decides(two_arms: World) -> None:
    wrong = load_suite("core20").queries[0].id
    two_arms.evaluate(FAIR, lambda q: DIRECT if q.id == wrong else answer_right(q), seed=3)
    assert two_arms.write()["smol"].candidate_decision.k == 20
    assert "fair, seed 3" in two_arms.page()
    verdict = two_arms.write(seed=3)["smol"]
    assert (verdict.seed, verdict.candidate_decision.k) == (3, 19)


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
    rows = table_rows(two_arms.page())
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
