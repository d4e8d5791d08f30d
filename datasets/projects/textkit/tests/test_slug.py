from textkit.slug import is_slug, make_slug


def test_spaces_become_dashes():
    assert make_slug("Hello Big World") == "hello-big-world"


def test_limit():
    assert make_slug("a" * 50, limit=10) == "a" * 10


def test_is_slug():
    assert is_slug("a-b")
