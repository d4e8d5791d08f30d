"""Books and how they are found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Book:
    title: str
    year: int


def by_year(books: list[Book], year: int) -> list[Book]:
    return [book for book in books if book.year == year]


def oldest(books: list[Book]) -> Book:
    return sorted(books, key=lambda book: book.year)
