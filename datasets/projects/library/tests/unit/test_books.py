from app.books import Book, by_year, oldest

SHELF = [Book("Tides", 1998), Book("Stones", 1975)]


def test_by_year():
    assert by_year(SHELF, 1998) == [SHELF[0]]


def test_oldest():
    assert oldest(SHELF) == SHELF[1]
