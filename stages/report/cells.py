"""Text that is safe and legible in Markdown: table cells, fenced data, figures in words.

Replies and scores are data from a model: nothing in them may end a table row, close a fence or
become a link, an image or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

from stages.core.records import Rate
from stages.core.words import percent, plural, show_controls
from stages.report.intervals import Count, rate_interval, ratio_interval

NONE = "–"
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
LONGEST = 1200  # characters of a reply that a report shows
_SPECIAL = re.compile(r"[&<>|\\`\[*~]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is harmless


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table; the cells are Markdown of ours, or went through `plain`."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def plain(text: str) -> str:
    """Any text as one line of Markdown that shows the text itself."""
    shown = show_controls(text.replace("\n", "⏎"))
    return _SPECIAL.sub(lambda match: _NAMED.get(match[0], f"&#{ord(match[0])};"), shown)


def cut(text: str, most: int = 100) -> str:
    """A title that leaves room for the rest of its line."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def inline_code(text: str) -> str:
    """Any text as one line of code, for use outside tables."""
    shown = show_controls(text.replace("\n", "⏎"))
    mark = "`" * (1 + max([0, *(len(run) for run in re.findall("`+", shown))]))
    return f"{mark} {shown} {mark}" if "`" in shown else f"{mark}{shown}{mark}"


def fenced(text: str) -> str:
    """Any text as a code block, longer than any run of backticks in it, cut after LONGEST characters."""
    shown = show_controls(text[:LONGEST])
    left = len(text) - LONGEST
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", shown))])
    rest = f"\n\n(cut: {plural(left, 'more character')})" if left > 0 else ""
    return f"{fence}text\n{shown}\n{fence}{rest}"


def rate_cell(rate: Rate | None) -> str:
    """`7/20 = 35.0 % (18.1 to 56.7)`."""
    if rate is None:
        return NONE
    limits = rate_interval(rate)
    return (
        f"{rate.k}/{rate.n} = {percent(rate.value, 1)} % ({100 * limits.low:.1f} to {100 * limits.high:.1f})"
    )


def ratio_cell(rate: Rate | None, reference: Rate | None) -> str:
    """`35 % (18 to 57)`: one rate as a share of another."""
    if rate is None or reference is None or reference.k == 0:
        return NONE
    limits = ratio_interval(Count.of(rate), Count.of(reference))
    share = share_of(rate.value, reference.value)
    return f"{share} ({100 * limits.low:.0f} to {100 * limits.high:.0f})"


def number(value: float | None, unit: str = "", digits: int = 2) -> str:
    """A figure with its unit, or a dash."""
    return NONE if value is None else f"{value:.{digits}f}{' ' if unit else ''}{unit}"


def share_of(value: float | None, whole: float | None) -> str:
    """`35 %`: one value as a share of another."""
    return f"{100 * value / whole:.0f} %" if value is not None and whole else NONE


def compare_speed(seconds: float | None, reference: float | None) -> str:
    """`10x slower (9.9)`, `4.2x faster`."""
    if not seconds or not reference:
        return NONE
    factor, word = (seconds / reference, "slower") if seconds > reference else (reference / seconds, "faster")
    if factor < 1.05:
        return "the same"
    return f"{factor:.1f}x {word}" if factor < 9.5 else f"{factor:.0f}x {word} ({factor:.1f})"


def compare_size(size: float | None, reference: float | None) -> str:
    """`75 % less`, `20 % more`, `3.0x as much`."""
    if not size or not reference:
        return NONE
    if size >= 2 * reference:
        return f"{size / reference:.1f}x as much"
    change = 100 * (size / reference - 1)
    if abs(change) < 0.5:
        return "the same"
    return f"{change:.0f} % more" if change > 0 else f"{-change:.{1 if change < -99 else 0}f} % less"


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of bars, the lowest and the highest at the ends of the scale."""
    bars = "▁▂▃▄▅▆▇█"
    low, high = min(values), max(values)
    step = (high - low) / (len(bars) - 1) or 1.0
    return "".join(bars[round((value - low) / step)] for value in values)


def short_model(name: str) -> str:
    """A preset's name as people say it: 30b is 30B."""
    return re.sub(r"\d+b\b", lambda match: match[0].upper(), name)
