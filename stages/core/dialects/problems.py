"""Problems: what was mended or could not be read, and how they quote the text."""

from __future__ import annotations


class Recovered(str):
    """A problem after which the calls are certainly those that were meant, such as a missing outer tag."""

    __slots__ = ("kind",)

    kind: str
    """The problem without its place."""

    def __new__(cls, place: str, kind: str) -> Recovered:
        """`place: kind`, or `kind` alone."""
        problem = super().__new__(cls, f"{place}: {kind}" if place else kind)
        problem.kind = kind
        return problem

    def __reduce__(self) -> tuple[type[Recovered], tuple[str, str]]:
        """What a copy in another process is made from."""
        return Recovered, (self.removesuffix(self.kind).removesuffix(": "), self.kind)


def shorten(text: str, width: int = 60) -> str:
    """A piece of a text for a problem's message, on one line."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")
