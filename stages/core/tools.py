"""Code Mode: the one tool `execute_code`, and the typed functions that its code may call.

A model in Code Mode writes Python instead of one call per function. This module is the single
home of what such code may use: the prompt, the audit, the scorer and the corpus all read it here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from stages.core.chat import Tool, ToolCall


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TypeFinding(_Result):
    """One finding of the type checker."""

    file: str = Field(description="path relative to the project")
    line: int = Field(description="1-based line")
    code: str = Field(description="the checker's rule, such as return-value")
    message: str = Field(description="the finding in words")


class TypeCheckResult(_Result):
    """What `typecheck` returns."""

    success: bool = Field(description="no errors")
    error_count: int = Field(description="number of errors")
    errors: list[TypeFinding] = Field(description="the errors, in file order")


class Violation(_Result):
    """One finding of the linter."""

    file: str = Field(description="path relative to the project")
    line: int = Field(description="1-based line")
    code: str = Field(description="the rule, such as F401")
    message: str = Field(description="the finding in words")
    fixable: bool = Field(description="the linter can fix it itself")


class RuffResult(_Result):
    """What `ruff_check` returns."""

    success: bool = Field(description="no violations")
    violation_count: int = Field(description="number of violations")
    fixable_count: int = Field(description="number that the linter can fix itself")
    violations: list[Violation] = Field(description="the violations, in file order")


class TestOutcome(_Result):
    """One test that ran."""

    name: str = Field(description="the test's id, such as tests/test_cart.py::test_total")
    outcome: str = Field(description="passed, failed, error or skipped")
    message: str = Field(description="the failure in one line, empty when it passed")


class PytestResult(_Result):
    """What `pytest_run` returns."""

    success: bool = Field(description="nothing failed")
    passed: int = Field(description="number of tests that passed")
    failed: int = Field(description="number of tests that failed or had an error")
    skipped: int = Field(description="number of tests that were skipped")
    tests: list[TestOutcome] = Field(description="the tests, in run order")

    @classmethod
    def of_tests(cls, tests: list[TestOutcome]) -> PytestResult:
        """The result of these tests, counted."""
        failed = sum(test.outcome in ("failed", "error") for test in tests)
        return cls(
            success=not failed,
            passed=sum(test.outcome == "passed" for test in tests),
            failed=failed,
            skipped=sum(test.outcome == "skipped" for test in tests),
            tests=tests,
        )


@dataclass(frozen=True)
class Function:
    """A function that code may call: its name, its text parameters in order, its result."""

    name: str
    parameters: tuple[str, ...]
    result: type[BaseModel] | None
    summary: str

    @property
    def signature(self) -> str:
        """The line that the prompt shows, with the fields of a typed result."""
        parameters = ", ".join(f"{p}: str" for p in self.parameters)
        returns = self.result.__name__ if self.result else "str"
        fields = f" ({_fields(self.result)})" if self.result else ""
        return f"{self.name}({parameters}) -> {returns}{fields}"


def _fields(result: type[BaseModel]) -> str:
    """`error_count, errors[file, line]`: the names of the fields, those of list items in brackets."""
    names = []
    for name, info in result.model_fields.items():
        items = getattr(info.annotation, "__args__", ())
        item = items[0] if items else None
        if isinstance(item, type) and issubclass(item, BaseModel):
            name = f"{name}[{', '.join(item.model_fields)}]"
        names.append(name)
    return ", ".join(names)


FUNCTIONS: dict[str, Function] = {
    f.name: f
    for f in (
        Function("read_file", ("path",), None, "the text of a file"),
        Function("write_file", ("path", "content"), None, "write a file; returns a confirmation"),
        Function("run_command", ("command",), None, "run a shell command; returns its output"),
        Function("typecheck", ("path",), TypeCheckResult, "run the type checker"),
        Function("ruff_check", ("path",), RuffResult, "run the linter"),
        Function("pytest_run", ("path",), PytestResult, "run the tests"),
    )
}

EXECUTE_CODE = Tool(
    name="execute_code",
    description="Run Python code in the project and return what it prints.",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python code to run"}},
        "required": ["code"],
    },
)


def function_tools() -> tuple[Tool, ...]:
    """The Code Mode functions as tools of their own, as some legacy data calls them."""
    return tuple(
        Tool(
            name=f.name,
            description=f.summary,
            parameters={
                "type": "object",
                "properties": {p: {"type": "string"} for p in f.parameters},
                "required": list(f.parameters),
            },
        )
        for f in FUNCTIONS.values()
    )


def is_code_mode_call(call: ToolCall) -> bool:
    """Whether a call can be Code Mode's: of its one tool, or of a function with no argument but its own.

    Another agent's `read_file` has other arguments.
    """
    if call.name not in FUNCTIONS:
        return call.name == EXECUTE_CODE.name
    return not _list_foreign(call)


def as_code_mode(call: ToolCall) -> ToolCall:
    """A direct call of a Code Mode function as code that prints its result; other calls as they are.

    Raises ValueError for an argument that the function does not have: the code could not run, or not even
    be Python.
    """
    if call.name not in FUNCTIONS:
        return call
    if foreign := _list_foreign(call):
        known = ", ".join(FUNCTIONS[call.name].parameters)
        raise ValueError(f"{call.name} has no parameter {foreign[0][:40]!r}, only {known}")
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return ToolCall(EXECUTE_CODE.name, {"code": f"print({call.name}({arguments}))"})


def _list_foreign(call: ToolCall) -> list[str]:
    """The arguments of a direct call that the function of this name does not have."""
    known = FUNCTIONS[call.name].parameters
    return [name for name in call.arguments if name not in known]


def code_mode_instructions() -> str:
    """The paragraph of the system prompt that makes a model able to write such code."""
    lines = "\n".join(f.signature for f in FUNCTIONS.values())
    return (
        "To look at the project or act on it, call execute_code with Python code that prints "
        f"what you need. The code may call these functions:\n{lines}\n"
        "For a general question, answer directly without a tool."
    )
