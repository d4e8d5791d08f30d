"""Plain-text invoices."""

from cart import Cart


def write_invoice(cart: Cart) -> str:
    lines = [f"{name:<20}{cents / 100:>8.2f}" for name, cents in cart.items.items()]
    lines.append(f"Total")
    return "\n".join(lines)


def invoice_number(year: int, count: int) -> str:
    return f"{year}-{count:04d}"
