"""A few thousand random and mutated texts; `python -m tests.fuzz 200000` reads many more."""

from __future__ import annotations

import pytest

from tests.fuzz import make_texts, make_told, read_all, require_told


@pytest.mark.parametrize("seed", range(5))
def test_no_text_raises(seed: int) -> None:
    calls = sum(read_all(text) for text in make_texts(seed, 600))
    assert calls > 300, "the texts hold calls that are read"


def test_the_prose_around_calls_comes_back() -> None:
    for text, told in make_told(3, 1500):
        require_told(text, told)


def test_a_seed_makes_the_same_texts() -> None:
    assert list(make_texts(7, 50)) == list(make_texts(7, 50)) != list(make_texts(8, 50))
