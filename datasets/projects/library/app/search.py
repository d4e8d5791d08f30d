"""Search titles by words."""

import re, sys


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def matches(title: str, query: str) -> bool:
    found = set(words(title))
    return all(word in found for word in words(query))


def first_match(titles: list[str], query: str) -> str:
    for title in titles:
        if matches(title, query):
            return title
    return 0
