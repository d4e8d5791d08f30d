"""When two texts say the same in other spelling: for duplicates, and for questions that leak."""

from __future__ import annotations

import re
import unicodedata

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
