"""Code Mode in the sandbox: what code did, whose fault an error is, and what the project answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from stages.core.chat import ToolCall
from stages.core.dialects import parse_any, render_calls
from stages.core.query import Expected, Query
from stages.core.records import CodeCall, CodeRun, RawReply, Score
from stages.core.sample import load_sample
from stages.core.suite import load_suite
from stages.core.tools import EXECUTE_CODE, FUNCTIONS
from stages.eval.code import functions_called
from stages.eval.commands import answer_command
from stages.eval.project import Project, find_paths, make_project, make_project_for, named_paths
from stages.eval.results import all_fields
from stages.eval.sandbox import CodeRunner, Limits, Sandbox
from stages.eval.score import score_reply

ROOT = Path(__file__).resolve().parents[2]
PATH = "src/payments/gateway.py"
REPLY = re.compile(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", re.DOTALL)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(Limits(seconds=60)) as sandbox:  # so that a busy machine decides nothing
        yield sandbox


@pytest.fixture(scope="module")
def project() -> Project:
    return make_project([PATH])


# --- what code did ----------------------------------------------------------------------------------


def test_a_typed_result_is_read_field_by_field(sandbox: Sandbox, project: Project) -> None:
    code = (
        f"result = typecheck({PATH!r})\n"
        "print(result.error_count, 'errors')\n"
        "for error in result.errors:\n"
        "    print(error.file, error.line, error.code)"
    )
    run = sandbox.run_code(code, project)
    assert run.outcome == "ran"
    assert run.works is True
    assert run.error is None
    assert run.calls == [CodeCall(function="typecheck", arguments={"path": PATH}, recorded=True)]
    assert run.printed == (f"2 errors\n{PATH} 7 invalid-explicit-return\n{PATH} 13 invalid-argument-type\n")
    assert run.fields_used == [
        "TypeCheckResult.error_count",
        "TypeCheckResult.errors",
        "TypeFinding.code",
        "TypeFinding.file",
        "TypeFinding.line",
    ]
    assert run.fields_missing == []
    assert CodeRun.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("r = ruff_check('src')\nprint(sorted(r.violations, key=lambda v: v.line))", {"violations", "line"}),
        ("print(max(ruff_check('.').violations, key=lambda v: (v.code, v.line)).file)", {"file", "code"}),
        ("print(list(map(lambda t: t.outcome, pytest_run('.').tests)))", {"tests", "outcome"}),
        ("print(', '.join(e.message for e in typecheck('.').errors))", {"errors", "message"}),
        ("print('{0.passed}'.format(pytest_run('tests')))", set()),  # read where nothing can be asked
        ("print(ruff_check('.'))", set()),
        ("if pytest_run('tests').success:\n    print(typecheck('.').error_count)", {"success"}),
    ],
)
def test_fields_are_those_that_were_read(
    sandbox: Sandbox, project: Project, code: str, used: set[str]
) -> None:
    run = sandbox.run_code(code, project)
    assert run.outcome == "ran", run.error
    assert {name.partition(".")[2] for name in run.fields_used} >= used
    if not used or "success" in used:
        assert len(run.fields_used) == len(used)


def test_every_field_can_be_read_and_traced(sandbox: Sandbox, project: Project) -> None:
    lines = [f"{name}_result = {name}('.')" for name, f in FUNCTIONS.items() if f.result]
    for name, function in FUNCTIONS.items():
        for field, info in (function.result.model_fields if function.result else {}).items():
            lines.append(f"print({name}_result.{field})")
            (item,) = getattr(info.annotation, "__args__", (None,))
            lines += [
                f"print({name}_result.{field}[0].{inner})" for inner in getattr(item, "model_fields", ())
            ]
    run = sandbox.run_code("\n".join(lines), project)
    assert run.error is None
    assert set(run.fields_used) == all_fields()
    assert len(all_fields()) == 24


def test_a_field_that_does_not_exist_is_named(sandbox: Sandbox, project: Project) -> None:
    run = sandbox.run_code("r = ruff_check('.')\nprint(r.success)\nprint(r.total_errors)", project)
    assert (run.outcome, run.works) == ("failed", False)
    assert run.error == "AttributeError: 'RuffResult' object has no attribute 'total_errors'"
    assert (run.fields_used, run.fields_missing) == (["RuffResult.success"], ["RuffResult.total_errors"])
    asked = sandbox.run_code("print(getattr(typecheck('.').errors[0], 'column', 0))", project)
    assert (asked.outcome, asked.fields_missing) == ("ran", ["TypeFinding.column"])


def test_calls_are_noted_with_what_was_passed(sandbox: Sandbox, project: Project) -> None:
    code = (
        "for name in ('dough', 'oven'):\n"
        "    read_file(f'src/{name}.py')\n"
        "write_file(content='x = 1\\n', path='new/a.py')\n"
        "print(read_file('./new/a.py'))\n"
        "from pathlib import Path\n"
        "typecheck(Path('src') / 'dough.py')\n"
        "pytest_run(folder='tests')"
    )
    run = sandbox.run_code(code, project)
    assert [(call.function, call.arguments) for call in run.calls] == [
        ("read_file", {"path": "src/dough.py"}),
        ("read_file", {"path": "src/oven.py"}),
        ("write_file", {"content": "x = 1\n", "path": "new/a.py"}),
        ("read_file", {"path": "./new/a.py"}),
        ("typecheck", {"path": "src/dough.py"}),
        ("pytest_run", {"folder": "tests"}),
    ]
    assert run.printed == "x = 1\n\n"
    assert run.error == "TypeError: pytest_run() missing a required argument: 'path'"


@pytest.mark.parametrize(
    ("code", "something"),
    [("print()", False), ("print('  \\n')", False), ("typecheck('.')", False), ("print('', 0)", True)],
)
def test_printing_nothing_is_seen(sandbox: Sandbox, project: Project, code: str, something: bool) -> None:
    assert sandbox.run_code(code, project).printed_something is something


def test_printed_text_is_cut_and_the_code_goes_on(sandbox: Sandbox, project: Project) -> None:
    run = sandbox.run_code("for n in range(9000):\n    print('ab')\nprint(typecheck('.').success)", project)
    assert run.outcome == "ran"
    assert run.printed == "ab\n" * 3333 + "a"
    assert len(run.calls) == 1


def test_a_result_can_be_dumped(sandbox: Sandbox, project: Project) -> None:
    code = "r = pytest_run('tests')\nprint(r.model_dump()['failed'])\nprint(r.model_dump_json(indent=2)[:2])"
    assert sandbox.run_code(code, project).printed == "2\n{\n\n"


def test_code_that_ends_itself_ran(sandbox: Sandbox, project: Project) -> None:
    ends = ("raise SystemExit", "raise SystemExit(0)", "import sys\nsys.exit()", "import sys\nsys.exit('no')")
    for end in (*ends, "exit()", "quit(0)"):
        run = sandbox.run_code(f"print(1)\n{end}\nprint(2)", project)
        assert (run.outcome, run.error, run.printed) == ("ran", None, "1\n"), end
    both = sandbox.run_code("raise ValueError(1, 2) if 1 else SystemExit(0)", project)
    assert both.outcome == "unsupported"
    assert sandbox.run_code("raise SystemExit('no')", project).outcome == "failed"


def test_runs_share_nothing(sandbox: Sandbox, project: Project) -> None:
    assert sandbox.run_code("x = 1\nwrite_file('src/dough.py', '')", project).outcome == "ran"
    assert sandbox.run_code("print(x)", project).error == "NameError: name 'x' is not defined"
    assert "class Batch" in sandbox.run_code("print(read_file('src/dough.py'))", project).printed


def test_runs_are_the_same_every_time(sandbox: Sandbox, project: Project) -> None:
    code = (
        "import random, time, datetime\ntime.sleep(50)\n"
        "print(random.random(), time.time(), datetime.datetime.now(), id([]), hash('a'))"
    )
    first = sandbox.run_code(code, project)
    assert first.outcome == "ran"
    assert sandbox.run_code(code, project) == first


# --- whose fault ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("print(typecheck('src/none.py').success)", "FileNotFoundError: [Errno 2]"),
        ("read_file('src')", "IsADirectoryError"),
        ("read_file('../secret')", "FileNotFoundError"),
        ("write_file('/tmp/x', '')", "PermissionError"),
        ("write_file('src', '')", "IsADirectoryError"),
        ("read_file('a\\0b')", "ValueError: embedded null byte"),
        ("typecheck()", "TypeError: typecheck() missing"),
        ("typecheck('.', strict=True)", "TypeError"),
        ("typecheck(name='.')", "TypeError"),
        ("ruff_check(['src'])", "TypeError: ruff_check() needs a str for path, not list"),
        ("print(typecheck('.')['errors'])", "TypeError"),
        ("for error in typecheck('.'):\n    print(error)", "TypeError"),
        ("print(result.errors)", "NameError"),
        ("mypy_check('.')", "NameError"),
        ("from tools import typecheck", "ModuleNotFoundError"),
        ("print('a' + 1)", "TypeError"),
        ("print(", "SyntaxError"),
        ("if True\n    print(1)", "SyntaxError"),
        ("  print(1)\nprint(2)", "SyntaxError"),
        ("print('\ud800')", "SyntaxError"),
        ("[].push(1)", "AttributeError"),
        ("await typecheck('.')", "TypeError"),
        ("raise NotImplementedError('later')", "NotImplementedError"),
        ("assert pytest_run('tests').success", "AssertionError"),
        ("def f():\n    return f()\nf()", "RecursionError"),
    ],
)
def test_errors_of_the_code(sandbox: Sandbox, project: Project, code: str, kind: str) -> None:
    run = sandbox.run_code(code, project)
    assert (run.outcome, run.works, run.timed_out) == ("failed", False, False), run.error
    assert run.error is not None
    assert run.error.startswith(kind)
    assert "\n" not in run.error


@pytest.mark.parametrize(
    "code",
    [
        "import textwrap",
        "import subprocess",
        "from pydantic import BaseModel",
        "from dataclasses import asdict",
        "def numbers():\n    yield 1\nprint(list(numbers()))",
        "class Report(dict):\n    pass",
        "del x",
        "print(dir())",
        "import os\nprint(os.environ)",
        "import sys\ntry:\n    sys.exit(0)\nexcept SystemExit:\n    print(1)",
        "from sys import exit\nprint(typecheck('.'))\nexit(1)",
        "with open('README.md') as file:\n    print(file.read())",
        "from pathlib import Path\nprint(Path('README.md').read_text())",
        "import os\nprint(os.path.exists('src'))",
        "print(typecheck('.').copy())",
        "print(typecheck('.').errors[0].dict())",
        "import sys\nsys.stdout.write('a')",
        "print(typecheck.__name__)",
        "print(run_command('df -h').splitlines()[1])",
        "write_file('a.py', 'x = ')\nprint(typecheck('a.py').errors[0])",
    ],
)
def test_what_only_the_sandbox_lacks_is_unscored(sandbox: Sandbox, project: Project, code: str) -> None:
    run = sandbox.run_code(code, project)
    assert (run.outcome, run.works) == ("unsupported", None), run.error
    assert run.error


# --- the project ------------------------------------------------------------------------------------


def gold_codes(query: Query) -> list[str]:
    """The simplest code for each accepted call whose arguments are paths or given texts."""
    return [
        f"print({call.function}({', '.join(values)}))"
        for call in query.accept
        if isinstance(call, Expected)
        and len(values := gold_arguments(call)) == len(FUNCTIONS[call.function].parameters)
    ]


def gold_arguments(call: Expected) -> list[str]:
    matchers = [m.any_of[0] if m.any_of else m for m in call.arguments.values()]
    return [repr(m.path or (m.contains or ("",))[0]) for m in matchers if m.path or m.contains]


def score_code(query: Query, code: str, sandbox: Sandbox) -> Score:
    text = render_calls([ToolCall(EXECUTE_CODE.name, {"code": code})], "hermes", [EXECUTE_CODE])
    reply = RawReply(id=query.id, text=text, tokens=9, finish="stop", seconds=0.1)
    return score_reply(query, reply, "hermes", CodeRunner(sandbox))


@pytest.mark.parametrize("name", ["core20", "extended"])
def test_every_query_of_the_suites_can_be_answered(sandbox: Sandbox, name: str) -> None:
    for query in load_suite(name).queries:
        project = make_project_for(query)
        for code in gold_codes(query):
            run = sandbox.run_code(code, project)
            assert run.works, (query.query, code, run.error)
            assert run.printed_something, code
            assert score_code(query, code, sandbox).cause is None
        assert len(gold_codes(query)) >= (query.category in FUNCTIONS and query.category != "run_command")


def test_codes_of_the_corpus_run(sandbox: Sandbox) -> None:
    lines = (ROOT / "datasets/corpus/valid.jsonl").read_text(encoding="utf-8").splitlines()
    replies = [reply for line in lines for reply in REPLY.findall(json.loads(line)["text"])]
    calls = [call for reply in replies for call in parse_any(reply, [EXECUTE_CODE]).calls]
    assert len(calls) == 60
    for call in calls:
        paths = [text for f in functions_called(call) for text in f.arguments.values() if text]
        run = sandbox.run_code(str(call.arguments["code"]), make_project(paths))
        assert run.works, (call, run.error)
        assert run.printed_something
        assert [c.function for c in run.calls] == [f.function for f in functions_called(call)]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("Please verify that api/routes.py type checks.", ["api/routes.py"]),
        ("What does CONTRIBUTING.md say?", ["CONTRIBUTING.md"]),
        (
            "Open tests/integration/, docker/Dockerfile and setup.cfg",
            ["tests/integration/", "docker/Dockerfile", "setup.cfg"],
        ),
        ("See `a.b/c.py`, https://example.com/x.py or foo.bar.md.", ["a.b/c.py", "foo.bar.md"]),
        ("Show me version 3.11 of it, e.g. now.", []),
    ],
)
def test_paths_are_found_in_words(text: str, paths: list[str]) -> None:
    assert find_paths(text) == paths


def test_paths_are_found_in_accepted_calls() -> None:
    accepted = {"path": {"any_of": [{"exact": "plugins"}, {"path": "src"}, {"regex": "a/b"}]}, "id": "lint-1"}
    assert list(named_paths([accepted, {"query": "See docs/a.md", "terms": ["x"]}])) == [
        "plugins",
        "src",
        "docs/a.md",
    ]


def test_a_stand_in_goes_by_its_new_path() -> None:
    files = make_project(
        [PATH, "tests/test_login.py", "tools/seed.py", "plugins", "../out.py", "/etc/x.py"]
    ).files
    added = files.keys() - make_project().files.keys()
    assert added == {PATH, "tests/test_login.py", "tools/seed.py", "plugins/plugins.py"}
    assert {finding.file for finding in files[PATH].errors} == {PATH}
    assert all(test.name.startswith("tests/test_login.py::") for test in files["tests/test_login.py"].tests)
    assert files["tests/test_login.py"].tests
    assert files["tools/seed.py"].printed == "2 kinds of bread\nthe cheapest costs 420 cents"


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The corpus builder's real tools; its folder is on the path only here."""
    monkeypatch.syspath_prepend(str(ROOT / "datasets" / "build"))
    import runners

    return runners


