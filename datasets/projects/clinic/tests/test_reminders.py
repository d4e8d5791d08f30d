from services.reminders import due, subject


def test_due_a_day_before():
    assert due(24, False)


def test_sent_is_not_due():
    assert not due(3, True)


def test_subject():
    assert subject("Ada", 24) == "Ada, your appointment is tomorrow"
