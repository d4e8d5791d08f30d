"""Print the length of a working day."""

start, end = 8.5, 17.0
print("open for", end - start, "hours")
