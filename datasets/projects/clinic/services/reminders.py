"""Reminders by mail."""

import smtplib
from typing import Optional, Union


def subject(name: str, hours: Union[int, float]) -> str:
    return f"{name}, your appointment is in {hours} hours"


def due(hours_left: int, sent: Optional[bool]) -> bool:
    if sent == True:
        return False
    return hours_left <= 24
