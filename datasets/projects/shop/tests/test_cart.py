from cart import Cart


def test_total_of_two_items():
    cart = Cart()
    cart.add("pen", 150)
    cart.add("book", 900)
    assert cart.total() == 1050


def test_empty_cart_costs_nothing():
    assert Cart().total() == 0
