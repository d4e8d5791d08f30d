"""What the benchmark of the evaluation asks."""

from __future__ import annotations

from collections import Counter

import pytest

from stages.core.suite import load_suite
from tests.bench.run_eval import list_questions

CATEGORIES = {query.id: query.category for query in load_suite("extended").queries}


@pytest.mark.parametrize("count", [20, 30, 150, 200])
def test_so_many_queries_of_all_kinds(count: int) -> None:
    asked = [question.id for question in list_questions(count)]
    assert len(set(asked)) == count
    kinds = Counter(CATEGORIES[query] for query in asked)
    assert kinds.keys() >= {"typecheck", "ruff_check", "pytest_run", "read_file", "run_command", "concept"}
    if count == 20:
        assert sum(kinds[kind] for kind in ("concept", "comparison", "best_practice")) == 7
