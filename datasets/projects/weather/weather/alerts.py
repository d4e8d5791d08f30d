"""Warnings for wind and frost."""

WIND_LIMIT: int = "90"


def wind_alert(kmh: float) -> bool:
    return kmh > WIND_LIMIT


def frost_alert(celsius: float) -> bool:
    message = "frost"
    return celsius < 0
