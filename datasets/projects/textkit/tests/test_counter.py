from textkit.counter import letters, top_words


def test_letters():
    assert letters("a1b2") == 2


def test_top_word():
    assert top_words("go stop go", 1) == ["go"]
