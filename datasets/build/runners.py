"""The six functions of Code Mode, implemented for real over a scratch copy of a project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scratch import quiet_environment
from stages.core.errors import StageError
from stages.core.tools import (
    FUNCTIONS,
    PytestResult,
    RuffResult,
    TestOutcome,
    TypeCheckResult,
    TypeFinding,
    Violation,
)


def check_tools(pinned: dict[str, str]) -> None:
    """Raise StageError unless exactly these versions are installed."""
    for name, wanted in pinned.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if found != wanted:
            raise StageError(f"the corpus needs {name} {wanted}, found {found}: install {name}=={wanted}")


class Workshop:
    """Runs Code Mode code in one folder.

    `cache` is shared by the workshops over equal copies: an equal call is run once. A workshop that
    has written a file no longer uses it.
    """

    def __init__(self, folder: Path, cache: dict[tuple[str, ...], Any]) -> None:
        self.folder = folder
        self.results: list[Any] = []
        self._cache = cache
        self._written = False
        self._environment = quiet_environment(folder.parent / "bytecode")

    def execute(self, code: str, max_lines: int) -> str:
        """What the code prints, cut after `max_lines` lines. The results are kept in `results`."""
        printed: list[str] = []

        def emit(*values: object) -> None:
            printed.append(" ".join(str(value) for value in values))

        names: dict[str, Any] = {name: self._recorded(name) for name in FUNCTIONS}
        self.results = []
        exec(compile(code, "<row>", "exec"), names | {"print": emit})  # our own code, never a model's
        return cut_lines("\n".join(printed), max_lines)

    def _recorded(self, name: str) -> Callable[..., Any]:
        def call(*arguments: str) -> Any:
            key = (self.folder.name, name, *arguments)
            if self._written or name == "write_file":
                result = getattr(self, name)(*arguments)
            else:
                if key not in self._cache:
                    self._cache[key] = getattr(self, name)(*arguments)
                result = self._cache[key]
            self.results.append(result)
            return result

        return call

    def read_file(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")

    def write_file(self, path: str, content: str) -> str:
        self._written = True
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8", newline="\n")
        return f"Wrote {len(content)} characters to {path}"

    def run_command(self, command: str) -> str:
        run = subprocess.run(
            ["sh", "-c", command], cwd=self.folder, env=self._environment, capture_output=True, text=True
        )
        lines = (run.stdout + run.stderr).rstrip().splitlines()
        # grep -r and find list in the order of the file system, which differs between machines.
        if command.startswith(("grep -r", "find ")):
            lines.sort()
        return "\n".join(lines) if lines else "(no output)"

    def typecheck(self, path: str) -> TypeCheckResult:
        found = json.loads(
            self._run_tool("ty", "check", "--output-format", "gitlab", "--python", sys.prefix, path)
        )
        errors = [
            TypeFinding(
                file=item["location"]["path"],
                line=item["location"]["positions"]["begin"]["line"],
                code=item["check_name"],
                message=item["description"].removeprefix(item["check_name"] + ": "),
            )
            for item in found
            if item["severity"] == "major"  # errors; warnings are minor
        ]
        errors.sort(key=lambda error: (error.file, error.line))
        return TypeCheckResult(success=not errors, error_count=len(errors), errors=errors)

    def ruff_check(self, path: str) -> RuffResult:
        found = json.loads(self._run_tool("ruff", "check", "--output-format", "json", path))
        violations = [
            Violation(
                file=Path(item["filename"]).relative_to(self.folder).as_posix(),
                line=item["location"]["row"],
                code=item["code"],
                message=item["message"],
                fixable=(item["fix"] or {}).get("applicability") == "safe",
            )
            for item in found
        ]
        violations.sort(key=lambda violation: (violation.file, violation.line))
        fixable = sum(violation.fixable for violation in violations)
        return RuffResult(
            success=not violations,
            violation_count=len(violations),
            fixable_count=fixable,
            violations=violations,
        )

    def pytest_run(self, path: str) -> PytestResult:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
            self._run_tool("pytest", *options, path)
            cases = ElementTree.parse(report).iter("testcase")
            tests = [_read_case(case) for case in cases]
        return PytestResult.of_tests(tests)

    def _run_tool(self, *command: str) -> str:
        """Standard output of a tool; exit status 1 means findings, above that a fault.

        The tools are those installed beside the running Python, whose folder leads the path.
        """
        run = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True, text=True)
        if run.returncode > 1:
            raise RuntimeError(f"{' '.join(command)} failed: {run.stderr or run.stdout}")
        return run.stdout


def _read_case(case: ElementTree.Element) -> TestOutcome:
    """One testcase of a JUnit report in the xunit1 family, which names the file."""
    outcome, message = "passed", ""
    for tag, name in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        found = case.find(tag)
        if found is not None:
            outcome, message = name, _first_line(found.get("message", ""))
    return TestOutcome(name=f"{case.get('file')}::{case.get('name')}", outcome=outcome, message=message)


def _first_line(message: str) -> str:
    """The first line of a failure without addresses of objects, which differ from run to run."""
    return re.sub(r" at 0x[0-9a-f]+", "", (message.splitlines() or [""])[0])


def cut_lines(text: str, limit: int) -> str:
    """The first `limit` lines, and how many more there were."""
    lines = text.rstrip().split("\n")
    if len(lines) <= limit + 1:
        return "\n".join(lines)
    return "\n".join([*lines[:limit], f"... ({len(lines) - limit} more lines)"])
