"""Print the total of an example order."""

prices = {"pen": 150, "book": 900, "bag": 2400}
print(f"{len(prices)} items, {sum(prices.values()) / 100:.2f} in all")
