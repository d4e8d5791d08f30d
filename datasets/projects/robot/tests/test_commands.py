from lib.commands import parse


def test_parse_move():
    assert parse("move 3") == ("move", 3)


def test_parse_turn():
    assert parse("turn 90") == ("turn", 90)
