"""Texts that say the same: ASCII takes a short way, and it is the same way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.core.wording import normalise, normalise_to_bytes


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_is_the_long_way(text: str) -> None:
    long = normalise(f"{text} \u00e9")
    assert long == f"{normalise(text)} \u00e9".lstrip()


@given(st.text())
def test_bytes_are_the_text(text: str) -> None:
    assert normalise_to_bytes(text) == normalise(text).encode("utf-8", "surrogatepass")


def test_what_makes_no_difference() -> None:
    assert normalise("  What IS\n a “Decorator_2”?? ") == "what is a decorator_2"
    assert normalise("Ｆｕｌｌ ½") == "full 1 2"
    assert normalise("?!") == ""


def test_normalised_texts_ignore_case_marks_and_width() -> None:
    assert normalise("  What IS\n a “Decorator”?? ") == normalise("what is a decorator")
    assert normalise("ｆｉｌｅ") == "file"
    assert normalise("src/a.py") != normalise("src/b.py")


@given(st.text())
def test_normalise_is_stable(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
