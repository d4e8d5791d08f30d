"""Query suites: what is asked, and which calls count as right.

A suite is one JSON file: `{"name", "version", "description", "queries": [...]}`. A comparison is
only made between results of the same suite: name, version and the content of its queries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.core.artifact import fingerprint_json
from stages.core.errors import StageError
from stages.core.problems import first_problem
from stages.core.tools import FUNCTIONS


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Matcher(_Record):
    """What one argument must be. Exactly one of the fields is given."""

    exact: str | None = Field(None, description="equal, character for character")
    path: str | None = Field(None, description="the same path: ./a, a and a/ are equal")
    contains: tuple[str, ...] | None = Field(None, description="holds all of these texts")
    regex: str | None = Field(None, description="the pattern is found in it")
    any_of: tuple[Matcher, ...] | None = Field(None, description="at least one of these matches")

    @model_validator(mode="after")
    def _one_rule(self) -> Matcher:
        if len(self.model_fields_set) != 1:
            raise ValueError("a matcher has exactly one of exact, path, contains, regex, any_of")
        try:
            re.compile(self.regex or "")
        except re.error as error:
            raise ValueError(f"the regex {self.regex!r} is not valid: {error}") from None
        return self


class Expected(_Record):
    """One accepted call: a Code Mode function and a matcher for each argument that matters."""

    function: str = Field(description="such as typecheck")
    arguments: dict[str, Matcher] = Field(
        default_factory=dict, description="by parameter name; an argument not named here may be anything"
    )

    @model_validator(mode="after")
    def _can_be_called(self) -> Expected:
        if self.function not in FUNCTIONS:
            raise ValueError(f"no function {self.function!r}: use one of {', '.join(FUNCTIONS)}")
        unknown = self.arguments.keys() - set(FUNCTIONS[self.function].parameters)
        if unknown:
            raise ValueError(f"{self.function} has no parameter {', '.join(sorted(unknown))}")
        return self


class Query(_Record):
    """One question to the model."""

    id: str = Field(description="unique in the suite")
    category: str = Field(description="typecheck, ruff_check, …, concept, comparison, best_practice")
    kind: Literal["tool", "direct"] = Field(description="whether a tool must be called")
    query: str = Field(description="the user's text")
    accept: tuple[Expected, ...] = Field((), description="accepted calls; any one of them is right")
    terms: tuple[str, ...] = Field((), description="words of which a direct answer uses at least one")

    @model_validator(mode="after")
    def _kind_fits(self) -> Query:
        if (self.kind == "tool") != bool(self.accept):
            raise ValueError("a tool query has accepted calls, a direct one has none")
        return self


class Suite(_Record):
    """A versioned set of queries."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="such as core20; the name of a folder")
    version: int = Field(description="raised by every change that can change a score")
    description: str = Field(description="what it measures, in a sentence")
    queries: tuple[Query, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_ids(self) -> Suite:
        ids = [q.id for q in self.queries]
        if len(set(ids)) != len(ids):
            raise ValueError("two queries have the same id")
        return self

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the queries and their accepted calls, in any order: equal where scores compare."""
        queries = sorted(self.queries, key=lambda query: query.id)
        return fingerprint_json([query.model_dump(mode="json", exclude_defaults=True) for query in queries])


SUITES = Path(__file__).resolve().parents[2] / "datasets" / "suites"


def load_suite(name: str) -> Suite:
    """A suite by its name under `datasets/suites`, or by the path of a JSON file.

    Raises StageError when there is none or it is not well formed.
    """
    path = Path(name) if name.endswith(".json") else SUITES / f"{name}.json"
    try:
        data = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in SUITES.glob("*.json")))
        raise StageError(f"no suite {name!r}: use one of {known}, or the path of a .json file") from None
    except orjson.JSONDecodeError as error:
        raise StageError(f"suite {path} is not valid JSON: {error}") from None
    try:
        return Suite.model_validate(data)
    except ValidationError as error:
        problem = first_problem(error)
        raise StageError(f"suite {path}: {problem.describe(_place(problem.where, data))}") from None


def load_suites(names: Sequence[str]) -> list[Suite]:
    """The suites of these names or paths. Raises StageError when two call themselves the same."""
    suites = [load_suite(name) for name in names]
    for suite in suites:
        if sum(other.name == suite.name for other in suites) > 1:
            raise StageError(f"two of the suites are named {suite.name}: change the name in one's file")
    return suites


def _place(where: tuple[str | int, ...], data: Any) -> str:
    """A place in a suite; a query goes by its id, where it has one."""
    if len(where) < 2 or where[0] != "queries":
        return ".".join(map(str, where))
    query, inside = data["queries"][where[1]], ".".join(map(str, where[2:]))
    named = query.get("id") if isinstance(query, dict) else None
    return f"query {named or f'number {int(where[1]) + 1}'}{f', {inside}' if inside else ''}"
