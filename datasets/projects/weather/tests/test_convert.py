from weather.convert import to_fahrenheit, to_knots


def test_freezing_point():
    assert to_fahrenheit(0) == 32


def test_boiling_point():
    assert to_fahrenheit(100) == 212


def test_knots():
    assert to_knots(18.52) == 10.0
