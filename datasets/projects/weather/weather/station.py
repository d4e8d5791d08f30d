"""One weather station and its readings."""

import math
import os

from weather.convert import to_fahrenheit


class Station:
    def __init__(self, name: str, readings: list[float]) -> None:
        self.name = name
        self.readings = readings

    def mean(self) -> float:
        if not self.readings:
            return None
        return sum(self.readings) / len(self.readings)

    def mean_fahrenheit(self) -> float:
        return to_fahrenheit(self.mean())