COMMANDS = [
    "cat README.md",
    "cat none.txt",
    f"head -n 3 {PATH}",
    f"head -2 {PATH}",
    f"tail -n 4 {PATH}",
    f"wc -l {PATH}",
    "wc -l none.txt",
    "ls",
    "ls src",
    "ls README.md",
    "ls none",
    "grep -rn def src",
    "grep -rn Batch .",
    f"grep -rni total {PATH}",
    "grep -rn nothing_like_this src",
    "grep -rn def none",
    'find src -name "*.py"',
    "find . -name '*.md'",
    "find none -name '*.md'",
    "python scripts/prices.py",
]


def test_recorded_answers_are_what_the_tools_say(
    sandbox: Sandbox, runners: ModuleType, tmp_path: Path
) -> None:
    """The tools really run over a project with stand-ins; the sandbox gives the same answers."""
    names = [
        PATH,
        "api/routes.py",
        "src/utils/dates.py",
        "worker/queue.py",
        "tests/test_login.py",
        "tests/integration",
    ]
    project = make_project(names)
    for path, file in project.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(file.text, encoding="utf-8")
    workshop = runners.Workshop(tmp_path, {})
    places = {
        "typecheck": [".", "src", PATH],
        "ruff_check": [".", "worker", PATH],
        "pytest_run": [".", "tests/integration"],
    }
    for function, paths in places.items():
        for path in paths:
            run = sandbox.run_code(f"print({function}({path!r}).model_dump_json())", project)
            assert run.printed.strip() == getattr(workshop, function)(path).model_dump_json()
    for command in COMMANDS:
        answer = answer_command(command, project)
        assert answer is not None, command
        assert sorted(answer.splitlines()) == sorted(workshop.run_command(command).splitlines()), command


UNKNOWN = [
    "",
    "df -h",
    "rm -rf .",
    "git push",
    "ls -la",
    "ls *.py",
    "ls; ls",
    "cat a | wc -l",
    "cat README.md > x",
    "cat src",
    "cat 'a",
    "cat " + "a" * 2000,
    "head -n 1 a b",
    "echo $HOME",
    "`id`",
    "python -c 'print(1)'",
    "python src/dough.py",
]


@pytest.mark.parametrize("command", UNKNOWN)
def test_other_commands_have_no_answer(command: str) -> None:
    assert answer_command(command, make_project()) is None


def test_every_file_has_something_to_find() -> None:
    python = [file for file in load_sample().files if file.path.endswith(".py")]
    assert len(python) == 6
    assert all(file.errors and file.violations for file in python)
    tests = [{test.outcome for test in file.tests} for file in python if file.tests]
    assert len(tests) == 2
    assert all({"passed", "failed"} <= outcomes for outcomes in tests)


def test_recording_names_its_tools() -> None:
    card = (ROOT / "datasets" / "sample" / "README.md").read_text(encoding="utf-8")
    assert all(f"{name} {version}" in card for name, version in load_sample().tools.items())
