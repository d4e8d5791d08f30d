"""When two texts say the same in other spelling: for duplicates, and for questions that leak.

`find_near` needs rapidfuzz, which the stages install that call it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

NEAR = 90.0  # rapidfuzz's token_sort_ratio, 0 to 100; short questions about two things can have 85
_PATH = re.compile(r"[\w.*-]*/[\w./*-]*|\b[\w-]+\.(?:py|md|toml|txt|ini|json|cfg|yml|yaml)\b")
# ASCII in one pass: letters small, digits, _, # and signs as they are, all else a space.
_SIGNS = "+<=>|~"  # with # in `C#` what tells two words or sums apart
_FOLD = bytes(
    ord(char.lower()) if char.isalnum() or char in f"_#{_SIGNS}" else 32 for char in map(chr, range(128))
)
_ASCII = _FOLD + bytes(range(128, 256))
_OF_SUMS = b"*/-0123456789"
_PLAIN = bytes(code for code in range(128) if code not in f"#{_SIGNS}".encode() + _OF_SUMS)
_SIGN = re.compile(rb"[+<=>|~]")
_MAYBE_SUM = re.compile(rb"\d[*/-]+\d")  # in what is left without the plain characters
# Between digits a star, a stroke and a minus are signs too, and elsewhere punctuation.
_SUM = re.compile(r"(?<=\d)[ \t]*([*\u2217]+|[/\u2044\u2215]+|[-\u2010-\u2015\u2212]+)[ \t]*(?=\d)")
_AS_SIGNS = str.maketrans("*\u2217/\u2044\u2215-\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "××÷÷÷∸∸∸∸∸∸∸∸")
_ALSO_MARKS = "\u2044\u2212\u2215\u2217"  # ½ is 1⁄2; minus, stroke and star, which are none in ASCII
_NO_LETTER = re.compile(rb"(?<![a-z])#|#(?=\w)")


def normalise(text: str) -> str:
    """Lower case letters and digits with single spaces: what makes two texts the same.

    Signs of sums stand as words of their own, `*`, `/` and `-` where they are such a sign; vowel signs and
    accents belong to their letter.
    """
    return normalise_to_bytes(text).decode("utf-8", "surrogatepass")


def normalise_to_bytes(text: str) -> bytes:
    """The same in UTF-8, for digests; ASCII, which most questions are, takes a fraction of the time."""
    if not text.isascii():
        return _normalise_any(text).encode("utf-8", "surrogatepass")
    written = text.encode()
    folded = written.translate(_ASCII)
    if special := written.translate(None, _PLAIN):
        if len(special) > 2 and _MAYBE_SUM.search(special):
            return _normalise_any(text).encode()
        if special.strip(_OF_SUMS):
            folded = _SIGN.sub(rb" \g<0> ", _NO_LETTER.sub(b" ", folded))
    return b" ".join(folded.split())


def _normalise_any(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _SUM.sub(lambda sign: sign[1].translate(_AS_SIGNS), folded).translate(_KEPT)
    if "#" in folded:
        folded = _NO_LETTER_ANY.sub(" ", folded)
    return " ".join(_START.sub(_drop_mark, folded).split())


class _Kept(dict[int, str]):
    """What becomes of a character, looked up when it is first met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        kind = unicodedata.category(char)
        if char.isalnum() or char in "_#" or kind[0] == "M":
            kept = char
        else:
            kept = f" {char} " if kind == "Sm" and char not in _ALSO_MARKS else " "
        self[code] = kept
        return kept


_KEPT = _Kept()
_NO_LETTER_ANY = re.compile(r"(?<![^\W\d_])#|#(?=\w)")
_START = re.compile(r"(?<!\S)[^\w\s]+")


def _drop_mark(start: re.Match[str]) -> str:
    """The beginning of a word without marks that belong to no letter."""
    return "" if unicodedata.category(start[0][0])[0] == "M" else start[0]


def mask_paths(text: str) -> str:
    """The wording alone: normalised, and every path is one and the same word."""
    return normalise(_PATH.sub("pathword", text))


def find_near(wording: str, others: Sequence[str], limit: float = NEAR) -> str | None:
    """The one of `others` that is nearest to a wording, None where none is as near as the limit."""
    from rapidfuzz import fuzz, process

    found = process.extractOne(wording, others, scorer=fuzz.token_sort_ratio, score_cutoff=limit)
    return None if found is None else found[0]
