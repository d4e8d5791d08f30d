"""The single-turn sets of the Berkeley Function Calling Leaderboard, read from the package `bfcl-eval`.

Only the package's data files are read; nothing of it is imported or run. Its possible answers become
our matchers, so that its replies are scored like all others. The rules are those that its checker
applies to Python categories: one of the listed values per argument, "" for one that may be left out,
texts equal but for case and some punctuation, no argument beside the listed ones, parallel calls in
any order. What differs is in datasets/suites/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from stages.core.errors import StageError
from stages.core.matcher import Matcher
from stages.core.query import Calls, Expected, Query

VERSION = 4  # of the data: BFCL v4
PACKAGE = "bfcl-eval==2026.3.23"
_FILES = {
    "bfcl_simple": "simple_python",
    "bfcl_multiple": "multiple",
    "bfcl_parallel": "parallel",
    "bfcl_parallel_multiple": "parallel_multiple",
    "bfcl_irrelevance": "irrelevance",
    "bfcl_live_simple": "live_simple",
    "bfcl_live_multiple": "live_multiple",
    "bfcl_live_parallel": "live_parallel",
    "bfcl_live_parallel_multiple": "live_parallel_multiple",
    "bfcl_live_irrelevance": "live_irrelevance",
}
CATEGORIES = {name: f"category {file}" for name, file in _FILES.items()}
"""The suites that are made of it, with what they are."""
# Its schemas name types as Python does; shown to a model they are JSON Schema's.
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_PYTHON_TYPES = {
    "string": str, "integer": int, "float": float, "boolean": bool,
    "array": list, "tuple": list, "dict": dict, "any": str,
}  # fmt: skip


def read_queries(name: str) -> tuple[Query, ...]:
    """The queries of one of CATEGORIES. Raises StageError when the package is not installed."""
    file = f"BFCL_v4_{_FILES[name]}.json"
    folder = _find_data(name)
    answers = folder / "possible_answer" / file
    wanted = {row["id"]: row["ground_truth"] for row in _read_rows(answers)} if answers.is_file() else {}
    return tuple(
        _read_query(row, wanted.get(row["id"], ()), _FILES[name]) for row in _read_rows(folder / file)
    )


def _find_data(name: str) -> Path:
    spec = find_spec("bfcl_eval")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise StageError(
            f"suite {name} is read from the package bfcl-eval, which is not installed: the nox sessions "
            f"have it, elsewhere pip install --no-deps {PACKAGE}"
        )
    return Path(places[0]) / "data"


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]


def _read_query(row: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]], category: str) -> Query:
    (turns,) = row["question"]  # one exchange: these sets are single-turn
    functions = {function["name"]: function for function in row["function"]}
    calls = [_read_call(functions[name], answer) for call in wanted for name, answer in call.items()]
    return Query(
        id=row["id"],
        category=category,
        kind="tool" if calls else "direct",
        query=turns[-1]["content"],
        messages=tuple(turns[:-1]),
        accept=(calls[0] if len(calls) == 1 else Calls(calls=tuple(calls)),) if calls else (),
        tools=tuple(_translate_types(function) for function in row["function"]),
    )


def _translate_types(schema: Any) -> Any:
    """A definition with the types that JSON Schema has."""
    if isinstance(schema, list):
        return [_translate_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _JSON_TYPES.get(value, value)
        if key == "type" and isinstance(value, str)
        else _translate_types(value)
        for key, value in schema.items()
    }


def _read_call(function: Mapping[str, Any], answer: Mapping[str, list[Any]]) -> Expected:
    """One possible call. What it lists and the function has not (four slips of the data) is left out."""
    schema = function["parameters"]
    required = set(schema.get("required", ()))
    return Expected(
        function=function["name"],
        arguments={
            name: read_answer(allowed, schema["properties"][name], required=name in required)
            for name, allowed in answer.items()
            if name in schema["properties"]
        },
        closed=True,
    )


def read_answer(allowed: list[Any], schema: Mapping[str, Any], *, required: bool) -> Matcher:
    """The values that are allowed for one argument, as a matcher."""
    optional = "" in allowed and not required
    kind = _PYTHON_TYPES[schema["type"]]
    given = next((type(value) for value in allowed if value != ""), None)
    if given not in (kind, None) and {given, kind} != {int, float}:
        rules = [_exactly(value) for value in allowed]  # a variable's name instead of a value
    else:
        rules = [rule for value in allowed for rule in _read_value(value, kind, schema)]
    if kind is int and rules and given in (int, None):
        return Matcher(all_of=(Matcher(type="integer"), Matcher(any_of=tuple(rules))), optional=optional)
    return _either(rules, optional=optional)


def _either(rules: Sequence[Matcher], *, optional: bool = False) -> Matcher:
    if not rules:  # the mark "" alone: the argument is to be left out
        return Matcher(exact="", optional=optional)
    if len(rules) == 1:
        return Matcher.model_validate({rules[0].rule: rules[0].wanted, "optional": optional})
    return Matcher(any_of=tuple(rules), optional=optional)


def _read_value(value: Any, kind: type, schema: Mapping[str, Any]) -> list[Matcher]:
    """What one allowed value accepts; the mark "" accepts the empty value of a text or a list."""
    if kind is str:
        return [Matcher(text=value)]
    if kind is list:
        return [_read_list([] if value == "" else value, schema.get("items") or {})]
    if value == "":
        return []
    return [_read_object(value) if kind is dict else Matcher(exact=value)]


def _read_list(values: list[Any], items: Mapping[str, Any]) -> Matcher:
    rules = []
    for value in values:
        if isinstance(value, dict):
            rules.append(_read_object(value))
        elif isinstance(value, str):
            rules.append(Matcher(text=value))
        elif items.get("type") == "integer" and isinstance(value, int):
            rules.append(_exactly(value))
        else:
            rules.append(Matcher(exact=value))
    return Matcher(items=tuple(rules))


def _exactly(value: Any) -> Matcher:
    """The same value, and of an integer no float that is equal to it."""
    rule = Matcher(exact=value)
    return Matcher(all_of=(Matcher(type="integer"), rule)) if type(value) is int else rule


def _read_object(allowed: Mapping[str, list[Any]]) -> Matcher:
    """An object is given as the values that are allowed for each of its keys."""
    return Matcher(
        fields={
            key: _either(
                [Matcher(text=v) if isinstance(v, str) else Matcher(exact=v) for v in values],
                optional="" in values,
            )
            for key, values in allowed.items()
        }
    )
