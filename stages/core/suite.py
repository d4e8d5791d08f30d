"""Query suites: named, versioned sets of queries, and the files they are read from.

A suite is a JSON file `{"name", "version", "description", "queries": [...]}`, a JSONL file with one
query a line, or one of BFCL's categories. A comparison is only made between results of the same
suite: name, version and the content of its queries.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.core import bfcl
from stages.core.artifact import fingerprint_json
from stages.core.errors import StageError
from stages.core.fitting import find_misfit
from stages.core.matcher import Matcher
from stages.core.problems import Problem, first_problem
from stages.core.query import ONE, SEVERAL, Calls, Expected, Query, read_tools

SUITES = Path(__file__).resolve().parents[2] / "datasets" / "suites"
_HEADER = ("name", "version", "description", "tools")
_NOT_IN_A_NAME = re.compile(r"[^\w.-]+|^[^A-Za-z0-9]+")


class Suite(BaseModel):
    """A versioned set of queries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="such as core20; the name of a folder")
    version: int = Field(description="raised by every change that can change a score")
    description: str = Field(description="what it measures, in a sentence")
    queries: tuple[Query, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_ids(self) -> Suite:
        ids = [query.id for query in self.queries]
        if len(set(ids)) != len(ids):
            raise ValueError("two queries have the same id")
        return self

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the queries and their accepted calls, in any order: equal where scores compare."""
        queries = sorted(self.queries, key=lambda query: query.id)
        return fingerprint_json([query.model_dump(mode="json", exclude_defaults=True) for query in queries])


def load_suite(name: str) -> Suite:
    """A suite by its name, or by the path of a JSON or JSONL file.

    Raises StageError when there is none or it is not well formed.
    """
    if name in bfcl.CATEGORIES:
        return Suite(
            name=name,
            version=bfcl.VERSION,
            description=f"BFCL, {bfcl.CATEGORIES[name]}.",
            queries=bfcl.read_queries(name),
        )
    path = Path(name) if name.endswith((".json", ".jsonl")) else SUITES / f"{name}.json"
    try:
        text = path.read_bytes().removeprefix(BOM_UTF8)
    except FileNotFoundError:
        known = ", ".join([*sorted(p.stem for p in SUITES.glob("*.json")), *bfcl.CATEGORIES])
        raise StageError(
            f"no suite {name!r}: use one of {known}, or the path of a .json or .jsonl file"
        ) from None
    except IsADirectoryError:
        raise StageError(f"suite {path} is a folder: name the .json or .jsonl file in it") from None
    return _read_lines(path, text) if path.suffix == ".jsonl" else _read_json(path, text)


def load_suites(names: Sequence[str]) -> list[Suite]:
    """The suites of these names or paths. Raises StageError when two call themselves the same."""
    suites = [load_suite(name) for name in names]
    for suite in suites:
        if sum(other.name == suite.name for other in suites) > 1:
            raise StageError(f"two of the suites are named {suite.name}: change the name in one's file")
    return suites


def _read_json(path: Path, text: bytes) -> Suite:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise StageError(f"suite {path} is not valid JSON: {error}") from None
    queries = data.get("queries") if isinstance(data, dict) else None
    if not isinstance(queries, list):
        return _make_suite(path, data, [])
    header = {key: value for key, value in data.items() if key != "queries"}
    return _make_suite(path, header, [(_name_query(i, raw), raw) for i, raw in enumerate(queries, 1)])


def _name_query(number: int, raw: Any) -> str:
    named = raw.get("id") if isinstance(raw, dict) else None
    return f"query {named or f'number {number}'}"


def _read_lines(path: Path, text: bytes) -> Suite:
    """One query a line; a first line without a question names the suite and may give it tools."""
    header: dict[str, Any] = {
        "name": _NOT_IN_A_NAME.sub("-", path.stem).strip("-") or "suite",
        "version": 1,
        "description": f"The queries of {path.name}.",
    }
    queries: list[tuple[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            raw = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise StageError(
                f"suite {path}: line {number} is not valid JSON ({error}): write one query a line"
            ) from None
        if not isinstance(raw, dict):
            raise StageError(f"suite {path}: line {number} is no object: write one query a line")
        if not queries and raw.keys() <= set(_HEADER):
            header |= raw
        else:
            queries.append((f"line {number}", raw))
    return _make_suite(path, header, queries)


def _make_suite(path: Path, header: Any, rows: Sequence[tuple[str, Any]]) -> Suite:
    """A suite of raw queries, each with the place by which a mistake in it is named."""
    if isinstance(header, dict) and not rows:
        where = "one a line" if path.suffix == ".jsonl" else "in a list under `queries`"
        raise StageError(f"suite {path} has no query: write at least one, {where}")
    queries: dict[str, Query] = {}
    shared = _read_shared(path, header)
    for number, (place, raw) in enumerate(rows, 1):
        query = _read_query(path, place, shared | raw if isinstance(raw, dict) else raw)
        if query.id in queries:
            first = list(queries).index(query.id) + 1
            raise StageError(
                f"suite {path}: {place}: queries {first} and {number} have the same id {query.id!r}: "
                "give each its own"
            )
        queries[query.id] = query
    if isinstance(header, dict):
        named = {key: value for key, value in header.items() if key != "tools"}
        header = named | {"queries": list(queries.values())}
    try:
        return Suite.model_validate(header)
    except ValidationError as error:
        raise StageError(f"suite {path}: {first_problem(error)}") from None


def _read_shared(path: Path, header: Any) -> dict[str, Any]:
    """What a suite gives all queries that do not say it themselves: its tools, if it has any."""
    try:
        tools = read_tools(header.get("tools") if isinstance(header, dict) else None)
    except ValueError as error:
        raise StageError(f"suite {path}: {error}") from None
    return {} if tools is None else {"tools": tools}


def _read_query(path: Path, place: str, raw: Any) -> Query:
    try:
        query = Query.model_validate(raw)
    except ValidationError as error:
        raise StageError(f"suite {path}: {_describe(first_problem(error), place)}") from None
    if misfit := find_misfit(query):
        raise StageError(f"suite {path}: {place}, {misfit}")
    return query


def _describe(problem: Problem, place: str) -> str:
    inside = ".".join(str(part) for part in problem.where if part not in (ONE, SEVERAL))
    problem = replace(problem, reason=problem.reason.removeprefix(f"{inside}: "))  # of a tool, as rows say it
    known = f", use one of {', '.join(_list_keys(problem))}" if problem.kind == "extra_forbidden" else ""
    return problem.describe(f"{place}{', ' * bool(inside)}{inside}") + known


def _list_keys(problem: Problem) -> Iterable[str]:
    """The keys that are allowed where one is not."""
    above = problem.where[:-1]
    if "arguments" in above:
        return Matcher.model_fields
    if ONE in above or "calls" in above:
        return Expected.model_fields
    return Calls.model_fields if SEVERAL in above else Query.model_fields
