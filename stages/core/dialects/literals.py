"""Read a JSON value or a Python literal that starts at a given place in a text.

The standard library's JSON scanner says where a value ends, which a closing tag inside a string must
not decide, and keeps integers beyond 64 bits, which orjson turns into floats. The reader of Python
literals is our own and not `ast`: a model writes `true` and `null` among Python values, names an
argument `from`, and puts prose behind the list, none of which `ast` reads. Nothing is ever evaluated.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

MAX_DEPTH = 100

_FIRST_WINDOW = 4096


class Doubled(dict[str, Any]):
    """A JSON object that had a key twice: the last one counts, as everywhere, and `key` names it."""

    key: str


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    doubled, seen = Doubled(made), set[str]()
    for key, _ in pairs:
        if key in seen:
            doubled.key = key
            break
        seen.add(key)
    return doubled


def find_doubled(value: Any) -> str:
    """A key that an object in a value had twice, `""` for an empty one; empty where there is none."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Doubled):
            return item.key or '""'
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return ""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{NO_NUMBER}: {name}")


NO_NUMBER = "no number of JSON"
"""What the error about NaN and the infinities begins with, which Python's reader knows."""
_STRICT = json.JSONDecoder(object_pairs_hook=_make_object, parse_constant=_refuse_constant)
LOOSE = json.JSONDecoder(object_pairs_hook=_make_object, strict=False)

_SPACE = re.compile(r"\s*+")
_NAME = re.compile(r"[^\W\d]\w*+")
_KEYWORD = re.compile(r"([^\W\d]\w*+)\s*+=(?!=)")
_EQUALS = re.compile(r"\s*+=(?!=)")
_NUMBER = re.compile(
    r"[-+]?\s*+(?:0[xX][0-9a-fA-F_]++|0[oO][0-7_]++|0[bB][01_]++"
    r"|(?:[0-9][0-9_]*+(?:\.[0-9_]*+)?|\.[0-9][0-9_]*+)(?:[eE][-+]?[0-9]++)?)(?![\w.])"
)
_STRING = re.compile(
    r"(?P<prefix>[rRuU]?)(?:"
    r'"""(?P<d3>(?:[^"\\]|\\.|"(?!""))*+)"""'
    r"|'''(?P<s3>(?:[^'\\]|\\.|'(?!''))*+)'''"
    r'|"(?P<d1>[^"\\]*+(?:\\.[^"\\]*+)*+)"'
    r"|'(?P<s1>[^'\\]*+(?:\\.[^'\\]*+)*+)')",
    re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(\r\n|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^{}]{1,90}\}|[0-7]{1,3}|.)", re.DOTALL
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SIMPLE = {
    "n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b",
    "f": "\f", "v": "\v", "\n": "", "\r\n": "",
}  # fmt: skip
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


class NotLiteral(ValueError):
    """There is no such value here; `pos` is where the text stops being one.

    `reached` is how far any attempt to read it came.
    """

    def __init__(self, message: str, pos: int) -> None:
        super().__init__(message)
        self.pos = self.reached = pos


def read_json(text: str, pos: int, *, strict: bool = True) -> tuple[Any, int]:
    """The JSON object or array at `pos` and the position after it.

    With `strict=False`, strings may hold raw newlines and tabs, and NaN is a number. Raises NotLiteral.
    """
    decoder = _STRICT if strict else LOOSE
    size = _FIRST_WINDOW
    while True:
        # The decoder counts all lines before an error, so it is given no more text than it needs.
        window = text[pos : pos + size]
        try:
            value, end = decoder.raw_decode(window)
            return value, pos + end
        except json.JSONDecodeError as error:
            at_end = error.pos > len(window) - 16 or error.msg.startswith("Unterminated")
            if not at_end or pos + size >= len(text):
                raise NotLiteral(error.msg, pos + error.pos) from None
        except RecursionError:
            raise NotLiteral("nested too deeply", pos + len(window)) from None
        except ValueError as error:  # an integer beyond Python's limit of digits
            raise NotLiteral(str(error), pos + 1) from None
        size *= 16


def read_literal(text: str, pos: int) -> tuple[Any, int]:
    """The Python literal at `pos`, in JSON's types, and the position after it.

    `true`, `false` and `null` are read as JSON means them, a tuple as a list, a key that is not a
    string as JSON would write it. Strings may span lines. Raises NotLiteral.
    """
    try:
        return _read_value(text, _skip(text, pos), 0)
    except RecursionError:  # the caller's own stack is nearly full
        raise NotLiteral("nested too deeply", pos) from None


def read_arguments(text: str, pos: int, odd: tuple[str, ...] = ()) -> tuple[list[Any], dict[str, Any], int]:
    """The arguments of a call after its opening parenthesis: positional, by keyword, and the end.

    `odd` are keywords that are no identifiers. The end is the position after the closing parenthesis.
    Raises NotLiteral.
    """
    try:
        return _read_arguments(text, _skip(text, pos), odd)
    except RecursionError:
        raise NotLiteral("nested too deeply", pos) from None


