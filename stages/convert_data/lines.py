"""A line of JSON, or a list in a text, as a value of which nothing was lost: no object has a key twice.

orjson keeps the last of two equal keys and does not say so. To read everything with a reader that does
would take ten times as long, so it reads only what has more quotes than the value it was read as.
"""

from __future__ import annotations

from typing import Any

import orjson

from stages.core.dialects.literals import LOOSE, find_doubled
from stages.core.exact import mend_integers

_TEXT_KEY = b'"text"'  # within a string its quotes would be escaped
_BEHIND_FIRST = len(b"{") + len(_TEXT_KEY)


def load_once(text: str | bytes) -> Any:
    """A JSON text's value. Raises ValueError as `load_json` does, and for a key that an object has twice.

    In a row of nothing but `text`, the commonest, a second `text` spelled with escapes is not seen.
    """
    value = orjson.loads(text)
    data = text if isinstance(text, bytes) else text.encode()
    if type(value) is dict and len(value) == 1 and type(value.get("text")) is str:
        if data.find(_TEXT_KEY, _BEHIND_FIRST) == -1:
            return value  # nor does it have an integer
    elif (written := _write(value)) == data:
        return value  # to the letter, its integers too
    elif written.count(b'"') == data.count(b'"') and b"\\u0022" not in data:
        return mend_integers(value, data)  # every key has two quotes, and no string more than before
    if key := _find_doubled(data):
        raise ValueError(f"an object with the key {key[:40]!r} twice: the one before the last would be lost")
    return mend_integers(value, data)


def _write(value: Any) -> bytes:
    """A value as JSON, nothing where orjson cannot write it."""
    try:
        return orjson.dumps(value)
    except TypeError:  # too many levels
        return b""


def _find_doubled(data: bytes) -> str:
    try:
        return find_doubled(LOOSE.decode(data.decode()))
    except RecursionError:
        return ""  # no row is so deep, and the conversion says it
