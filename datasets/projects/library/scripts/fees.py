"""Print the fee for one to three days."""

for days in range(1, 4):
    print(days, "days:", days * 20, "cents")
