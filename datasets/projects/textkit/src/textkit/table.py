"""Text tables."""


def make_row(cells: list[str], width: int = 8) -> str:
    return " | ".join(cell.ljust(width) for cell in cells).rstrip()


def make_rule(columns: int, width: int = 8) -> str:
    return "-+-".join("-" * width for _ in range(columns))
