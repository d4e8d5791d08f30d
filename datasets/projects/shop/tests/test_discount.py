from discount import apply_code, apply_percent


def test_ten_percent():
    assert apply_percent(1000, 10) == 900


def test_no_code_changes_nothing():
    assert apply_code(500, None) == 500


def test_free_code():
    assert apply_code(500, "FREE") == 0
