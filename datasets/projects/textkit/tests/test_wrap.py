from textkit.wrap import longest, wrap


def test_short_text_is_one_line():
    assert wrap("one two") == ["one two"]


def test_width_is_kept():
    assert longest(wrap("alpha beta gamma delta", width=10)) == 10
