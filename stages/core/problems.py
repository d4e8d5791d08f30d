"""What is wrong with a value that a user gave, in this project's words instead of the validator's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

NO_VALUE = ("missing", "extra_forbidden")  # kinds of mistakes in which it is the key that matters
_WORDS = {
    "missing": "this key is missing",
    "extra_forbidden": "no such key",
    "int_type": "use a whole number",
    "int_parsing": "use a whole number",
    "int_from_float": "use a whole number",
    "float_type": "use a number",
    "float_parsing": "use a number",
    "finite_number": "use a finite number",
    "bool_type": "use true or false",
    "bool_parsing": "use true or false",
    "string_type": "use a text",
    "string_too_short": "it must not be empty",
    "string_pattern_mismatch": "use a text that fits {pattern}",
    "literal_error": "use {expected}",
    "greater_than": "use a number above {gt:.12g}",
    "greater_than_equal": "use {ge:.12g} or more",
    "less_than": "use a number below {lt:.12g}",
    "less_than_equal": "use {le:.12g} or less",
    "too_short": "name at least {min_length}",
    "tuple_type": "use a list",
    "list_type": "use a list",
    "dict_type": "use a table of keys and values",
    "model_type": "use a table of keys and values",
    "model_attributes_type": "use a table of keys and values",
    "value_error": "{error}",
}


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, the value there, and what would be right."""

    where: tuple[str | int, ...]
    kind: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Such as `train.iters = 0: use 1 or more`."""
        return self.describe(".".join(map(str, self.where)))

    def describe(self, place: str) -> str:
        """The mistake in words, its place called `place`."""
        shown = "" if self.kind in NO_VALUE else repr(self.value)
        if isinstance(self.value, dict | list) or len(shown) > 80:
            shown = ""  # a whole table or a page of text explains nothing
        return f"{place}{' = ' * bool(shown and place)}{shown}{': ' * bool(place or shown)}{self.reason}"


def first_problem(error: ValidationError) -> Problem:
    """The first of the mistakes that a validation found; a misspelt key before what is missing for it."""
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    ours = _WORDS.get(first["type"])  # the validator's own words may hold braces
    reason = first["msg"] if ours is None else ours.format(**first.get("ctx", {}))
    return Problem(first["loc"], first["type"], first["input"], reason)
