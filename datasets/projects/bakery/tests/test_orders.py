from typing import Dict

from dough import Batch
from orders import find, total

STOCK: Dict[str, int] = {"rye": "two"}


def test_total_of_two_batches():
    assert total([Batch("rye", 2), Batch("spelt", 3)]) == 5


def test_find_by_name():
    assert find([Batch("rye", 2)], "rye").loaves == 2


def test_nothing_is_left():
    assert total([]) == len(STOCK)
