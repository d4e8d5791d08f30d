"""Members of the library."""


class Member:
    def __init__(self, name: str) -> None:
        self.name = name
        self.loans: list[str] = []

    def borrow(self, title: str) -> bool:
        if len(self.loans) >= 5:
            return False
        self.loans.append(title)
        return True

    def greeting(self) -> str:
        return "Dear " + self.nickname
