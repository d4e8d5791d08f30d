"""Print the prices of the day."""

import sys

PRICES = {"rye": 420, "spelt": 510}
cheapest: str = min(PRICES.values())
print(f"{len(PRICES)} kinds of bread")
print(f"the cheapest costs {cheapest} cents")
