"""Print a short walk."""

x = 0
for step in (2, 3, 1):
    x += step
    print("x =", x)
