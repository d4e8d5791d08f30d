"""Code Mode: signatures, schemas, and direct calls written as code."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.core.chat import ToolCall
from stages.core.tools import (
    EXECUTE_CODE,
    FUNCTIONS,
    PytestResult,
    RuffResult,
    TypeCheckResult,
    as_code_mode,
    code_mode_instructions,
    function_tools,
    is_code_mode_call,
)

SIGNATURES = {
    "read_file": "read_file(path: str) -> str",
    "write_file": "write_file(path: str, content: str) -> str",
    "run_command": "run_command(command: str) -> str",
    "typecheck": "typecheck(path: str) -> TypeCheckResult "
    "(success, error_count, errors[file, line, code, message])",
    "ruff_check": "ruff_check(path: str) -> RuffResult "
    "(success, violation_count, fixable_count, violations[file, line, code, message, fixable])",
    "pytest_run": "pytest_run(path: str) -> PytestResult "
    "(success, passed, failed, skipped, tests[name, outcome, message])",
}


def test_signatures() -> None:
    assert {name: function.signature for name, function in FUNCTIONS.items()} == SIGNATURES


def test_instructions_show_every_signature_on_its_own_line() -> None:
    lines = code_mode_instructions().splitlines()
    assert [line for line in lines if "->" in line] == list(SIGNATURES.values())
    assert "execute_code" in lines[0]


def test_each_function_is_a_tool_with_its_parameters() -> None:
    by_name = {tool.name: tool.to_json()["function"]["parameters"] for tool in function_tools()}
    assert list(by_name) == list(SIGNATURES)
    assert by_name["write_file"] == {
        "type": "object",
        "properties": {"path": {"type": "string"}, "content": {"type": "string"}},
        "required": ["path", "content"],
    }


def test_a_direct_call_becomes_code_that_prints_its_result() -> None:
    call = as_code_mode(ToolCall("read_file", {"path": "src/it's.py"}))
    assert call == ToolCall("execute_code", {"code": 'print(read_file(path="src/it\'s.py"))'})
    assert as_code_mode(ToolCall("typecheck")).arguments == {"code": "print(typecheck())"}


@pytest.mark.parametrize("call", [ToolCall(EXECUTE_CODE.name, {"code": "1"}), ToolCall("search", {"q": "x"})])
def test_other_calls_stay_as_they_are(call: ToolCall) -> None:
    assert as_code_mode(call) is call


@pytest.mark.parametrize("name", ["class", "bad key", "file"])
def test_an_argument_that_the_function_does_not_have_is_a_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"read_file has no parameter '{name}', only path"):
        as_code_mode(ToolCall("read_file", {"path": "x", name: 1}))
    assert not is_code_mode_call(ToolCall("read_file", {"path": "x", name: 1}))


def test_calls_of_code_mode_are_of_its_tool_or_its_functions() -> None:
    calls = [
        ToolCall("execute_code", {"any": 1}),
        ToolCall("read_file", {"path": "x"}),
        ToolCall("typecheck"),
    ]
    assert all(map(is_code_mode_call, calls))
    assert not is_code_mode_call(ToolCall("search", {"path": "x"}))


@given(path=st.text(), content=st.text())
def test_the_code_says_exactly_what_the_call_said(path: str, content: str) -> None:
    code = as_code_mode(ToolCall("write_file", {"path": path, "content": content})).arguments["code"]
    (statement,) = ast.parse(code).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    (inner,) = statement.value.args
    assert isinstance(inner, ast.Call)
    assert isinstance(inner.func, ast.Name)
    assert (inner.func.id, inner.args) == ("write_file", [])
    assert {k.arg: ast.literal_eval(k.value) for k in inner.keywords} == {"path": path, "content": content}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (TypeCheckResult, {"success": False, "error_count": 1,
                           "errors": [{"file": "a.py", "line": 3, "code": "x", "message": "m"}]}),
        (RuffResult, {"success": True, "violation_count": 0, "fixable_count": 0, "violations": []}),
        (PytestResult, {"success": False, "passed": 1, "failed": 1, "skipped": 0,
                        "tests": [{"name": "t", "outcome": "failed", "message": "m"}]}),
    ],
)  # fmt: skip
def test_results_are_read_back_and_refuse_foreign_fields(kind: Any, data: dict[str, Any]) -> None:
    assert kind(**data).model_dump() == data
    with pytest.raises(ValidationError):
        kind(**data, elapsed=3)
