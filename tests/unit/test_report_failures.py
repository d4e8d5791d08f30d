"""What went wrong in an arm's replies: causes, categories, and examples that break nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from stages.core.fixes import FAIR, FLAWED
from stages.core.query import Query
from stages.core.records import Given
from stages.core.suite import load_suite
from tests.report_world import (
    DIRECT,
    NASTY,
    QUERIES,
    World,
    answer_right,
    call_for,
    check_tables,
    table_rows,
    write_suite,
)


def test_a_failure_says_what_was_asked_and_expected(two_arms: World) -> None:
    two_arms.write(fixes="flawed")
    failures = two_arms.page().split("## Failures")[1]
    assert "13 replies of 20 failed: 13 times decided wrong, no call was made." in failures
    shown = [line.split("(")[1].split(")")[0] for line in failures.splitlines() if line.startswith("### ")]
    assert sorted(shown) == ["pytest_run", "read_file", "ruff_check", "run_command", "typecheck"]
    query = load_suite("core20").queries[0]
    assert f"Asked: {query.query}" in failures
    assert "Expected: `typecheck(path='src/payments/gateway.py')`" in failures


def test_what_only_a_run_could_tell_is_not_called_right(world: World) -> None:
    """A call without its closing bracket, in code that was not run, has arguments that nobody knows."""

    def answer(query: Query) -> str:
        right = answer_right(query)
        return right.replace("')", "'") if query.category in ("typecheck", "run_command") else right

    untold = "Nobody knows of 5 replies of 20 whether the whole is right: only a full run of the code could"
    world.evaluate(FAIR, answer)
    world.audit(FAIR)
    world.write()
    page = world.page()
    assert f"## Failures: fair on core20\n\n{untold}" in page
    rows = {row[0]: row[1] for row in table_rows(page)}
    assert rows["the whole right (of a direct answer its form)"].startswith("15/15 = ")
    assert rows["right tool called"].startswith("13/13 = ")
    world.evaluate(FAIR, lambda query: DIRECT if query.category == "pytest_run" else answer(query))
    world.write()
    head = f"3 replies of 20 failed: 3 times decided wrong, no call was made. {untold}"
    assert head in world.page()


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
    rows = table_rows(page)
    for row in (
        ["decided wrong", "13", "0"],
        ["malformed", "0", "3"],
        ["wrong tool", "0", "3"],
        ["wrong arguments", "0", "5"],
        ["all failed replies", "13 of 20", "11 of 20"],
    ):
        assert row in rows, row
    assert "11 replies of 20 failed: 3 times malformed, read leniently all was right; 3 times wrong" in page
    assert [row[1] for row in rows if row[0].startswith("the whole right")] == [
        "7/20 = 35.0 % (18.1 to 56.7)"
    ]
    assert "By tool" not in page, "categories of Code Mode are its functions"
    check_tables(page)
    tables = dict(zip(*[iter(re.split(r"\n\n(By category, .*:)\n\n", page)[1:])] * 2, strict=True))
    tests = {
        head: [row[1:] for row in table_rows(table.split("\n\n")[0]) if row[0] == "pytest_run"]
        for head, table in tables.items()
    }
    none, all_ = "0/3 = 0.0 % (0.0 to 56.1)", "3/3 = 100.0 % (43.9 to 100.0)"
    assert tests == {
        "By category, tool or direct decided right (read strictly):": [[none, all_, all_]],
        "By category, tool or direct decided right (read leniently):": [[none, all_, "–"]],
        "By category, the whole right (read strictly):": [[none, none, "–"]],
        "By category, the whole right (read leniently):": [[none, all_, "–"]],
    }, "the recorded reference has decisions alone"


def test_what_both_readings_share_is_shown_once_and_what_a_publisher_did_not_say_is_left_out(
    world: World,
) -> None:
    world.evaluate(FAIR, answer_right)
    world.audit(FAIR)
    world.write(None)
    heads = [line for line in world.page().splitlines() if line.startswith("By category, ")]
    assert [head.count("(read") for head in heads] == [1, 1, 2]
    published = [line for line in world.page("first-experiment").splitlines() if line.startswith("By cat")]
    assert published == ["By category, tool or direct decided right (read strictly):"]


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
    rows = table_rows(page)
    assert "By tool, the whole right (read strictly), the whole right (read leniently):" in page
    assert ["left", "1/2 = 50.0 % (9.5 to 90.5)"] in rows
    assert ["right", "0/1 = 0.0 % (0.0 to 79.3)"] in rows
    check_tables(page)


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
