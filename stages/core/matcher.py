"""What an argument of a call must be: one rule, over any JSON value."""

from __future__ import annotations

import posixpath
import re
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from stages.core.errors import StageError
from stages.core.words import plural

_IGNORED = re.compile(r"[ ,./\-_*^]")
_QUOTES = dict.fromkeys(
    map(ord, "'\u2018\u2019\u201a\u201b\u2032\u201c\u201d\u201e\u201f\u2033\xab\xbb\u2039\u203a"), '"'
)  # straight, raised, low and angled ones, and the signs for feet and inches
SECONDS = 2.0  # of computing for one search; a pattern with nested repetitions may take years
_KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}
_TEXT, _NUMBER = frozenset({"string"}), frozenset({"integer", "number"})


class Matcher(BaseModel):
    """What one argument must be. Exactly one rule is given; `optional` may stand beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: Any = Field(None, description="the same JSON value; 5 and 5.0 are one number, true is none")
    text: str | None = Field(
        None, description="the same text but for case, blanks and , . / - _ * ^, one kind of quotes"
    )
    path: str | None = Field(None, description="the same path: ./a, a and a/ are equal")
    contains: tuple[Any, ...] | None = Field(
        None, description="a text that holds all of these texts, or a list that holds all of these values"
    )
    regex: str | None = Field(None, description="a text in which the pattern is found")
    type: Literal["null", "boolean", "integer", "number", "string", "array", "object"] | None = Field(
        None, description="a value of this JSON type; 5.0 is no integer"
    )
    items: tuple[Matcher, ...] | None = Field(
        None, description="a list of as many values, each of which matches, in this order"
    )
    fields: dict[str, Matcher] | None = Field(
        None, description="an object with these keys and no others, whose values match"
    )
    any_of: tuple[Matcher, ...] | None = Field(None, description="at least one of these matches")
    all_of: tuple[Matcher, ...] | None = Field(None, description="every one of these matches")
    optional: bool = Field(False, strict=True, description="it may be left out")

    @model_validator(mode="before")
    @classmethod
    def _is_a_rule(cls, data: Any) -> Any:
        if not isinstance(data, Mapping | Matcher):
            raise ValueError('a matcher is an object with one rule, such as {"exact": "a"}')
        return data

    @model_validator(mode="after")
    def _one_rule(self) -> Matcher:
        if len(self.model_fields_set - {"optional"}) != 1:
            rules = ", ".join(_RULES)
            raise ValueError(f"a matcher has exactly one of {rules}")
        if self.rule != "exact" and self.wanted is None:
            raise ValueError(f'{self.rule} needs a value; null itself is {{"exact": null}}')
        if self.rule in ("contains", "any_of", "all_of") and not self.wanted:
            raise ValueError(f"{self.rule} needs at least one value")
        try:
            re.compile(self.regex or "")
        except re.error as error:
            raise ValueError(f"the regex {self.regex!r} is not valid: {error}") from None
        return self

    @model_serializer
    def _write(self) -> dict[str, Any]:
        """The rule alone, so that a rule added later changes no suite's fingerprint."""
        return {self.rule: self.wanted} | ({"optional": True} if self.optional else {})

    @property
    def rule(self) -> str:
        """The name of the rule."""
        return next(iter(self.model_fields_set - {"optional"}))

    @property
    def wanted(self) -> Any:
        """What the rule asks for."""
        return getattr(self, self.rule)

    @property
    def types(self) -> frozenset[str]:
        """The JSON types of the values that may match, none where no value does; 5 has two of them."""
        inner = [matcher.types for matcher in self.any_of or self.all_of or ()]
        if inner:
            return frozenset.union(*inner) if self.any_of else frozenset.intersection(*inner)
        if self.rule == "exact":
            return _types_of(self.wanted)
        if self.rule == "type":
            return _NUMBER if self.wanted in _NUMBER else frozenset({self.wanted})
        if self.rule == "contains":
            texts = all(isinstance(part, str) for part in self.wanted)
            return frozenset({"array", "string"} if texts else {"array"})
        return {"items": frozenset({"array"}), "fields": frozenset({"object"})}.get(self.rule, _TEXT)

    def fits(self, value: Any) -> bool:
        """Whether a value matches; what is no JSON value, such as an expression, never does.

        Raises StageError for a regex that is not through with a text in SECONDS.
        """
        return _RULES[self.rule](self.wanted, value)


def fits_all(matchers: Mapping[str, Matcher], values: Mapping[str, Any], *, closed: bool) -> bool:
    """Whether values by name match; with `closed` no other name may be there."""
    if closed and values.keys() - matchers.keys():
        return False
    return all(
        matcher.fits(values[name]) if name in values else matcher.optional
        for name, matcher in matchers.items()
    )


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: unlike in Python, true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    return bool(one == other)


def _types_of(value: Any) -> frozenset[str]:
    if isinstance(value, float) and value.is_integer():
        return _NUMBER
    found = {name for name in _KINDS if _is_of_type(name, value)}
    return frozenset(found)


def _is_found(pattern: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        with _limited_computing():
            return re.search(pattern, value) is not None
    except TimeoutError:
        raise StageError(
            f"the regex {pattern!r} was not through with a text of {plural(len(value), 'character')} after "
            f"{SECONDS:g} s: write it without a repetition in a repetition"
        ) from None


@contextmanager
def _limited_computing() -> Iterator[None]:
    """Raise TimeoutError in a block that computes for more than SECONDS, whatever else the cores do.

    A search looks for signals as it goes. Python lets the main thread alone handle them, so elsewhere
    nothing is limited.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def _same_text(wanted: str, value: Any) -> bool:
    return isinstance(value, str) and _bare(wanted) == _bare(value)


def _bare(text: str) -> str:
    return _IGNORED.sub("", unicodedata.normalize("NFC", text)).lower().translate(_QUOTES)


def _same_path(wanted: str, value: Any) -> bool:
    return isinstance(value, str) and posixpath.normpath(value) == posixpath.normpath(wanted)


def _contains(wanted: Sequence[Any], value: Any) -> bool:
    if isinstance(value, str):
        return all(isinstance(part, str) and part in value for part in wanted)
    return isinstance(value, list) and all(any(same_json(part, item) for item in value) for part in wanted)


def _is_of_type(wanted: str, value: Any) -> bool:
    return isinstance(value, _KINDS[wanted]) and (wanted == "boolean" or not isinstance(value, bool))


def _fits_items(wanted: Sequence[Matcher], value: Any) -> bool:
    if not isinstance(value, list) or len(value) != len(wanted):
        return False
    return all(matcher.fits(item) for matcher, item in zip(wanted, value, strict=True))


_RULES: dict[str, Callable[[Any, Any], bool]] = {
    "exact": same_json,
    "text": _same_text,
    "path": _same_path,
    "contains": _contains,
    "regex": _is_found,
    "type": _is_of_type,
    "items": _fits_items,
    "fields": lambda wanted, value: isinstance(value, dict) and fits_all(wanted, value, closed=True),
    "any_of": lambda wanted, value: any(matcher.fits(value) for matcher in wanted),
    "all_of": lambda wanted, value: all(matcher.fits(value) for matcher in wanted),
}
