"""Texts that say the same: ASCII takes a short way, and it is the same way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.likeness import (
    find_near,
    mask_paths,
    normalise,
    normalise_to_bytes,
)


@given(st.text(st.characters(max_codepoint=127)) | st.text("34 *-/,#\n"))
def test_the_short_way_for_ascii_is_the_long_way(text: str) -> None:
    long = normalise(f"{text} \u00e9")
    assert long == f"{normalise(text)} \u00e9".lstrip()


@given(st.text())
def test_bytes_are_the_text(text: str) -> None:
    assert normalise_to_bytes(text) == normalise(text).encode("utf-8", "surrogatepass")


def test_what_makes_no_difference() -> None:
    assert normalise("  What IS\n a “Decorator_2”?? ") == "what is a decorator_2"
    assert normalise("Ｆｕｌｌ ½") == "full 1 ÷ 2"
    assert normalise("?!") == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("दिन क्या है?", "दान क्या है?"),
        ("กำไร", "กำไรๆ"),
        ("C++", "C#"),
        ("What is C#?", "What is C?"),
        ("3*4", "3+4"),
        ("3*4", "3-4"),
        ("3*4", "3/4"),
        ("3-4", "3/4"),
        ("3 - 4", "3 * 4"),
        ("3-4", "3, 4"),
        ("3*4", "3**4"),
        ("größe 3*4", "größe 3-4"),
        ("Is 3 < 4?", "Is 3 > 4?"),
        ("größe = 3", "größe ≠ 3"),
    ],
)
def test_what_makes_two_questions(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3+4", "3 + 4?"),
        ("Why `a=b`?", "why a = b"),
        ("# C#", "c#"),
        ("issue #12", "Issue#12"),
        ("don´t ❤️", "DON T"),
        ("Straße", "STRASSE"),
        ("cafe\u0301 ½", "Café 1/2"),
        ("3−4", "3-4"),
        ("pages 3–4", "pages 3 - 4"),
        ("3*4 - 5", "3 × 4-5"),
        ("3/4", "3 ÷ 4"),
        ("a*b - c/d", "a b c d"),
        ("read src/a-1.py", "Read src a 1 py."),
        ("3, -4", "3: 4"),
        ("take 3\n- 4 eggs", "take 3\n* 4 eggs"),
        ("x−1", "x-1"),
    ],
)
def test_what_makes_no_two_questions(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_normalised_texts_ignore_case_marks_and_width() -> None:
    assert normalise("  What IS\n a “Decorator”?? ") == normalise("what is a decorator")
    assert normalise("ｆｉｌｅ") == "file"
    assert normalise("src/a.py") != normalise("src/b.py")


def test_questions_that_differ_in_a_path_are_near() -> None:
    assert mask_paths("Lint src/a.py!") == mask_paths("lint docs/b/c.md") == "lint pathword"
    others = [mask_paths(text) for text in ("Run ruff on src/shop/cart.py, please.", "What is a decorator?")]
    for text, near in (
        ("Please run ruff on tests/test_cart.py", others[0]),
        ("what's a decorator", others[1]),
        ("Run the tests of src/shop/cart.py.", None),
        ("What is a generator?", None),
    ):
        assert find_near(mask_paths(text), others) == near, text


@given(
    st.one_of(st.text("34½ *-/–,#×∸"), st.text(), st.text(st.characters(categories=["L", "M", "Sm", "P"])))
)
def test_normalise_is_stable(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
