"""When two queries count as the same: equal once normalised, or near-duplicates apart from paths."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rapidfuzz import fuzz, process

NEAR = 82.0  # rapidfuzz token_sort_ratio, 0 to 100
_PATH = re.compile(r"[\w.*-]*/[\w./*-]*|\b[\w-]+\.(?:py|md|toml|txt|ini|json|cfg|yml|yaml)\b")


def normalise(query: str) -> str:
    """Lower case, no punctuation, single spaces. Paths keep their letters."""
    return " ".join(re.sub(r"[^\w\s]", " ", query.lower()).split())


def mask(query: str) -> str:
    """The wording alone: every path is one and the same word."""
    return normalise(_PATH.sub("pathword", query))


class SuiteGuard:
    """Refuses queries that are in a suite or close to one."""

    def __init__(self, suites: Path) -> None:
        files = sorted(suites.glob("*.json"))
        queries = [q["query"] for file in files for q in json.loads(file.read_bytes())["queries"]]
        self._exact = {normalise(query) for query in queries}
        self._masked = sorted({mask(query) for query in queries})

    def allows(self, query: str) -> bool:
        """True when the query is far enough from every suite query."""
        if normalise(query) in self._exact:
            return False
        near = process.extractOne(mask(query), self._masked, scorer=fuzz.token_sort_ratio, score_cutoff=NEAR)
        return near is None
