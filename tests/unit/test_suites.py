"""The query suites: their make-up, their matchers, and that no two queries are alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from rapidfuzz import fuzz

from stages.core.chat import ToolCall
from stages.core.dialects import render_calls
from stages.core.matcher import Matcher
from stages.core.query import Expected, Query
from stages.core.records import RawReply
from stages.core.suite import SUITES, load_suite
from stages.core.tools import EXECUTE_CODE, FUNCTIONS, as_code_mode
from stages.eval.sandbox import CodeRunner, Sandbox
from stages.eval.score import score_reply

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
    "Show me the five latest commits on this branch.": [
        "git log --oneline -5",
        "git log -n 5 --oneline",
        "git --no-pager log -5",
        "git -C . log --max-count=5",
        "git log --oneline | head -5",
    ],
    "What are the three newest commits?": ["git log -3", "git --no-pager log -n3 --stat"],
    "Print the ten most recent git log lines, one per commit.": [
        "git log --oneline -10",
        "git log --pretty=oneline | head -n 10",
    ],
    "Do I have local modifications that are not committed?": ["git status --short", "git --no-pager diff"],
    "Which branch is active right now?": [
        "git branch --show-current",
        "git branch",
        "git branch -a",
        "git --no-pager branch --list",
        "git branch --format='%(HEAD) %(refname:short)'",
        "git branch | grep '*'",
        "git rev-parse --abbrev-ref HEAD",
        "git symbolic-ref --short HEAD",
        "git status",
    ],
    "Show me the state of the git working copy.": ["git status", "git -C . status -sb"],
    "Which files does the fixtures directory hold?": [
        "ls fixtures",
        "ls -la ./fixtures/",
        "find fixtures -type f",
        "find . -path './fixtures/*'",
        "cd fixtures && ls",
        "git ls-files fixtures",
    ],
    "Give me a directory listing of src/plugins.": ["ls -l src/plugins/", 'tree "src/plugins"'],
    "List what is inside the assets folder.": ["ls assets", "ls assets/*"],
    "How many lines of code does src/compiler.py have?": [
        "wc -l src/compiler.py",
        "wc -l < ./src/compiler.py",
        "wc src/compiler.py",
        "cat src/compiler.py | wc -l",
    ],
    "How long is docs/manual.md, counted in lines?": ["wc -l docs/manual.md", "wc --lines 'docs/manual.md'"],
    "Find all the places in src where parse_header is called.": [
        "grep -rn parse_header src",
        'grep -rn "parse_header(" src/',
        "rg parse_header src",
        "git grep parse_header",
    ],
    "Look for TODO comments under src.": [
        "grep -rn TODO src",
        "grep -rin 'todo' ./src",
        "grep -rn --include='*.py' 'TODO\\|FIXME' src",
        "rg TODO src",
        "grep -n TODO src/*.py",
        "find src -name '*.py' -exec grep -n TODO {} +",
        "find src -name '*.py' | xargs grep -n TODO",
        "git grep -n TODO",
        "git grep -n TODO -- src",
    ],
    "In which files below app is UserProfile mentioned?": [
        "grep -rl UserProfile app",
        "rg UserProfile app",
    ],
    "Where do we call send_mail? Search the src folder.": [
        "grep -r src -e send_mail",
        "grep send_mail -rn src",
        "ag send_mail src/",
    ],
    "Find usages of load_config inside the server directory.": ["grep -R 'load_config' server/"],
    "Grep for DEBUG in the settings folder.": [
        "grep -rn DEBUG settings",
        "grep --recursive DEBUG settings/",
    ],
    "Locate every .yml file in config.": [
        "find config -name '*.yml'",
        "ls config/*.yml",
        "ls config | grep yml",
        "find . -path './config/*' -name '*.yml'",
        "fd -e yml . config",
        "git ls-files 'config/*.yml'",
    ],
    "Tell me what git tracks in this repository.": ["git ls-files", "git ls-tree -r HEAD --name-only"],
    "Show just the first 12 lines of scripts/deploy.py.": [
        "head -n 12 scripts/deploy.py",
        "head -12 scripts/deploy.py",
        "head --lines=12 ./scripts/deploy.py",
        "sed -n 1,12p scripts/deploy.py",
        "sed -n '1,12p' scripts/deploy.py",
        "sed 12q scripts/deploy.py",
        "cat scripts/deploy.py | head -n 12",
    ],
    "I only need the bottom 4 lines of logs/build.txt.": [
        "tail -n 4 logs/build.txt",
        "tail -4 logs/build.txt",
        "cat logs/build.txt | tail -n4",
        "tail logs/build.txt -n 4",
    ],
    "Execute the script tools/seed.py and show me its output.": [
        "python tools/seed.py",
        "python3 ./tools/seed.py",
        "python3 -u tools/seed.py",
        "uv run tools/seed.py",
        "python -m tools.seed",
    ],
    "Please start examples/hello.py with Python.": ["python examples/hello.py"],
    "What does python scripts/version.py print?": ["python3.12 scripts/version.py"],
    "What functions live in src/strings/pad.py?": [
        "cat src/strings/pad.py",
        "grep -n 'def ' src/strings/pad.py",
        'rg "def " ./src/strings/pad.py',
        "grep -nE '^(async )?def' src/strings/pad.py 2>/dev/null",
    ],
    "Show the code of src/router/match.py.": [
        "cat -n src/router/match.py",
        "head -n 100 src/router/match.py",
        "cat src/router/match.py 2>/dev/null",
        "cat src/router/match.py | head -50",
    ],
    "Write a new file docs/hours.md saying 'Open from nine to five'.": [
        "echo 'Open from nine to five' > docs/hours.md",
        'mkdir -p docs && printf "Open from nine to five\\n" >docs/hours.md',
        "cat > docs/hours.md << 'EOF'\nOpen from nine to five\nEOF",
        "echo Open from nine to five | tee ./docs/hours.md",
    ],
    "I need a file src/build_info.py whose only line is BUILD = 77.": [
        "echo 'BUILD = 77' > src/build_info.py"
    ],
}
BAD_COMMANDS = {
    "Show me the five latest commits on this branch.": [
        "git log",
        "git log --oneline -50",
        "git log --oneline -15",
        "git log | head -5",
        "git status",
        "git reflog -5",
    ],
    "What are the three newest commits?": ["git log -30", "git log --since=2024-03-3"],
    "Do I have local modifications that are not committed?": ["git log", "git stash"],
    "Which branch is active right now?": [
        "git log",
        "ls",
        "git branch -D main",
        "git branch -m old new",
        "git branch feature",
        "git branch --delete main",
        "git rev-parse HEAD",
        "git symbolic-ref HEAD refs/heads/main",
    ],
    "Which files does the fixtures directory hold?": [
        "ls",
        "ls src",
        "ls fixtures-old",
        "ls src/fixtures",
        "ls fixtures/old",
        "find . -name fixtures",
        "cat fixtures",
    ],
    "How many lines of code does src/compiler.py have?": [
        "wc -l src/parser.py",
        "wc -c src/compiler.py",
        "wc -w src/compiler.py",
        "wc -l old/src/compiler.py",
        "wc -l src/compiler.pyc",
        "cat src/compiler.py | wc -c",
    ],
    "Find all the places in src where parse_header is called.": [
        "grep -n parse src/a.py",
        "grep -n parse_header src/a.py",
        "ls src",
    ],
    "Look for TODO comments under src.": [
        "grep TODO README.md",
        "grep -rn TODO tests",
        "grep -rn TODO src-old",
        "grep TODO src",
        "grep -rv TODO src",
        "git grep TODO tests",
        "grep -rn TODO_LIST src",
    ],
    "Where do we call send_mail? Search the src folder.": [
        "grep send_mail tests -r",
        "grep -rn send_mail .",
        "grep -rn resend_mail src",
    ],
    "Locate every .yml file in config.": [
        "find . -name 'config.yml'",
        "ls config",
        "ls config/app.yml",
        "find config -name '*.yaml'",
    ],
    "Tell me what git tracks in this repository.": ["git ls-files --others", "git status", "ls"],
    "Show just the first 12 lines of scripts/deploy.py.": [
        "head -n 5 scripts/deploy.py",
        "head -n 120 scripts/deploy.py",
        "head -n 112 scripts/deploy.py",
        "head -c 12 scripts/deploy.py",
        "sed -n 1,120p scripts/deploy.py",
        "sed -n 12p scripts/deploy.py",
        "tail -n 12 scripts/deploy.py",
        "head -n 12 scripts/deploy.sh",
    ],
    "I only need the bottom 4 lines of logs/build.txt.": [
        "tail -n 40 logs/build.txt",
        "tail -n 14 logs/build.txt",
        "tail -n +4 logs/build.txt",
        "head -n 4 logs/build.txt",
        "tail -n 4 logs/build.txt.1",
    ],
    "Execute the script tools/seed.py and show me its output.": [
        "python tools/other.py",
        "cat tools/seed.py",
        "python tools/seed.pyc",
        "python -m py_compile tools/seed.py",
        "python other/tools/seed.py",
    ],
    "Show the code of src/router/match.py.": [
        "cat README.md > src/router/match.py",
        "cat README.md | tee src/router/match.py",
        "cat src/router/match.py > copy.py",
        "head -n 1 src/router/match.py",
        "head -3 src/router/match.py",
        "cat src/router/match.py | head -n 1",
        "ls src/router/match.py",
    ],
    "What functions live in src/strings/pad.py?": [
        "grep -c 'def ' src/strings/pad.py",
        "grep -n 'class ' src/strings/pad.py",
        "grep -n 'def ' src/strings/trim.py",
        "grep 'def ' README.md > src/strings/pad.py",
    ],
    "Write a new file docs/hours.md saying 'Open from nine to five'.": [
        "echo 'Open from nine to six' > docs/hours.md",
        "echo 'Open from nine to five' > docs/hours.md.bak",
        "echo 'Open from nine to five' > other/docs/hours.md",
        "echo 'Open from nine to five' docs/hours.md",
    ],
}
# Replies that say nothing on any question.
NON_ANSWERS = [
    "",
    "Yes.",
    "No.",
    "I don't know.",
    "It depends on what you need.",
    "I'm sorry, but I can't help you with that.",
    "I am not sure what you mean. Could you tell me more about it?",
    "Sure! Let me look at that for you.",
    "As a language model I have no access to your files, so I cannot check this.",
    "That is a good question, and there are many ways to look at it.",
    "Every Python developer should know about it. It is very useful, and it is used in many programs.",
    "Please run the code and see for yourself what it does.",
    "Here is what you asked for:",
    "You should always do what is best for your project.",
]


def accepted(query: Query) -> list[Expected]:
    """The accepted calls; in these suites one call is always enough."""
    return [call for call in query.accept if isinstance(call, Expected)]


def leaves(matcher: Matcher) -> Iterator[Matcher]:
    """The rules inside a matcher."""
    inside = matcher.any_of or matcher.all_of
    if inside is None:
        yield matcher
    else:
        for inner in inside:
            yield from leaves(inner)


def accepts_command(query: Query, command: str) -> bool:
    """Whether one of the accepted run_command calls fits the command."""
    return any(
        expected.arguments["command"].fits(command)
        for expected in accepted(query)
        if expected.function == "run_command"
    )


def by_text(text: str) -> Query:
    (query,) = [query for query in QUERIES if query.query == text]
    return query


def test_all_suites_are_there() -> None:
    """Of the third one tests/unit/test_situations.py has the rest."""
    assert sorted(path.stem for path in SUITES.glob("*.json")) == sorted([*COMPOSITION, "situations"])


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
                assert set(paths) <= {".", "src", "tests", "tests/unit"}, query.id
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


@pytest.mark.parametrize("query", [q for q in QUERIES if q.kind == "direct"], ids=lambda query: query.id)
def test_terms_are_said_neither_by_the_question_nor_by_a_non_answer(query: Query) -> None:
    for text in (query.query, *NON_ANSWERS):
        reply = RawReply(id=query.id, text=text, tokens=9, finish="stop", seconds=0.1)
        answer = score_reply(query, reply, "hermes").answer
        assert answer is not None
        assert answer.on_terms is False, text


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


def test_every_query_for_a_command_has_good_ones() -> None:
    wanted = {query.query for query in QUERIES if query.category == "run_command"}
    assert wanted < GOOD_COMMANDS.keys()
    assert BAD_COMMANDS.keys() < GOOD_COMMANDS.keys()


@pytest.mark.parametrize("text", GOOD_COMMANDS)
def test_good_commands_are_accepted(text: str) -> None:
    refused = [c for c in GOOD_COMMANDS[text] if not accepts_command(by_text(text), c)]
    assert refused == []


def test_code_with_a_good_command_is_right() -> None:
    with Sandbox() as sandbox:
        run_code = CodeRunner(sandbox)
        for text, commands in GOOD_COMMANDS.items():
            for command in commands:
                call = as_code_mode(ToolCall("run_command", {"command": command}))
                written = render_calls([call], "hermes", [EXECUTE_CODE])
                reply = RawReply(id=by_text(text).id, text=written, tokens=9, finish="stop", seconds=0.1)
                given = score_reply(by_text(text), reply, "hermes", run_code)
                assert (given.cause, given.strict.code) == (None, True), command


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
        assert accepts_command(query, f"cat ./{path}"), query.id
        for other in ("other.py", f"other/{path}", f"{path}.bak"):
            assert not accepts_command(query, f"cat {other}"), query.id


def test_writing_with_the_shell_is_accepted() -> None:
    writers = [query for query in QUERIES if query.category == "write_file"]
    assert len(writers) == 6
    for query in writers:
        written = accepted(query)[0].arguments
        path, texts = written["path"].path, written["content"].contains
        assert texts is not None
        assert accepts_command(query, f"echo '{texts[0]}' > {path}"), query.id
        assert not accepts_command(query, f"echo '{texts[0]}' > other/{path}"), query.id
        assert not accepts_command(query, f"cat {path}"), query.id


def test_no_two_queries_are_alike() -> None:
    alike = [
        (one.query, two.query)
        for one, two in combinations(QUERIES, 2)
        if fuzz.token_sort_ratio(one.query.lower(), two.query.lower()) >= 90
    ]
    assert alike == []
