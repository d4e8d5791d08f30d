"""Words that follow from a count or a noun, and text that is fit to be shown."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """`1 row`, `2 rows`, `3 queries`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"


def another(noun: str) -> str:
    """`another model`, and of what has no singular `other data`, `other replies`."""
    return f"{'other' if noun == 'data' or noun.endswith('s') else 'another'} {noun}"


def show_controls(text: str) -> str:
    """Shapeless characters, such as ESC or text-direction marks, as \\x1b; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
