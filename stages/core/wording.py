"""When two texts say the same in other spelling: for duplicates, and for questions that leak."""

from __future__ import annotations

import re
import unicodedata

_NO_WORD = re.compile(r"\W+")
_ASCII = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}


def normalise(text: str) -> str:
    """Lower case letters and digits with single spaces: what makes two texts the same."""
    if text.isascii():  # the same, several times faster
        return " ".join(text.translate(_ASCII).lower().split())
    return " ".join(_NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split())
