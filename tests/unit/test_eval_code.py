"""What a call's code would do, read and never run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.chat import ToolCall
from stages.core.tools import EXECUTE_CODE, FUNCTIONS, as_code_mode
from stages.eval.code import LONGEST_CODE, UNKNOWN, FunctionCall, functions_called, functions_unread


def read(code: str) -> list[FunctionCall]:
    return functions_called(ToolCall("execute_code", {"code": code}))


def call(function: str, **arguments: Any) -> FunctionCall:
    return FunctionCall(function, dict(arguments))


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        ("print(typecheck('src'))", [call("typecheck", path="src")]),
        ("r = ruff_check(path='.')\nprint(r.violation_count)", [call("ruff_check", path=".")]),
        ("write_file('a.py', content='x' 'y')", [call("write_file", path="a.py", content="xy")]),
        ("pytest_run()", [call("pytest_run")]),
        ("pytest_run('a', 'b', 'c')", [call("pytest_run", path="a")]),
        ("read_file(f'a')", [call("read_file", path="a")]),
        ("read_file(f'{a}')", [call("read_file", path=UNKNOWN)]),
        ("read_file(3)", [call("read_file", path=3)]),
        ("read_file(['a', -1.5, None])", [call("read_file", path=["a", -1.5, None])]),
        ("read_file('a' + 'b')", [call("read_file", path=UNKNOWN)]),
        ("read_file(*['a'])", [call("read_file", path=UNKNOWN)]),
        ("read_file(**{'path': 'a'})", [call("read_file")]),
        ("run_command('a'); run_command('b')", [call("run_command", command=c) for c in "ab"]),
        (
            "for f in 'ab':\n    write_file('c', read_file('d'))",
            [call("write_file", path="c", content=UNKNOWN), call("read_file", path="d")],
        ),
        ("def f():\n    return typecheck('late')\nread_file('x')",
         [call("typecheck", path="late"), call("read_file", path="x")]),
        ("tools.typecheck('src')", []),
        ("'typecheck(\"src\")'  # typecheck('x')", []),
        ("typecheck", []),
        ("print('hello')", []),
        ("", []),
    ],
)  # fmt: skip
def test_known_codes(code: str, calls: list[FunctionCall]) -> None:
    assert read(code) == calls


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("p = 'src'\ntypecheck(p)", "src"),
        ("p: str = 'src'\ntypecheck(p)", "src"),
        ("p = q = 'src'\ntypecheck(q)", "src"),
        ("typecheck(p)\np = 'src'", "src"),
        ("p = 'a'\np = 'b'\ntypecheck(p)", None),
        ("p = 'src'\np += '/x'\ntypecheck(p)", None),
        ("p = 'src'\nfor p in files:\n    typecheck(p)", None),
        ("p = 'src'\nwith open(f) as p:\n    typecheck(p)", None),
        ("p = 'src'\nif (p := find()):\n    typecheck(p)", None),
        ("p = 'src'\np, q = find()\ntypecheck(p)", None),
        ("p = 'src'\ndef f(p):\n    typecheck(p)", None),
        ("p = 'src'\n[typecheck(p) for p in files]", None),
        ("p = find()\ntypecheck(p)", None),
        ("p: str\ntypecheck(p)", None),
        ("typecheck(p)", None),
    ],
)
def test_a_name_counts_when_it_can_only_be_one_text(code: str, path: str | None) -> None:
    assert read(code) == [call("typecheck", path=UNKNOWN if path is None else path)]


@pytest.mark.parametrize(
    "code",
    [
        "\0",
        "(" * 5000,
        "-" * 200_000 + "1",
        "a." * 50_000 + "b",
        "\ud800",
        "1if",
    ],
    ids=lambda code: f"{code[:8]!r} {len(code)}",
)
def test_what_does_not_parse_calls_nothing(code: str) -> None:
    assert read(code) == []
    assert functions_unread(code) == set(FUNCTIONS), "any of them may have been meant"


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        ("typecheck('src'", [call("typecheck")]),
        ("typecheck('a')\n\tx", [call("typecheck", path="a")]),
        ("```python\nprint(typecheck('a)'))\n```", [call("typecheck", path="a)")]),
        (
            "if x\n  read_file(p); run_command('b')",
            [call("read_file", path=UNKNOWN), call("run_command", command="b")],
        ),
        ("print typecheck\n('a')", [call("typecheck")]),
    ],
)
def test_calls_are_found_in_code_that_does_not_parse(code: str, calls: list[FunctionCall]) -> None:
    assert read(code) == calls


@pytest.mark.parametrize(
    ("code", "unread"),
    [
        ("print(typecheck('src'))", set()),
        ("p = 'src'\nprint(typecheck(p), 'typecheck is done')", set()),
        ("map(typecheck, ['a'])", {"typecheck"}),
        ("typecheck('a')\nsorted(ps, key=typecheck)", {"typecheck"}),
        ("filter(lambda p: ruff_check(p).success, ps)", {"ruff_check"}),
        ("read_file(*paths)", {"read_file"}),
        ("read_file(**named)", {"read_file"}),
        ("globals()['typecheck'](p)", {"typecheck"}),
        ("eval('typecheck(p)')", {"typecheck"}),
        ("tools.typecheck(p)", {"typecheck"}),
        ("x = 1  # typecheck", set()),
        ("typecheck('src'", {"typecheck"}),
        ("typecheck('src')\n\tx", set()),
        ("print typecheck\n('src')", {"typecheck"}),
    ],
)
def test_what_only_a_run_could_tell_is_known(code: str, unread: set[str]) -> None:
    assert functions_unread(code) == unread


def test_an_odd_escape_is_read_without_a_warning() -> None:
    assert read(r"run_command('grep \d+ src')") == [call("run_command", command=r"grep \d+ src")]


@pytest.mark.parametrize(
    "other",
    [
        ToolCall("typecheck", {"path": "src"}),
        ToolCall("run", {"code": "typecheck('src')"}),
        ToolCall(EXECUTE_CODE.name, {}),
        ToolCall(EXECUTE_CODE.name, {"code": ["typecheck('src')"]}),
        ToolCall(EXECUTE_CODE.name, {"source": "typecheck('src')"}),
    ],
)
def test_other_calls_call_nothing(other: ToolCall) -> None:
    assert functions_called(other) == []


def test_a_code_without_end_is_not_parsed() -> None:
    assert read("typecheck('src')\n" + "#" * LONGEST_CODE) == []
    started = time.process_time()
    assert read("typecheck('src')\n" * 1_000_000) == []
    assert time.process_time() - started < 1.0, "the tree alone would take several seconds, and gigabytes"


def test_code_is_never_run(tmp_path: Path) -> None:
    place = tmp_path / "made"
    read(f"open({str(place)!r}, 'w')\n__import__('os').mkdir({str(place)!r})\ntypecheck('src')")
    assert not place.exists()


@given(name=st.sampled_from(list(FUNCTIONS)), texts=st.lists(st.text(), min_size=2, max_size=2))
def test_every_direct_call_is_found_again(name: str, texts: list[str]) -> None:
    arguments = dict(zip(FUNCTIONS[name].parameters, texts, strict=False))
    code = as_code_mode(ToolCall(name, dict(arguments)))
    assert functions_called(code) == [FunctionCall(name, dict(arguments))]


@given(st.text(max_size=60))
def test_no_text_raises(code: str) -> None:
    assert isinstance(read(code), list)
