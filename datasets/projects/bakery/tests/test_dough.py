import json

import pytest
from dough import Batch, water


def test_flour_of_two_loaves():
    assert Batch("rye", 2).flour() == 1000


def test_water_of_one_loaf():
    assert water(Batch("rye", 1)) == 300


def test_name_is_kept():
    name: int = Batch("spelt", 3).name
    assert name == "spelt"


@pytest.mark.skip(reason="needs the oven")
def test_crust():
    assert Batch("rye", 1).label() == "1"
