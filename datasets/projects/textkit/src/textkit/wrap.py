"""Wrap text at a width."""


def wrap(text: str, width: int = 20) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word + " "
    return [line.strip() for line in lines]


def longest(lines: list[str]) -> int:
    try:
        return max(len(line) for line in lines)
    except:
        return 0
