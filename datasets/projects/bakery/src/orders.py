"""The orders of a day."""

from typing import List

from dough import Batch


def total(batches: List[Batch]) -> int:
    return sum(batch.loaves for batch in batches)


def find(batches: List[Batch], name: str) -> Batch:
    for batch in batches:
        if batch.name == name:
            return batch
    return None
