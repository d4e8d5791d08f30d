from lib.battery import Battery


def test_use():
    assert Battery(50).use(20) == 30


def test_charge_never_negative():
    assert Battery(10).use(20) == 0
