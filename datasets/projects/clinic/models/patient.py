"""A patient."""

from dataclasses import dataclass


@dataclass
class Patient:
    name: str
    born: int

    def age(self, year: int) -> int:
        return year - self.born

    def is_child(self, year: int) -> bool:
        return self.age(str(year)) < 18
