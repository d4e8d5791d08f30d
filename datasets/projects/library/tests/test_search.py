from app.search import first_match, matches


def test_matches_ignores_case():
    assert matches("The Old House", "old")


def test_first_match():
    assert first_match(["Rivers", "Old Roads"], "roads") == "Old Roads"


def test_no_match():
    assert first_match(["Rivers"], "roads") == ""
