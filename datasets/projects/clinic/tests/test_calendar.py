from services.calendar import first_free, free_slots, slots


def test_slots_of_an_hour():
    assert slots(0, 60) == [0, 15, 30, 45]


def test_free_slots():
    assert free_slots([0, 15], {0}) == [15]


def test_first_free_of_a_full_day():
    assert first_free([0], {0}) is None
