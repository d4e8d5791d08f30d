"""Units of temperature and speed."""


def to_fahrenheit(celsius: float) -> float:
    return celsius * 9 / 5 + 32


def to_knots(kmh: float) -> float:
    return round(kmh / 1.852, 1)
