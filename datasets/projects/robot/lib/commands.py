"""Commands as text, such as `move 3`."""

NAMES = ["move", "turn", "stop"]


def parse(line: str) -> tuple[str, int]:
    parts = line.split()
    if not parts[0] in NAMES:
        raise ValueError(f"unknown command")
    return parts[0], parts[1]


def describe(name: str, amount: int) -> str:
    return name + " by " + amount
