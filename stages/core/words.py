"""Words that follow from a count or a noun, and text that is fit to be shown."""

from __future__ import annotations

from collections.abc import Sequence


def plural(count: int, noun: str) -> str:
    """`1 row`, `2 rows`, `3 queries`, `4 batches`, `5 matrices`."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{count} {noun[:-1]}ies"
    if noun.endswith("ix"):
        return f"{count} {noun[:-2]}ices"
    return f"{count} {noun}{'es' if noun.endswith('ch') else 's'}"


def percent(share: float, digits: int = 0) -> str:
    """A share in percent, without the sign. Only all of a whole is 100, and only none of it 0."""
    least = 10.0**-digits
    value = min(max(100 * share, least), 100 - least) if 0 < share < 1 else 100 * share
    return f"{value:.{digits}f}"


def number_each(noun: str, numbers: Sequence[int]) -> str:
    """`seed 0`, `seeds 0, 1`."""
    return f"{noun}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def name_some(names: Sequence[str], most: int, between: str = ", ") -> str:
    """`a, b`, and of more names than `most` `a, b and 3 more`; whole clauses want `; ` between."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def another(noun: str) -> str:
    """`another model`, and of what has no singular `other data`, `other replies`."""
    return f"{'other' if noun == 'data' or noun.endswith('s') else 'another'} {noun}"


def show_controls(text: str) -> str:
    """Shapeless characters, such as ESC or text-direction marks, as \\x1b; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
