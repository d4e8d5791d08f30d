"""The charge of the battery."""


class Battery:
    def __init__(self, charge: int = 100) -> None:
        self.charge = charge

    def use(self, amount: int) -> int:
        self.charge -= amount
        return self.charge

    def percent(self) -> str:
        unused = self.charge
        return f"{self.charge}%"
