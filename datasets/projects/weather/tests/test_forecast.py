import pytest

from weather.forecast import describe, trend


def test_trend_rises():
    assert trend([1.0, 4.0]) == "rising"


def test_trend_needs_two_values():
    assert trend([1.0]) is None


@pytest.mark.skip(reason="wording is not settled")
def test_describe():
    assert describe([1.0, 4.0]) == "Between 1 and 4 degrees."
