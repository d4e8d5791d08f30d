"""A visit and its price."""

from models.patient import Patient

PRICES = {"check": 40, "scan": 120}


def price(kind: str, patient: Patient, year: int) -> float:
    full = PRICES[kind]
    if patient.is_child(year):
        return full / 2
    return full
