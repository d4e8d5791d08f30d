"""The functions of Code Mode over a sample project in memory, and a note of every call.

They answer from recorded results. Nothing is run, no file of the machine is read or written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from inspect import Parameter, Signature
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from stages.core.records import CodeCall
from stages.core.sample import SampleFile
from stages.core.tools import FUNCTIONS, PytestResult, RuffResult, TypeCheckResult
from stages.eval.commands import LONGEST, answer_command
from stages.eval.project import Project, inside_project, is_test

SIGNATURES = {
    name: Signature([Parameter(p, Parameter.POSITIONAL_OR_KEYWORD) for p in function.parameters])
    for name, function in FUNCTIONS.items()
}


class Functions:
    """The functions for one run of code. `calls` notes each call, in order.

    `room` is how many characters may be written and noted; a write beyond it fails like a full disk.
    """

    def __init__(self, project: Project, room: int) -> None:
        self.calls: list[CodeCall] = []
        self._project = replace(project, files=dict(project.files))
        self._written: set[str] = set()
        self._room = room
        self._known = True

    def call(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> str | BaseModel:
        """Call a function as code did. Raises what a real one raises: TypeError, FileNotFoundError, …"""
        self._known = True
        given = [*zip(FUNCTIONS[name].parameters, arguments, strict=False), *named.items()]
        try:
            return self._answer(name, arguments, named)
        finally:
            self._note(name, given)

    def _answer(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> str | BaseModel:
        try:
            bound = SIGNATURES[name].bind(*arguments, **named).arguments
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        answer: Callable[..., str | BaseModel] = getattr(self, f"_{name}")
        return answer(**{key: _as_text(name, key, value) for key, value in bound.items()})

    def _note(self, name: str, given: list[tuple[str, Any]]) -> None:
        """Texts are noted as far as there is room, so that no code fills the memory of the caller."""
        noted: dict[str, str | None] = {}
        for key, value in given:
            text = str(value) if isinstance(value, str | PurePath) else None
            noted[self._take(key[:LONGEST])] = None if text is None else self._take(cut_argument(key, text))
        self.calls.append(CodeCall(function=name, arguments=noted, recorded=self._known))

    def _take(self, text: str) -> str:
        """The text, or its beginning when there is no room for more."""
        kept = text[: self._room]
        self._room -= len(kept)
        return kept

    def _read_file(self, path: str) -> str:
        files = self._select(path)
        place = inside_project(path)
        if place not in self._project.files:
            raise _os_error(errno.EISDIR, path)
        return files[0].text

    def _write_file(self, path: str, content: str) -> str:
        place = inside_project(path)
        if place is None:
            raise _os_error(errno.EACCES, path)
        if place == "." or any(known.startswith(f"{place}/") for known in self._project.files):
            raise _os_error(errno.EISDIR, path)
        if len(path) + len(content) > self._room:
            raise _os_error(errno.ENOSPC, path)
        self._room -= len(path) + len(content)
        files = dict(self._project.files) | {place: SampleFile(path=place, text=content)}
        self._project = replace(self._project, files=files)
        self._written.add(place)
        return f"Wrote {len(content)} characters to {path}"

    def _run_command(self, command: str) -> str:
        answer = answer_command(command, self._project)
        if answer is None:
            self._known = False
            return f"command not available here: {command[:100]}"
        return answer

    def _typecheck(self, path: str) -> TypeCheckResult:
        errors = [error for file in self._checked(path) for error in file.errors]
        return TypeCheckResult(success=not errors, error_count=len(errors), errors=errors)

    def _ruff_check(self, path: str) -> RuffResult:
        violations = [found for file in self._checked(path) for found in file.violations]
        return RuffResult(
            success=not violations,
            violation_count=len(violations),
            fixable_count=sum(found.fixable for found in violations),
            violations=violations,
        )

    def _pytest_run(self, path: str) -> PytestResult:
        # pytest goes through a folder name by name; "tests/a" comes before "tests/a_b".
        files = sorted(self._checked(path), key=lambda file: file.path.split("/"))
        tests = [test for file in files if is_test(file.path) for test in file.tests]
        name = path.partition("::")[2]
        if name and (named := [test for test in tests if test.name.partition("::")[2] == name]):
            tests = named
        elif name:
            self._known = False  # nobody but the query knows what is in its files
        return PytestResult.of_tests(tests)

    def _checked(self, path: str) -> list[SampleFile]:
        """The Python files at a path. Nothing was recorded about a text, nor about what code wrote."""
        files = self._select(path)
        python = [file for file in files if file.path.endswith(".py")]
        alone = inside_project(path) in self._project.files
        if (alone and not python) or any(file.path in self._written for file in python):
            self._known = False
        return python

    def _select(self, path: str) -> list[SampleFile]:
        """The file at a path, or all files of a folder, sorted. Raises FileNotFoundError, ValueError."""
        if "\0" in path:
            raise ValueError("embedded null byte")
        place = inside_project(path)
        files = self._project.files
        found = [files[p] for p in sorted(files) if place in (p, ".") or p.startswith(f"{place}/")]
        if not found or place is None:
            raise _os_error(errno.ENOENT, path)
        return found


def cut_argument(key: str, value: Any) -> Any:
    """A text as the patterns of a suite are given it, which take their time; only what is written is long."""
    return value if key == "content" or not isinstance(value, str) else value[:LONGEST]


def _as_text(name: str, key: str, value: Any) -> str:
    """A text argument, or a path object where a path is wanted."""
    if isinstance(value, str) or (isinstance(value, PurePath) and key == "path"):
        return str(value)
    raise TypeError(f"{name}() needs a str for {key}, not {type(value).__name__}")


def _os_error(code: int, path: str) -> OSError:
    """The error that the operating system gives: FileNotFoundError and so on, by the code."""
    return OSError(code, os.strerror(code), path)
