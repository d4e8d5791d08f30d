import os

from invoice import invoice_number


def test_number_is_padded():
    assert invoice_number(2024, 7) == "2024-0007"


def test_number_of_large_count():
    assert invoice_number(2024, 12345) == "2024-2345"
