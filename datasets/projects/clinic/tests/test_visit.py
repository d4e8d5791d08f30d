from models.patient import Patient
from models.visit import price


def test_child_pays_half():
    assert price("check", Patient("Bo", 2015), 2024) == 20


def test_adult_pays_full_price():
    assert price("scan", Patient("Ada", 1980), 2024) == 120
