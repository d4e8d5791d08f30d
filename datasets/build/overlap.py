"""Which queries are too close to one of a suite."""

from __future__ import annotations

import json
from pathlib import Path

from stages.core.wording import find_near, mask_paths, normalise

APART = 82.0  # lower than where wordings count as near: what we write ourselves stays well clear


class SuiteGuard:
    """Refuses queries that are in a suite or close to one."""

    def __init__(self, suites: Path) -> None:
        files = sorted(suites.glob("*.json"))
        queries = [q["query"] for file in files for q in json.loads(file.read_bytes())["queries"]]
        self._exact = {normalise(query) for query in queries}
        self._masked = sorted({mask_paths(query) for query in queries})

    def allows(self, query: str) -> bool:
        """True when the query is far enough from every suite query."""
        if normalise(query) in self._exact:
            return False
        return find_near(mask_paths(query), self._masked, APART) is None
