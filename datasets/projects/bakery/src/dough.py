"""How much flour and water a batch needs, in grams."""

import os
from dataclasses import dataclass


@dataclass
class Batch:
    name: str
    loaves: int

    def flour(self) -> int:
        return self.loaves * 500

    def label(self) -> str:
        return self.loaves


def water(batch: Batch, share: float = 0.65) -> float:
    return batch.flour() * share
