from datetime import date

from app.loans import due_date, fee


def test_due_date():
    assert due_date(date(2024, 3, 1)) == date(2024, 3, 22)


def test_fee_of_three_days():
    assert fee(3) == 60


def test_no_fee_when_early():
    assert fee(-2) == 0
