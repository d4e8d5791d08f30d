"""The query suites: their make-up, their matchers, and that no two queries are alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from rapidfuzz import fuzz

from stages.core.matcher import Matcher
from stages.core.query import Expected, Query
from stages.core.suite import SUITES, load_suite
from stages.core.tools import FUNCTIONS

COMPOSITION = {
    "core20": {
        "typecheck": 3,
        "ruff_check": 3,
        "pytest_run": 3,
        "read_file": 2,
        "run_command": 2,
        "concept": 3,
        "comparison": 2,
        "best_practice": 2,
    },
    "extended": {
        "typecheck": 26,
        "ruff_check": 26,
        "pytest_run": 26,
        "read_file": 24,
        "run_command": 22,
        "write_file": 6,
        "concept": 30,
        "comparison": 20,
        "best_practice": 20,
    },
}
QUERIES = [query for name in COMPOSITION for query in load_suite(name).queries]
# What a good model would write for the queries whose command is free text.
GOOD_COMMANDS = {
    "Show me the five latest commits on this branch.": ["git log --oneline -5", "git log -n 5 --oneline"],
    "Find all the places in src where parse_header is called.": [
        "grep -rn parse_header src",
        'grep -rn "parse_header(" src/',
        "rg parse_header src",
        "git grep parse_header",
    ],
    "Which files does the fixtures directory hold?": [
        "ls fixtures",
        "ls -la ./fixtures/",
        "find fixtures -type f",
    ],
    "How many lines of code does src/compiler.py have?": [
        "wc -l src/compiler.py",
        "cat src/compiler.py | wc -l",
    ],
    "Locate every .yml file in config.": ["find config -name '*.yml'", "ls config/*.yml"],
    "Show just the first 12 lines of scripts/deploy.py.": [
        "head -n 12 scripts/deploy.py",
        "head -12 scripts/deploy.py",
        "sed -n 1,12p scripts/deploy.py",
    ],
    "Execute the script tools/seed.py and show me its output.": [
        "python tools/seed.py",
        "python3 ./tools/seed.py",
    ],
    "Which branch is active right now?": ["git branch --show-current", "git status"],
}
BAD_COMMANDS = {
    "Show me the five latest commits on this branch.": ["git log", "git log --oneline -50", "git status"],
    "Find all the places in src where parse_header is called.": ["grep -n parse src/a.py", "ls src"],
    "Which files does the fixtures directory hold?": ["ls", "ls src", "ls fixtures-old"],
    "How many lines of code does src/compiler.py have?": ["wc -l src/parser.py"],
    "Show just the first 12 lines of scripts/deploy.py.": ["head -n 5 scripts/deploy.py"],
    "Execute the script tools/seed.py and show me its output.": [
        "python tools/other.py",
        "cat tools/seed.py",
    ],
    "Which branch is active right now?": ["git log", "ls"],
}


def accepted(query: Query) -> list[Expected]:
    """The accepted calls; in these suites one call is always enough."""
    return [call for call in query.accept if isinstance(call, Expected)]


def leaves(matcher: Matcher) -> Iterator[Matcher]:
    """The rules inside a matcher."""
    if matcher.any_of is None:
        yield matcher
    else:
        for inner in matcher.any_of:
            yield from leaves(inner)


def accepts_command(query: Query, command: str) -> bool:
    """Whether one of the accepted run_command calls fits the command."""
    rules = [
        rule
        for expected in accepted(query)
        if expected.function == "run_command"
        for rule in leaves(expected.arguments["command"])
    ]
    return any(
        re.search(rule.regex, command) is not None
        if rule.regex is not None
        else all(part in command for part in rule.contains or ("\0",))
        for rule in rules
    )


def by_text(text: str) -> Query:
    (query,) = [query for query in QUERIES if query.query == text]
    return query


def test_both_suites_are_there() -> None:
    assert sorted(path.stem for path in SUITES.glob("*.json")) == sorted(COMPOSITION)


@pytest.mark.parametrize("name", COMPOSITION)
def test_composition(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.version >= 1
    assert Counter(query.category for query in suite.queries) == COMPOSITION[name]


def test_the_fingerprint_is_that_of_what_is_asked_and_accepted() -> None:
    suite = load_suite("core20")
    first, *others = suite.queries
    (call,) = first.accept

    def changed(**fields: Any) -> str:
        return suite.model_copy(update=fields).fingerprint

    def with_first(**fields: Any) -> str:
        return changed(queries=(first.model_copy(update=fields), *others))

    assert changed(name="mine", version=7, description="Mine.") == suite.fingerprint
    assert changed(queries=suite.queries[::-1]) == suite.fingerprint
    prints = [
        suite.fingerprint,
        load_suite("extended").fingerprint,
        changed(queries=tuple(others)),
        with_first(id="other"),
        with_first(query=first.query + "?"),
        with_first(category="other"),
        with_first(accept=(*first.accept, call.model_copy(update={"arguments": {}}))),
        with_first(accept=(call.model_copy(update={"arguments": {}}),)),
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(("name", "tool", "direct"), [("core20", 13, 7), ("extended", 130, 70)])
def test_kinds(name: str, tool: int, direct: int) -> None:
    kinds = Counter(query.kind for query in load_suite(name).queries)
    assert kinds == {"tool": tool, "direct": direct}


def test_category_says_the_kind() -> None:
    for query in QUERIES:
        assert (query.category in FUNCTIONS) == (query.kind == "tool"), query.id
        if query.kind == "tool":
            assert accepted(query)[0].function == query.category, query.id


def test_accepted_calls_exist() -> None:
    for query in QUERIES:
        for expected in accepted(query):
            function = FUNCTIONS[expected.function]
            assert expected.arguments, query.id
            assert set(expected.arguments) <= set(function.parameters), query.id


def test_path_is_named_in_the_query_or_stands_for_the_project() -> None:
    for query in QUERIES:
        for expected in accepted(query):
            if "path" not in expected.arguments:
                continue
            paths = [rule.path for rule in leaves(expected.arguments["path"])]
            assert all(paths), query.id
            if paths[0] == ".":
                assert set(paths) <= {".", "src", "tests"}, query.id
                assert not re.search(r"\w/\w|\.py\b", query.query), query.id
            else:
                assert [path for path in paths if path and path in query.query] == paths, query.id


def test_direct_queries_have_terms_and_no_path() -> None:
    direct = [query for query in QUERIES if query.kind == "direct"]
    assert len(direct) == 77
    for query in direct:
        assert len(query.terms) >= 3, query.id
        assert not query.accept, query.id
        assert all(term == term.strip() and term for term in query.terms), query.id


def test_patterns_compile() -> None:
    rules = [
        rule
        for query in QUERIES
        for expected in accepted(query)
        for matcher in expected.arguments.values()
        for rule in leaves(matcher)
    ]
    patterns = [re.compile(rule.regex) for rule in rules if rule.regex is not None]
    assert len(patterns) >= 40


@pytest.mark.parametrize("text", GOOD_COMMANDS)
def test_good_commands_are_accepted(text: str) -> None:
    refused = [c for c in GOOD_COMMANDS[text] if not accepts_command(by_text(text), c)]
    assert refused == []


@pytest.mark.parametrize("text", BAD_COMMANDS)
def test_bad_commands_are_refused(text: str) -> None:
    accepted = [c for c in BAD_COMMANDS[text] if accepts_command(by_text(text), c)]
    assert accepted == []


def test_reading_with_cat_is_accepted() -> None:
    readers = [query for query in QUERIES if query.category == "read_file"]
    assert len(readers) == 26
    for query in readers:
        path = next(iter(leaves(accepted(query)[0].arguments["path"]))).path
        assert accepts_command(query, f"cat {path}"), query.id
        assert not accepts_command(query, "cat other.py"), query.id


def test_no_two_queries_are_alike() -> None:
    alike = [
        (one.query, two.query)
        for one, two in combinations(QUERIES, 2)
        if fuzz.token_sort_ratio(one.query.lower(), two.query.lower()) >= 90
    ]
    assert alike == []
