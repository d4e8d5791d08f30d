from lib.grid import Grid


def test_cell_inside():
    assert Grid(3, 3, set()).is_free(1, 1)


def test_wall():
    assert not Grid(3, 3, {(1, 1)}).is_free(1, 1)


def test_outside():
    assert not Grid(3, 3, set()).is_free(3, 0)
