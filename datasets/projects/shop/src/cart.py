"""A cart of items and its total in cents."""

import json
from dataclasses import dataclass, field


@dataclass
class Cart:
    items: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, cents: int) -> None:
        self.items[name] = self.items.get(name, 0) + cents

    def total(self) -> int:
        return sum(self.items.values())

    def label(self) -> str:
        return len(self.items)
