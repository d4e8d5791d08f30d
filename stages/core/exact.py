"""JSON to the letter: integers to the last digit, which orjson makes floats beyond 64 bits, and types."""

from __future__ import annotations

import json
from typing import Any

import orjson

_LONG = b"0" * 19  # no shorter integer is beyond 64 bits
_DIGITS_AS_ZERO = bytes(ord("0") if ord("0") <= byte <= ord("9") else byte for byte in range(256))


def load_json(text: str | bytes) -> Any:
    """A JSON text's value. Raises ValueError when it is none, or too deep or too long for Python's reader."""
    value = orjson.loads(text)
    if len(text) < len(_LONG):
        return value
    data = text if isinstance(text, bytes) else text.encode()
    # A translation and a search take a tenth of the time of a regular expression.
    if _LONG not in data.translate(_DIGITS_AS_ZERO):
        return value
    try:
        return json.loads(data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same in their types too: `true`, 1 and 1.0 are three."""
    waiting = [(one, other)]
    while waiting:
        mine, theirs = waiting.pop()
        if isinstance(mine, dict) and isinstance(theirs, dict):
            if mine.keys() != theirs.keys():
                return False
            waiting += [(value, theirs[key]) for key, value in mine.items()]
        elif isinstance(mine, list) and isinstance(theirs, list):
            if len(mine) != len(theirs):
                return False
            waiting += zip(mine, theirs, strict=True)
        elif type(mine) is not type(theirs) or repr(mine) != repr(theirs):
            return False
    return True
