"""Discounts on a total in cents."""


def apply_percent(cents: int, percent: int) -> int:
    return cents - cents * percent // 100


def apply_code(cents: int, code: str | None) -> int:
    if code == None:
        return cents
    if code == "HALF":
        return apply_percent(cents, "50")
    return cents
