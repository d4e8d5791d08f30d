"""Digests of a row, 16 bytes each: rows that say the same have the same ones."""

from __future__ import annotations

from xxhash import xxh3_128_digest

from stages.core.likeness import normalise_to_bytes

NO_DIGEST = bytes(16)
"""Of the questions of a row that asks none."""


def digest_row(*parts: bytes) -> bytes:
    """16 bytes for what a row says, in parts; of all of it at once, which is faster than part by part."""
    return xxh3_128_digest(b"".join(parts))


def digest_questions(questions: list[str]) -> bytes:
    """16 bytes that are the same for the same questions in other case, punctuation and white space."""
    if not questions:
        return NO_DIGEST
    text = normalise_to_bytes("\n".join(questions) if len(questions) > 1 else questions[0])
    return xxh3_128_digest(text) if text else NO_DIGEST
