"""Figures in words, and text that breaks neither its cell nor its fence."""

from __future__ import annotations

from stages.report.cells import compare_size, compare_speed, fenced, inline_code, plain, sparkline, table
from tests.report_world import NASTY, check_tables


def test_figures_in_words() -> None:
    assert [compare_speed(s, 2.0) for s in (2.0, 3.0, 1.0, 40.0, 0, None)] == [
        "the same",
        "1.5x slower",
        "2.0x faster",
        "20x slower (20.0)",
        "–",
        "–",
    ]
    assert [compare_size(s, 10.0) for s in (10.0, 2.5, 12.0, 30.0, 0.04, None)] == [
        "the same",
        "75 % less",
        "20 % more",
        "3.0x as much",
        "99.6 % less",
        "–",
    ]
    assert sparkline([0.0, 1.0, 0.5]) in ("▁█▄", "▁█▅")
    assert sparkline([1.0, 1.0]) == "▁▁"


def test_text_is_made_harmless() -> None:
    cell = plain(NASTY)
    assert not set(cell) & set("|\n`<[*\x1b")
    assert inline_code("a `b` | \x1b") == "`` a `b` | \\x1b ``"
    assert plain("read_file") == "read_file"
    assert plain("__init__") == "&#95;&#95;init&#95;&#95;"
    assert check_tables(table(["a", "b"], [[cell, "x"], ["007", "1e5"]])) == 4
    block = fenced(NASTY)
    assert block.startswith("``````text\n")
    assert block.endswith("\n``````")
    long = fenced("x" * 5000)
    assert "(cut: 3800 more characters)" in long
