"""When two texts say the same in other spelling: for duplicates, and for questions that leak.

`find_near` needs rapidfuzz, which the stages install that call it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

NEAR = 90.0  # rapidfuzz's token_sort_ratio, 0 to 100; short questions about two things can have 85
_PATH = re.compile(r"[\w.*-]*/[\w./*-]*|\b[\w-]+\.(?:py|md|toml|txt|ini|json|cfg|yml|yaml)\b")
_NO_WORD = re.compile(r"\W+")
# ASCII in one pass: letters small, digits and _ as they are, all else a space.
_FOLD = bytes(
    ord(chr(code).lower()) if chr(code).isalnum() or code == ord("_") else 32 for code in range(128)
)
_ASCII = _FOLD + bytes(range(128, 256))


def normalise(text: str) -> str:
    """Lower case letters and digits with single spaces: what makes two texts the same."""
    return normalise_to_bytes(text).decode("utf-8", "surrogatepass")


def normalise_to_bytes(text: str) -> bytes:
    """The same in UTF-8, for digests; ASCII, which most questions are, takes a fraction of the time."""
    if text.isascii():
        return b" ".join(text.encode().translate(_ASCII).split())
    folded = _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split()).encode("utf-8", "surrogatepass")


def mask_paths(text: str) -> str:
    """The wording alone: normalised, and every path is one and the same word."""
    return normalise(_PATH.sub("pathword", text))


def find_near(wording: str, others: Sequence[str], limit: float = NEAR) -> str | None:
    """The one of `others` that is nearest to a wording, None where none is as near as the limit."""
    from rapidfuzz import fuzz, process

    found = process.extractOne(wording, others, scorer=fuzz.token_sort_ratio, score_cutoff=limit)
    return None if found is None else found[0]