def _read_arguments(text: str, pos: int, odd: tuple[str, ...]) -> tuple[list[Any], dict[str, Any], int]:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    while not text.startswith(")", pos):
        keyword, begin = _find_keyword(text, pos, odd)
        value, end = _read_value(text, _skip(text, begin), 0)
        if not keyword:
            if named:
                raise NotLiteral("a positional argument after a named one", pos)
            positional.append(value)
        elif keyword in named:
            raise NotLiteral(f"{keyword} is given twice", pos)
        else:
            named[keyword] = value
        pos = _read_separator(text, end, ")")
    return positional, named, pos + 1


def _find_keyword(text: str, pos: int, odd: tuple[str, ...]) -> tuple[str, int]:
    """The keyword at `pos` and the position behind its `=`; empty where there is none."""
    if odd and text.startswith(odd, pos):
        for key in odd:
            if text.startswith(key, pos) and (equals := _EQUALS.match(text, pos + len(key))) is not None:
                return key, equals.end()
    keyword = _KEYWORD.match(text, pos)
    return (keyword[1], keyword.end()) if keyword is not None else ("", pos)


def _skip(text: str, pos: int) -> int:
    return _SPACE.match(text, pos).end()  # type: ignore[union-attr]


def _read_separator(text: str, pos: int, closing: str) -> int:
    """Step over a comma to the next item, or up to the closing bracket."""
    pos = _skip(text, pos)
    if text.startswith(",", pos):
        return _skip(text, pos + 1)
    if not text.startswith(closing, pos):
        raise NotLiteral(f"expected , or {closing}", pos)
    return pos


def _read_value(text: str, pos: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise NotLiteral("nested too deeply", pos)
    first = text[pos : pos + 1]
    if first == "[":
        return _read_items(text, pos + 1, "]", depth)
    if first == "{":
        return _read_pairs(text, pos + 1, depth)
    if first == "(":
        return _read_parentheses(text, pos + 1, depth)
    if (string := _STRING.match(text, pos)) is not None:
        return _read_strings(text, string)
    if (number := _NUMBER.match(text, pos)) is not None:
        return _read_number(number), number.end()
    name = _NAME.match(text, pos)
    if name is not None and name[0] in _CONSTANTS:
        return _CONSTANTS[name[0]], name.end()
    raise NotLiteral("not a literal", pos)


def _read_items(text: str, pos: int, closing: str, depth: int) -> tuple[list[Any], int]:
    items = []
    pos = _skip(text, pos)
    while not text.startswith(closing, pos):
        value, end = _read_value(text, pos, depth + 1)
        items.append(value)
        pos = _read_separator(text, end, closing)
    return items, pos + 1


def _read_parentheses(text: str, pos: int, depth: int) -> tuple[Any, int]:
    items, end = _read_items(text, pos, ")", depth)
    inside = text[pos : end - 1].rstrip()
    return (items[0] if len(items) == 1 and not inside.endswith(",") else items), end


def _read_pairs(text: str, pos: int, depth: int) -> tuple[dict[str, Any], int]:
    pairs: list[tuple[str, Any]] = []
    pos = _skip(text, pos)
    while not text.startswith("}", pos):
        if text.startswith(("{", "[", "("), pos):
            raise NotLiteral("not a key", pos)
        key, end = _read_value(text, pos, depth + 1)
        end = _skip(text, end)
        if not text.startswith(":", end):
            raise NotLiteral("expected a key and :", end)
        value, end = _read_value(text, _skip(text, end + 1), depth + 1)
        pairs.append((key if isinstance(key, str) else json.dumps(key), value))
        pos = _read_separator(text, end, "}")
    return _make_object(pairs), pos + 1


def _read_number(match: re.Match[str]) -> int | float:
    token = "".join(match[0].split())
    try:
        if token.lstrip("+-")[:2].lower() in ("0x", "0o", "0b"):
            return int(token, 0)
        return float(token) if any(c in token for c in ".eE") else int(token, 0)
    except ValueError as error:
        raise NotLiteral(str(error), match.start()) from None


def _read_strings(text: str, match: re.Match[str]) -> tuple[str, int]:
    """A string, or several side by side, which are one."""
    value = _read_string(match)
    while (following := _STRING.match(text, _skip(text, match.end()))) is not None:
        match = following
        value += _read_string(match)
    return value, match.end()


def _read_string(match: re.Match[str]) -> str:
    body: str = match[match.lastgroup or 0]
    if "\\" not in body or match["prefix"] in ("r", "R"):
        return body
    value = _ESCAPE.sub(_unescape, body)
    if _SURROGATE.search(value):  # JSON writes a character beyond U+FFFF as two escapes
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return value


def _unescape(match: re.Match[str]) -> str:
    """One escape sequence; what Python would refuse stays as it is written."""
    body: str = match[1]
    if (simple := _SIMPLE.get(body)) is not None:
        return simple
    try:
        if body[0] in "xuU" and len(body) > 1:
            return chr(int(body[1:], 16))
        if body[0] == "N" and len(body) > 1:
            return unicodedata.lookup(body[2:-1])
        return chr(int(body, 8)) if body[0] in "01234567" else match[0]
    except (ValueError, KeyError):
        return match[0]
