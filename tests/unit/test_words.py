"""Words that follow from a count or a noun."""

from __future__ import annotations

import pytest

from stages.core.words import another, plural, show_controls


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [
        (0, "row", "0 rows"),
        (1, "row", "1 row"),
        (2, "row", "2 rows"),
        (1, "query", "1 query"),
        (3, "query", "3 queries"),
        (0, "reply", "0 replies"),
        (5, "more difference", "5 more differences"),
    ],
)
def test_plural(count: int, noun: str, words: str) -> None:
    assert plural(count, noun) == words


@pytest.mark.parametrize(
    ("noun", "words"),
    [("data", "other data"), ("suites", "other suites"), ("replies", "other replies")]
    + [(noun, f"another {noun}") for noun in ("model", "chat template", "adapter", "prompt", "suite")],
)
def test_another(noun: str, words: str) -> None:
    assert another(noun) == words


def test_what_has_no_shape_is_shown_by_its_number() -> None:
    assert show_controls("a\x1b[2J\r\u202e\ud800é\tb\n") == "a\\x1b[2J\\r\\u202e\\ud800é\tb\n"
