"""Scores of raw replies, against answers written down by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.chat import ToolCall
from stages.core.dialects import DIALECTS, render_calls
from stages.core.matcher import Matcher
from stages.core.query import Calls, Expected, Query
from stages.core.records import Cause, QueryRun, Rate, RawReply, Score, read_lines, write_lines
from stages.core.suite import SUITES, Suite, load_suite
from stages.core.tools import EXECUTE_CODE
from stages.eval.sandbox import CodeRunner, Sandbox
from stages.eval.score import score_replies, score_reply
from stages.eval.summary import rate, rates_by

TYPES = Query(
    id="types",
    category="typecheck",
    kind="tool",
    query="Are the types in src fine?",
    accept=(Expected(function="typecheck", arguments={"path": Matcher(path="src")}),),
)
CONCEPT = Query(id="concept", category="concept", kind="direct", query="What is a tuple?")
SUITE = Suite(name="two", version=1, description="", queries=(TYPES, CONCEPT))


def reply(text: str, finish: Any = "stop", of: str = "types") -> RawReply:
    return RawReply(id=of, text=text, tokens=9, finish=finish, seconds=0.1)


def write(code: str, dialect: str = "hermes") -> str:
    return render_calls([ToolCall("execute_code", {"code": code})], dialect, [EXECUTE_CODE])


def score(query: Query, text: str, dialect: str = "hermes") -> Score:
    return score_reply(query, reply(text), dialect)


RIGHT = write("print(typecheck('./src/'))")
SENT = '<tool_call>\n{"name": "execute_code", "arguments": %s}\n</tool_call>\n'


def verdict(given: Score, lenient: bool = False) -> tuple[bool, bool | None, bool | None]:
    reading = given.lenient if lenient else given.strict
    return reading.decision, reading.tool, reading.arguments


@pytest.mark.parametrize(
    ("text", "strict", "lenient", "clean"),
    [
        (RIGHT, (True, True, True), (True, True, True), True),
        (f"Let me look.\n\n{RIGHT}", (True, True, True), (True, True, True), True),
        (write("print(typecheck('tests'))"), (True, True, False), (True, True, False), True),
        (write("print(typecheck())"), (True, True, False), (True, True, False), True),
        (write("print(ruff_check('src'))"), (True, False, False), (True, False, False), True),
        (write("print(ruff_check('src'))\ntypecheck('src')"), (True, True, True), (True, True, True), True),
        (write("typecheck('src'"), (True, True, None), (True, True, None), True),
        (write("typecheck('src'))"), (True, True, True), (True, True, True), True),
        (write("typecheck('x'))"), (True, True, False), (True, True, False), True),
        (write("ruff_check('src'))"), (True, False, False), (True, False, False), True),
        (write("mypy src/"), (True, None, None), (True, None, None), True),
        (SENT % "{}", (True, None, False), (True, None, False), True),
        (SENT % '{"code": ["print(typecheck(\'src\'))"]}', (True, None, False), (True, None, False), True),
        (RIGHT + SENT % "{}", (True, False, False), (True, False, False), True),
        (RIGHT + RIGHT, (True, True, True), (True, True, True), True),
        (write("typecheck('src')", "qwen3_coder"), (False, False, False), (True, True, True), False),
        (write("typecheck('src')", "fenced_json"), (False, False, False), (True, True, True), False),
        ("<tool_call>\n{\"name\": \"execute_code\"", (False, False, False), (True, False, False), False),
        ("They are fine.", (False, False, False), (False, False, False), None),
        ("", (False, False, False), (False, False, False), None),
    ],
)  # fmt: skip
def test_replies_to_a_tool_query(text: str, strict: Any, lenient: Any, clean: bool | None) -> None:
    given = score(TYPES, text)
    assert verdict(given) == strict
    assert verdict(given, lenient=True) == lenient
    assert given.strict.format is clean


@pytest.mark.parametrize(
    ("text", "decision", "clean"),
    [
        ("A tuple cannot be changed.", True, None),
        ("", True, None),
        (RIGHT, False, True),
        ("Call `typecheck('src')` yourself.", True, None),
    ],
)
def test_replies_to_a_direct_query(text: str, decision: bool, clean: bool | None) -> None:
    given = score(CONCEPT, text)
    assert verdict(given) == (decision, None, None)
    assert given.strict.format is clean


@pytest.mark.parametrize(
    ("text", "direct", "tool"),
    [
        ('<tool_call>\n{"name": "execute_code", "arguments": {"code": ', (True, False), (False, True)),
        ('<tool_call>\n{"name": "execute_code", "arguments": {"code": 1}\n', (True, False), (False, True)),
        ("<function=execute_code>\n<parameter=code>\ntypecheck(", (True, False), (False, True)),
        ("```python\nprint(typecheck('src'))\n```", (True, True), (False, True)),
        (write("typecheck('src')", "qwen3_coder"), (True, False), (False, True)),
        ("Write `<tool_call>` before a call, and `</tool_call>` behind it.", (True, True), (False, False)),
        ("They are fine.", (True, True), (False, False)),
        ("", (True, True), (False, False)),
    ],
)
def test_who_attempts_a_call_has_decided_for_a_tool_where_it_is_read_leniently(
    text: str, direct: tuple[bool, bool], tool: tuple[bool, bool]
) -> None:
    """Of both kinds of query the decision read strictly, and leniently."""
    for query, wanted in ((CONCEPT, direct), (TYPES, tool)):
        given = score(query, text)
        assert (given.strict.decision, given.lenient.decision) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "Hermes writes `<tool_call>` before a call, and `</tool_call>` behind it.",
        "Qwen3-Coder opens a call with `<function=name>`, Mistral with `[TOOL_CALLS]`.",
        "Llama 3 begins with `<|python_tag|>`.",
    ],
)
def test_a_tag_that_is_spoken_of_is_no_attempt_at_a_call(text: str) -> None:
    given = score(CONCEPT, text)
    assert (given.cause, given.strict.format) == (None, None)
    assert score(CONCEPT, text.replace("`", "")).cause == "decided wrong"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('{"name": "search_web", "arguments": {"q": "tuple"}}', "decided wrong"),
        ('```json\n[{"name": "search_web", "parameters": {"q": "tuple"}}]\n```', "decided wrong"),
        ('{"name": "search_web", "arguments": {"q": "tuple}}', "decided wrong"),
        ('A call looks like this:\n```json\n{"name": "search_web", "arguments": {}}\n```', None),
        ('{"name": "tuple", "size": 2}', None),
        ("(1, 2)", None),
        ("[1, 2]" + " \n" * 50_000, None),
    ],
)
def test_an_answer_that_is_nothing_but_a_call_of_some_tool_is_none(text: str, cause: Any) -> None:
    started = time.process_time()
    nothing = CONCEPT.model_copy(update={"tools": ()})
    for query in (CONCEPT, nothing):
        given = score(query, text)
        assert (given.cause, given.strict.decision, given.lenient.decision) == (cause, True, cause is None)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_is_read_by_its_own_parser(dialect: str) -> None:
    given = score(TYPES, write("typecheck('src')", dialect), dialect)
    assert verdict(given) == (True, True, True)
    assert (given.strict.dialect, given.strict.format) == (dialect, True)
    assert given.strict.calls == [{"name": "execute_code", "arguments": {"code": "typecheck('src')"}}]


def test_a_runaway_reply() -> None:
    away = score_reply(TYPES, reply(RIGHT, "length"), "hermes")
    assert (away.runaway, away.strict.stop, away.lenient.stop) == (True, False, True)
    assert (away.cause, away.strict.whole, away.lenient.whole) == ("ran away", False, True)
    ended = score_reply(TYPES, reply(RIGHT), "hermes")
    assert (ended.runaway, ended.strict.stop, ended.strict.whole, ended.cause) == (False, True, True, None)


@pytest.fixture(scope="module")
def run_code() -> Iterator[CodeRunner]:
    with Sandbox() as sandbox:
        yield CodeRunner(sandbox)


@pytest.mark.parametrize(
    ("code", "works", "cause"),
    [
        ("result = typecheck('src')\nprint(result.error_count)", True, None),
        ("result = typecheck('src')\nprint(result.count)", False, "code fails"),
        ("import yaml\nprint(typecheck('src'))", False, "code fails"),
        ("import textwrap\nprint(textwrap.dedent(str(typecheck('src'))))", None, None),
        ("print(typecheck('tests/none'))", False, "wrong arguments"),
    ],
)
def test_the_code_of_a_call_is_run(code: str, works: Any, cause: Any, run_code: CodeRunner) -> None:
    given = score_reply(TYPES, reply(write(code)), "hermes", run_code)
    assert (given.strict.code, given.lenient.code, given.cause) == (works, works, cause)
    assert given.strict.whole == given.lenient.whole == (cause is None)
    assert score_reply(TYPES, reply(write(code)), "hermes").strict.code is None, "where none is run"
    (run,) = [run for run in run_code.runs if run.code == code]
    assert (run.id, run.run.works) == ("types", works)


@pytest.mark.parametrize(
    "code",
    [
        "for path in ['src']:\n    print(typecheck(path).error_count)",
        "folder = 's'\nprint(typecheck(f'{folder}rc').success)",
        "print(typecheck('s' + 'rc').success)",
        "from pathlib import Path\nprint(typecheck(Path('src')).success)",
        "def check(path='src'):\n    print(typecheck(path).success)\ncheck()",
        "def check(path):\n    print(typecheck(path).success)\ncheck('src')",
        "print(typecheck(**{'path': 'src'}).success)",
        "path = '.'\npath = 'src'\nprint(typecheck(path).success)",
        "c = typecheck\nprint(c('src').success)",
        "if __name__ == '__main__':\n    print(typecheck('src').success)",
        "r = typecheck('src')\nprint(r.column if hasattr(r, 'column') else getattr(r, 'errors', 0))",
        "import sys\nprint(typecheck('src').success)\nsys.exit(0)",
        "import textwrap\nprint(textwrap.dedent(str(typecheck('src'))))",
        "for path in ['src']:\n    print(typecheck(path))\nimport textwrap",
    ],
)
def test_code_is_right_by_what_it_does(code: str, run_code: CodeRunner) -> None:
    given = score_reply(TYPES, reply(write(code)), "hermes", run_code)
    assert (given.cause, given.strict.tool, given.strict.arguments) == (None, True, True)
    assert given.lenient.whole


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("def check():\n    print(typecheck('src'))", "wrong tool"),
        ("if False:\n    print(typecheck('src'))", "wrong tool"),
        ("import sys\nsys.exit()\nprint(typecheck('src'))", "wrong tool"),
        ("raise SystemExit(0)\nprint(typecheck('src'))", "wrong tool"),
        ("import sys\nif not read_file('src/dough.py'):\n    print(typecheck('src'))", "wrong tool"),
        ("quit()\nprint(typecheck('src'))", "wrong tool"),
        ("def typecheck(path):\n    return path\nprint(typecheck('src'))", "wrong tool"),
        ("path = 'src'\nprint(typecheck(path + '/dough.py'))", "wrong arguments"),
        ("typecheck('src')", "code fails"),
        ("errors = typecheck('src').errors", "code fails"),
        ("try:\n    print(typecheck('src').count)\nexcept AttributeError:\n    print(0)", "code fails"),
        ("import yaml\nprint(typecheck('src'))", "code fails"),
        ("import yaml\nprint(ruff_check('src'))", "wrong tool"),
    ],
)
def test_code_is_wrong_by_what_it_does(code: str, cause: str, run_code: CodeRunner) -> None:
    given = score_reply(TYPES, reply(write(code)), "hermes", run_code)
    assert given.cause == cause
    assert not given.strict.whole
    assert not given.lenient.whole
    assert (given.strict.tool, given.strict.arguments, given.strict.code) == {
        "wrong tool": (False, False, given.strict.code),
        "wrong arguments": (True, False, given.strict.code),
        "code fails": (True, True, False),
    }[cause]


@pytest.mark.parametrize(
    ("code", "marks"),
    [
        ("print(typecheck('src').success)", (True, True, True)),
        ("typecheck('src')", (False, False, True)),
        ("for e in typecheck('src').errors:\n    if e.line > 9999:\n        print(e)", (True, False, True)),
        ("print(typecheck('src').count)", (False, None, False)),
        ("print(getattr(typecheck('src'), 'count', 0))", (True, True, True)),
        ("try:\n    print(typecheck('src').count)\nexcept AttributeError:\n    pass", (False, False, False)),
        ("import textwrap\nprint(typecheck('src').count)", (None, None, None)),
        ("print(read_file('src/dough.py'))", (True, True, None)),
        ("print('There are no errors.')", (True, None, None)),
    ],
)
def test_whether_code_printed_and_its_fields_exist(code: str, marks: Any, run_code: CodeRunner) -> None:
    given = score_reply(TYPES, reply(write(code)), "hermes", run_code).strict
    assert (given.code, given.printed, given.fields) == marks
    unrun = score_reply(TYPES, reply(write(code)), "hermes").strict
    assert (unrun.code, unrun.printed, unrun.fields) == (None, None, None)


@pytest.mark.parametrize(
    ("calls", "cause"),
    [
        ([ToolCall("delete_everything", {"path": "/"})], "wrong tool"),
        ([ToolCall("typecheck", {"path": "src"})], "wrong tool"),
        ([ToolCall("execute_code", {"script": "x"})], "wrong tool"),
        ([ToolCall("execute_code", {"code": 5})], "wrong tool"),
        ([ToolCall("execute_code", {"code": "print(ruff_check('src').success)"})], None),
    ],
)
def test_a_call_beside_a_right_one_must_send_code_too(
    calls: list[ToolCall], cause: Any, run_code: CodeRunner
) -> None:
    for text in (f"{RIGHT}\n{render_calls(calls, 'hermes')}", f"{render_calls(calls, 'hermes')}\n{RIGHT}"):
        given = score_reply(TYPES, reply(text), "hermes", run_code)
        assert (given.cause, given.strict.tool, given.strict.arguments) == (cause, not cause, not cause)
        assert given.lenient.whole == (cause is None)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("errors = typecheck('src').errors\n# print them", "code fails"),
        ("errors = typecheck('src').errors\nnote = 'print it'", "code fails"),
        ("import sys\nfor e in typecheck('src').errors[9999:]:\n    sys.stdout.write(str(e))", None),
        ("for e in typecheck('src').errors[9999:]:\n    print(e)", None),
        ("show = print\nfor e in typecheck('src').errors[9999:]:\n    show(e)", None),
    ],
)
def test_a_word_is_no_printing(code: str, cause: Any, run_code: CodeRunner) -> None:
    assert score_reply(TYPES, reply(write(code)), "hermes", run_code).cause == cause


def test_what_failed_code_says_is_read_in_no_more_time_than_what_it_does(run_code: CodeRunner) -> None:
    """A pattern that goes back and forth over a long text takes the cube of its length."""
    query = next(query for query in load_suite("extended").queries if query.id == "command-11")
    text = write(f"run_command('{'sed 12q ' * 10_000}')\n1 / 0")
    started = time.process_time()
    assert score_reply(query, reply(text, of=query.id), "hermes", run_code).cause == "wrong arguments"
    assert time.process_time() - started < 20  # hours, were all of it looked at


def test_an_apostrophe_is_one_however_it_is_written() -> None:
    query = CONCEPT.model_copy(update={"terms": ("don't", "can\N{RIGHT SINGLE QUOTATION MARK}t")})
    for text in ("You don't.", "You don\N{RIGHT SINGLE QUOTATION MARK}t.", "It can't."):
        answer = score(query, text).answer
        assert answer is not None
        assert answer.on_terms, text


def test_who_writes_a_file_need_not_print(run_code: CodeRunner) -> None:
    note = {"function": "write_file", "arguments": {"path": {"path": "a.md"}}}
    query = Query.model_validate({"id": "note", "query": "Write a.md.", "accept": [note]})
    given = score_reply(query, reply(write("write_file('a.md', 'x')"), of="note"), "hermes", run_code)
    assert (given.cause, given.strict.code, given.strict.printed) == (None, True, None)


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("grep -rn '->' src", "code fails"),
        ('git log --format="%h \\"> %s" -3', "code fails"),
        ("grep -rn x src > found.txt", None),
        ("grep -rn '->' src >> found.txt", None),
    ],
)
def test_a_sign_in_quotes_writes_no_file(command: str, cause: Any, run_code: CodeRunner) -> None:
    query = TYPES.model_copy(update={"id": "any", "accept": (Expected(function="run_command"),)})
    unprinted = write(f"found = run_command({command!r})")
    assert score_reply(query, reply(unprinted, of="any"), "hermes", run_code).cause == cause


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        (["write_file('a.md', 'x')\nread_file('a.md')"], "code fails"),
        (["write_file('a.md', 'x')\nprint(read_file('a.md'))"], None),
        (["write_file('a.md', 'x')", "print(read_file('a.md'))"], None),
        (["run_command('echo y > b.md')\nwrite_file('a.md', 'x')", "print(read_file('a.md'))"], None),
        (
            ["write_file('a.md', 'x')\nrun_command('ls 2>/dev/null')", "print(read_file('a.md'))"],
            "code fails",
        ),
    ],
)
def test_who_wants_to_see_the_file_too_needs_it_printed(
    codes: list[str], cause: Any, run_code: CodeRunner
) -> None:
    calls = [
        {"function": name, "arguments": {"path": {"path": "a.md"}}} for name in ("write_file", "read_file")
    ]
    query = Query.model_validate(
        {"id": "note", "query": "Write a.md. Show it.", "accept": [{"calls": calls}]}
    )
    text = "\n".join(write(code) for code in codes)
    assert score_reply(query, reply(text, of="note"), "hermes", run_code).cause == cause


@pytest.mark.parametrize(
    "code",
    [
        "print(list(map(typecheck, ['src'])))",
        "for r in map(typecheck, ['src']):\n    print(r.errors)",
        "print(sorted(['src'], key=lambda p: typecheck(p).error_count, reverse=True))",
        "print(list(filter(lambda p: typecheck(p).success, ['src'])))",
        "print(max(['src', 'tests'], key=lambda p: typecheck(p).error_count))",
    ],
)
def test_a_built_in_may_call_a_function_of_code_mode(code: str, run_code: CodeRunner) -> None:
    given = score_reply(TYPES, reply(write(code)), "hermes", run_code)
    assert (given.cause, given.strict.arguments, given.strict.code) == (None, True, True)


STUCK = "import glob\nfor p in glob.glob('*'):\n    print(%s)"


@pytest.mark.parametrize(
    ("code", "tool", "arguments", "cause"),
    [
        (STUCK % "typecheck(p)", True, None, None),
        (STUCK % "list(map(typecheck, [p]))", None, None, None),
        (STUCK % "typecheck('src')", True, True, None),
        (STUCK % "typecheck('docs')", True, False, "wrong arguments"),
        (STUCK % "ruff_check(p)", False, False, "wrong tool"),
        (STUCK % "p", False, False, "wrong tool"),
        ("def f(ps):\n    for p in ps:\n        yield typecheck(p)\nprint(*f(['src']))", True, None, None),
        ("import itertools\nprint(map(typecheck, itertools.repeat('src')))", None, None, None),
    ],
)
def test_what_only_a_run_could_tell_is_not_wrong(
    code: str, tool: bool | None, arguments: bool | None, cause: Cause | None, run_code: CodeRunner
) -> None:
    given = score_reply(TYPES, reply(write(code)), "hermes", run_code)
    assert (given.strict.tool, given.strict.arguments, given.cause) == (tool, arguments, cause)
    assert given.strict.code is None
    whole = None if arguments is None else arguments
    assert (given.strict.whole, given.lenient.whole) == (whole, whole)
    cut = score_reply(TYPES, reply(write(code) + "And so", "length"), "hermes", run_code)
    assert (cut.cause, cut.strict.whole) == (cause or "ran away", False), "that is known without a run"


def test_an_order_that_only_a_run_could_tell_is_still_wrong_where_it_was_seen(run_code: CodeRunner) -> None:
    calls = [Expected(function=name) for name in ("ruff_check", "typecheck")]
    query = TYPES.model_copy(update={"id": "two", "accept": (Calls(calls=tuple(calls), ordered=True),)})
    text = write("print(typecheck('src'))\nprint(ruff_check('src'))")
    assert score_reply(query, reply(text, of="two"), "hermes", run_code).cause == "wrong arguments"


def test_several_codes_are_judged_together(run_code: CodeRunner) -> None:
    text = write("import textwrap\ntypecheck('src')") + write("print(ruff_check('src').success)")
    given = score_reply(TYPES, reply(text), "hermes", run_code)
    assert (given.cause, given.strict.arguments, given.strict.code) == (None, True, True)
    text = write("print(typecheck('src'))") + write("print(ruff_check('src').count)")
    assert score_reply(TYPES, reply(text), "hermes", run_code).cause == "code fails"


def test_where_any_path_is_accepted_there_is_something(run_code: CodeRunner) -> None:
    free = TYPES.model_copy(update={"id": "free", "accept": (Expected(function="typecheck"),)})
    for code in (
        "print(typecheck('lib').error_count)",
        "p = 'lib/deep'\nprint(typecheck(p).success)",
        "for p in ('lib/a', 'lib/b'):\n    print(typecheck(p + '.py').success)",
    ):
        assert score_reply(free, reply(write(code), of="free"), "hermes", run_code).cause is None
    other = write("print(typecheck('lib'))\nprint(read_file('none.txt'))")
    assert score_reply(free, reply(other, of="free"), "hermes", run_code).cause == "code fails"


def test_how_a_direct_answer_reads() -> None:
    query = CONCEPT.model_copy(update={"terms": ("Immutable", "ordered")})
    for text, marks in {
        "It is immutable.": (True, True, True, True),
        "A tuple is a list.": (True, False, True, True),
        "It is unordered.": (True, False, True, True),
        "Its items are in order (orderedly).": (True, True, True, True),
        " ": (False, False, True, True),
        "A tuple is ordered, and so on. " * 9: (True, True, False, True),
        RIGHT: (True, False, True, False),
        "It is ordered: <tool_call>": (True, True, True, False),
    }.items():
        answer = score(query, text).answer
        assert answer is not None
        assert (answer.not_empty, answer.on_terms, answer.not_repeating, answer.no_call) == marks, text
    assert score(TYPES, "It is immutable.").answer is None
    plain = score(CONCEPT, "Yes.").answer
    assert plain is not None
    assert plain.on_terms is None


@pytest.mark.parametrize(
    ("matcher", "right", "wrong"),
    [
        (Matcher(exact="a b"), ["a b"], ["a b ", "A b", "", "xa b"]),
        (
            Matcher(path="src/a"),
            ["src/a", "./src/a", "src/a/", "src//a", "src/b/../a"],
            ["src", "/src/a", "src/ab", "", " src/a", "src/a "],
        ),
        (Matcher(path="."), [".", "./", ""], ["..", "src", "/"]),
        (Matcher(contains=("wc", "-l")), ["wc -l x", "-l wc"], ["wc", "grep -l"]),
        (
            Matcher(regex=r"^git log\b.*-n? ?5"),
            ["git log -5", "git log -n 5"],
            ["git logs -5", "x git log -5"],
        ),
        (Matcher(any_of=(Matcher(exact="a"), Matcher(contains=("b",)))), ["a", "xbx"], ["A", "ax"]),
    ],
)
def test_matchers(matcher: Matcher, right: list[str], wrong: list[str]) -> None:
    query = TYPES.model_copy(
        update={"accept": (Expected(function="run_command", arguments={"command": matcher}),)}
    )
    for texts, fits in ((right, True), (wrong, False)):
        for text in texts:
            assert verdict(score(query, write(f"run_command({text!r})"))) == (True, True, fits), text
    assert verdict(score(query, write("run_command(unknown)"))) == (True, True, False)


def test_any_accepted_call_will_do() -> None:
    either = (
        TYPES.accept[0],
        Expected(function="run_command", arguments={"command": Matcher(contains=("ty",))}),
    )
    query = TYPES.model_copy(update={"accept": either})
    assert verdict(score(query, write("run_command('ty check')"))) == (True, True, True)
    assert verdict(score(query, write("run_command('ls')"))) == (True, True, False)
    assert verdict(score(query, write("typecheck('src')"))) == (True, True, True)


FORECAST: dict[str, Any] = {
    "name": "forecast",
    "parameters": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("city", "day", "unit")},
        "required": ["city", "day"],
    },
}
OSLO: dict[str, Any] = {"function": "forecast", "arguments": {"city": {"text": "Oslo"}}}
ANY_TWO: dict[str, Any] = {"function": "forecast", "arguments": {"day": {"contains": ["today", "then"]}}}
LISTED = {"properties": {**FORECAST["parameters"]["properties"], "unit": {"enum": ["C", "F"]}}}
LIST = {"properties": {**FORECAST["parameters"]["properties"], "day": {"type": "array"}}}


@pytest.mark.parametrize(
    ("accept", "changed", "arguments", "right"),
    [
        (OSLO, {}, {"city": "Oslo", "day": "today"}, True),
        (OSLO, {}, {"city": "Oslo", "day": "today", "unit": None}, True),
        (OSLO, {}, {"city": "Oslo"}, False),
        (OSLO, {}, {"city": "Oslo", "day": "today", "planet": "Earth"}, False),
        (OSLO, {"additionalProperties": True}, {"city": "Oslo", "day": "today", "planet": "Earth"}, True),
        (OSLO, {"properties": {}}, {"city": "Oslo", "day": "today", "planet": "Earth"}, True),
        (
            OSLO,
            {"patternProperties": {"^x-": {}}},
            {"city": "Oslo", "day": "today", "x-planet": "Earth"},
            True,
        ),
        (OSLO, {"required": None}, {"city": "Oslo"}, True),
        (OSLO, {"required": ["city"], "allOf": [{"required": ["day"]}]}, {"city": "Oslo"}, False),
        (OSLO, {"properties": {"city": {}, "day": {"default": "today"}}}, {"city": "Oslo"}, True),
        (OSLO, {}, {"city": "Oslo", "day": "today", "unit": 3}, False),
        (OSLO, LISTED, {"city": "Oslo", "day": "today", "unit": "C"}, True),
        (OSLO, LISTED, {"city": "Oslo", "day": "today", "unit": None}, True),
        (OSLO, LISTED, {"city": "Oslo", "day": "today", "unit": "Kelvin"}, False),
        (ANY_TWO, LIST, {"city": "Oslo", "day": ["today", "then"]}, True),
        (ANY_TWO, LIST, {"city": "Oslo", "day": "then today"}, False),
        (ANY_TWO, {}, {"city": "Oslo", "day": "then today"}, True),
        (ANY_TWO, {"properties": {"city": {}, "day": {}}}, {"city": "Oslo", "day": "then today"}, True),
        (OSLO, {}, {"city": "Oslo", "day": ["today"]}, False),
        (OSLO, {}, {"city": "Oslo", "day": None}, False),
        (OSLO, {"required": [["city"], "day"]}, {"city": "Oslo", "day": "today"}, True),
        (
            {**OSLO, "arguments": {**OSLO["arguments"], "day": {"exact": "today", "optional": True}}},
            {},
            {"city": "Oslo"},
            True,
        ),
    ],
)
def test_a_call_must_be_one_that_its_tool_takes(
    accept: dict[str, Any], changed: dict[str, Any], arguments: dict[str, Any], right: bool
) -> None:
    """A call fails with a parameter that the definition has not or that is of another type, and without one
    that it requires."""
    tool = {**FORECAST, "parameters": {**FORECAST["parameters"], **changed}}
    query = Query.model_validate({"id": "oslo", "query": "Rain?", "tools": [tool], "accept": [accept]})
    given = score(query, render_calls([ToolCall("forecast", arguments)], "hermes"))
    assert (given.strict.tool, given.strict.arguments) == (True, right)
    assert given.cause == (None if right else "wrong arguments")


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [({}, None), ({"language": "python"}, "wrong arguments"), ({"timeout": None}, "wrong arguments")],
)
def test_a_call_that_sends_code_sends_nothing_else(arguments: dict[str, Any], cause: Any) -> None:
    """What its tool does not take, it would refuse here as anywhere."""
    call = ToolCall("execute_code", {"code": "print(typecheck('src'))", **arguments})
    given = score(TYPES, render_calls([call], "hermes"))
    assert (given.cause, given.strict.tool, given.strict.arguments) == (cause, True, cause is None)


def test_replies_are_matched_by_id_and_must_be_the_suites() -> None:
    replies = [reply("A tuple is.", of="concept"), reply(RIGHT)]
    scores = score_replies(SUITE, replies, "hermes")
    assert [(s.id, s.strict.decision) for s in scores] == [("types", True), ("concept", True)]
    for wrong in (replies[:1], [*replies, reply("x", of="more")], []):
        with pytest.raises(ValueError, match="not those of suite two"):
            score_replies(SUITE, wrong, "hermes")


def test_unscored_is_not_wrong() -> None:
    assert rate([True, None, False, None]) == Rate(k=1, n=2)
    assert rate([None, None]) is None
    assert rate([]) is None


def test_rates_by_category() -> None:
    scores = [score(TYPES, RIGHT), score(TYPES, "no"), score(CONCEPT, "yes")]
    rates = rates_by(scores, lambda score: [score.category])
    assert {name: (group.decision, group.whole) for name, group in rates.items()} == {
        "concept": (Rate(k=1, n=1), Rate(k=1, n=1)),
        "typecheck": (Rate(k=1, n=2), Rate(k=1, n=2)),
    }
    other = [score(TYPES, write("print(typecheck('src'))", "qwen3_coder")), *scores]
    read = [rates_by(other, lambda score: score.tools, lenient=lenient) for lenient in (False, True)]
    assert [rates["typecheck"].decision for rates in read] == [Rate(k=1, n=3), Rate(k=2, n=3)]


@given(text=st.text(), dialect=st.sampled_from(DIALECTS))
def test_any_reply_can_be_scored(text: str, dialect: str) -> None:
    given_score = score(TYPES, text, dialect)
    assert given_score.strict.arguments in (False, bool(given_score.strict.tool))


@pytest.mark.parametrize(
    "value",
    [
        "1" * 30,
        '"\\ud800"',
        '{"\\ud800": 1}',
        "[" * 90 + "]" * 90,
        '"\\ud83d\\ude00"',
        "1e999",
        "-" + "9" * 19,
    ],
    ids=["long", "surrogate", "surrogate key", "deep", "pair", "infinite", "negative"],
)
def test_what_a_model_wrote_can_be_kept(value: str, run_code: CodeRunner, tmp_path: Path) -> None:
    call = f'{{"name": "execute_code", "arguments": {{"code": "print(1)", "n": {value}}}}}'
    text = f"<tool_call>\n{call}\n</tool_call>"
    scored = score_reply(TYPES, reply(text), "hermes", run_code)
    odd = score_reply(TYPES, reply(write("print('\\ud800')")), "hermes", run_code)
    write_lines(tmp_path / "scores.jsonl", [scored, odd])
    write_lines(tmp_path / "codes.jsonl", run_code.runs)
    assert read_lines(tmp_path / "scores.jsonl", Score)[0].strict.decision is scored.strict.decision
    assert read_lines(tmp_path / "codes.jsonl", QueryRun)


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.json")))
def test_a_model_that_only_talks_gets_the_direct_queries_alone(name: str) -> None:
    suite = load_suite(name)
    scores = score_replies(suite, [reply("It depends.", of=query.id) for query in suite.queries], "hermes")
    direct = sum(query.kind == "direct" for query in suite.queries)
    assert sum(s.strict.decision for s in scores) == direct > 0
    assert rate(s.strict.tool for s in scores) == Rate(k=0, n=len(suite.queries) - direct)
