"""Words that follow from a count or a noun."""

from __future__ import annotations

import pytest

from stages.core.words import another, name_some, number_each, percent, plural, show_controls


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
        (1, "batch", "1 batch"),
        (2, "batch", "2 batches"),
        (2, "path", "2 paths"),
        (3, "matrix", "3 matrices"),
    ],
)
def test_plural(count: int, noun: str, words: str) -> None:
    assert plural(count, noun) == words


@pytest.mark.parametrize(("numbers", "words"), [([0], "seed 0"), ([0, 1], "seeds 0, 1")])
def test_numbers_of_a_noun(numbers: list[int], words: str) -> None:
    assert number_each("seed", numbers) == words


@pytest.mark.parametrize(
    ("names", "words"), [("a", "a"), ("ab", "a, b"), ("abc", "a, b and 1 more"), ("abcde", "a, b and 3 more")]
)
def test_the_first_names(names: str, words: str) -> None:
    assert name_some(list(names), 2) == words
    assert name_some(list(names), 2, "; ") == words.replace(", ", "; ")


@pytest.mark.parametrize(
    ("noun", "words"),
    [("data", "other data"), ("suites", "other suites"), ("replies", "other replies")]
    + [(noun, f"another {noun}") for noun in ("model", "chat template", "adapter", "prompt", "suite")],
)
def test_another(noun: str, words: str) -> None:
    assert another(noun) == words


def test_what_has_no_shape_is_shown_by_its_number() -> None:
    assert show_controls("a\x1b[2J\r\u202e\ud800é\tb\n") == "a\\x1b[2J\\r\\u202e\\ud800é\tb\n"


@pytest.mark.parametrize(
    ("share", "digits", "words"),
    [
        (0.0, 0, "0"), (1.0, 0, "100"), (0.5, 0, "50"), (399 / 400, 0, "99"), (1 / 400, 0, "1"),
        (399 / 400, 1, "99.8"), (1999 / 2000, 1, "99.9"), (9999 / 10000, 1, "99.9"), (1e-9, 1, "0.1"),
        (1.0, 1, "100.0"), (0.0, 1, "0.0"), (1.25, 0, "125"),
    ],
)  # fmt: skip
def test_only_all_is_100_percent(share: float, digits: int, words: str) -> None:
    assert percent(share, digits) == words
