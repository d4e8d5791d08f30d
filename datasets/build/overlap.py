"""Which queries are too close to one of a suite."""

from __future__ import annotations

from pathlib import Path

from stages.core.likeness import find_near, mask_paths, normalise
from stages.core.suite import load_suite

APART = 82.0  # lower than where wordings count as near: what we write ourselves stays well clear


class SuiteGuard:
    """Refuses queries that are in a suite or close to one: to any turn of the user's in it."""

    def __init__(self, suites: Path) -> None:
        asked = [query for file in sorted(suites.glob("*.json")) for query in load_suite(str(file)).queries]
        said = [turn["content"] for query in asked for turn in query.turns if turn["role"] == "user"]
        self._exact = {normalise(text) for text in said}
        self._masked = sorted({mask_paths(text) for text in said})

    def allows(self, query: str) -> bool:
        """True when the query is far enough from every suite query."""
        if normalise(query) in self._exact:
            return False
        return find_near(mask_paths(query), self._masked, APART) is None
