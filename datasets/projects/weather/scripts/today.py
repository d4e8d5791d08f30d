"""Print a fixed example of today's weather."""

readings = [11.5, 14.0, 13.2]
print("mean", round(sum(readings) / len(readings), 1))
print("high", max(readings))
