"""Loans, due dates and fees."""

import datetime
from datetime import date, timedelta

DAYS = 21
FEE = 20


def due_date(start: date) -> date:
    return start + timedelta(days=DAYS)


def fee(days_late: int) -> int:
    return max(0, days_late * FEE)
