from weather.station import Station


def test_mean():
    assert Station("north", [1.0, 2.0, 3.0]).mean() == 2.0


def test_mean_without_readings():
    assert Station("south", []).mean() == 0.0
