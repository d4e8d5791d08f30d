"""Count words and letters."""

from collections import Counter
import string


def top_words(text: str, n: int = 3) -> list[str]:
    counts = Counter(text.lower().split())
    return counts.most_common(n)


def letters(text: str) -> int:
    total: int = 0.0
    for char in text:
        total += char.isalpha()
    return total
