"""The closing answer of a row, computed from the results of its calls and from what was printed."""

from __future__ import annotations

import random
from typing import Any

from queries import Step
from stages.core.tools import PytestResult, RuffResult, TypeCheckResult


def write_answer(step: Step, results: list[Any], output: str, rng: random.Random) -> str:
    """One or two sentences that say what the output shows.

    `results` are the return values of the step's calls in order, `output` what the row shows of them.
    """
    if step.form == "pair":
        parts = [_count_words(result) for result in results]
        places = (
            step.path if step.details["other"] == step.path else f"{step.path} and {step.details['other']}"
        )
        return f"{places}: {parts[0]} and {parts[1]}."
    (function,), result = step.functions, results[0]
    if function == "typecheck":
        return _answer_types(step, result, rng)
    if function == "ruff_check":
        return _answer_lint(step, result, rng)
    if function == "pytest_run":
        return _answer_tests(step, result, rng)
    if function == "read_file":
        return _answer_read(step.path, output)
    if function == "write_file":
        length = len(step.details["content"])
        return rng.choice(
            [f"{step.path} is written, {length} characters.", f"Done: {step.path} now holds that text."]
        )
    return _answer_command(step, output)


def count(number: int, noun: str) -> str:
    """`no errors`, `1 error`, `2 errors`."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _count_words(result: Any) -> str:
    if isinstance(result, TypeCheckResult):
        return count(result.error_count, "type error")
    if isinstance(result, RuffResult):
        return count(result.violation_count, "violation")
    if isinstance(result, PytestResult):
        return count(result.failed, "failed test")
    raise TypeError(f"a pair has no use for {type(result).__name__}")


def _place(path: str) -> str:
    return "the project" if path == "." else path


def _where(finding: Any, path: str) -> str:
    """Where a finding is, without the file when the answer has just named it."""
    return f"on line {finding.line}" if finding.file == path else f"in {finding.file} on line {finding.line}"


def _answer_types(step: Step, result: TypeCheckResult, rng: random.Random) -> str:
    place = _place(step.path)
    if not result.errors:
        return rng.choice([f"No type errors in {place}.", f"The type checker finds no errors in {place}."])
    found = f"{count(result.error_count, 'type error')} in {place}"
    if step.form == "count":
        return found + "."
    first = result.errors[0]
    if len(result.errors) == 1:
        return f"{found}, {_where(first, step.path)}: {first.message}."
    return f"{found}, the first {_where(first, step.path)}."


def _answer_lint(step: Step, result: RuffResult, rng: random.Random) -> str:
    place = _place(step.path)
    if not result.violations:
        return rng.choice([f"No lint violations in {place}.", f"Ruff finds nothing in {place}."])
    found = f"{count(result.violation_count, 'violation')} in {place}"
    if step.form == "count":
        return found + "."
    if step.form == "fixable":
        return f"{found}; ruff can fix {result.fixable_count or 'none'} of them itself."
    first = result.violations[0]
    if len(result.violations) == 1:
        return f"{found}: {first.code} {_where(first, step.path)}."
    return f"{found}, the first is {first.code} {_where(first, step.path)}."


def _answer_tests(step: Step, result: PytestResult, rng: random.Random) -> str:
    place = _place(step.path)
    if not result.failed:
        passed = count(result.passed, "test")
        verb = "passes" if result.passed == 1 else "pass"
        return rng.choice(
            [f"All green: {passed} {verb} in {place}.", f"{passed} {verb} in {place}, none fail."]
        )
    found = f"{result.failed} of {result.passed + result.failed} tests in {place} " + (
        "fails" if result.failed == 1 else "fail"
    )
    if step.form == "summary":
        return found + "."
    first = next(test for test in result.tests if test.outcome in ("failed", "error"))
    return f"{found}: {first.name.rpartition('::')[2]}" + (" is the first." if result.failed > 1 else ".")


def _answer_read(path: str, output: str) -> str:
    """Says only what the shown part of the file holds."""
    shown, more = _split_rest(output)
    total = len(shown) + more
    if path.endswith(".py"):
        names = _defined_names(shown)
        opening = f"{path} has {count(total, 'line')}"
        if names and more:
            return f"{opening}; the part shown defines {_join(names)}."
        if names:
            return f"{opening} and defines {_join(names)}."
        return f"{opening}; it starts with: {_plain(shown[0])}"
    return f"{path} has {count(total, 'line')} and starts with: {_plain(shown[0])}"


def _plain(line: str) -> str:
    return line.strip().strip('"').strip()


def _defined_names(lines: list[str]) -> list[str]:
    """Top-level functions and classes of the lines that are shown, in order."""
    names = [
        line.split("(")[0].split(":")[0].split()[1] for line in lines if line.startswith(("def ", "class "))
    ]
    return [name for name in names if name.isidentifier()]


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _split_rest(output: str) -> tuple[list[str], int]:
    """The shown lines, and how many were cut."""
    lines = output.split("\n")
    if lines[-1].startswith("... ("):
        return lines[:-1], int(lines[-1].split("(")[1].split()[0])
    return lines, 0


def _answer_command(step: Step, output: str) -> str:
    shown, more = _split_rest(output)
    total = len(shown) + more
    values = step.details
    if step.form == "log":
        return f"The newest of the {total} commits is: {shown[0]}."
    if step.form == "status" and output == "(no output)":
        return "The working tree is clean, nothing is uncommitted."
    if step.form == "status":
        return f"{count(total, 'path')} not committed: {_join([line[3:] for line in shown])}."
    if step.form == "entries":
        if total <= 4:
            return f"{count(total, 'file')}: {_join(shown)}."
        return f"{count(total, 'file')}, the first is {shown[0]}."
    if step.form == "matches":
        file, line = shown[0].split(":")[:2]
        found = f"{values['word']} is on {count(total, 'line')} in {values['folder']}"
        return f"{found}, first in {file} on line {line}."
    if step.form == "printed":
        return f"{values['script']} prints {count(total, 'line')}, the last is: {shown[-1]}"
    command = step.path
    if command.startswith("wc "):
        return f"{values['file']} has {shown[0].split()[0]} lines."
    if command.startswith("git branch"):
        return f"The current branch is {shown[0]}."
    return f"{values['file']} {'begins' if command.startswith('head') else 'ends'} with these lines."
