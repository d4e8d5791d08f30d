"""Two arms on the same queries: where they differ, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stages.core.records import Score
from stages.report.results import SuiteResult
from stages.report.verdict import refuse_comparison


@dataclass(frozen=True)
class Pairing:
    """The discordant queries of two arms."""

    only_first: int
    only_second: int

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test: the binomial test of the discordant queries at 1/2."""
        total, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail = sum(math.comb(total, i) for i in range(fewer + 1))
        return min(1.0, tail / (1 << max(total - 1, 0)))


def refuse_results(first: SuiteResult, second: SuiteResult) -> str:
    """Why two measured results may not be compared, or nothing: code is judged by its run."""
    if problem := refuse_comparison(first.summary, second.summary):
        return problem
    if first.sandbox != second.sandbox and first.sandbox and second.sandbox:
        versions = f"their code ran in different sandboxes: {first.sandbox} against {second.sandbox}"
        return f"{versions} (nox -s eval of both scores their kept replies anew)"
    return ""


def refuse_pairing(first: SuiteResult, second: SuiteResult) -> str:
    """Why two results cannot be paired query by query, or nothing."""
    if problem := refuse_results(first, second):
        return problem
    if first.summary.engine != second.summary.engine:
        return f"{first.origin} against {second.origin}, so they differ in more than their fixes"
    if {s.id for s in first.scores} != {s.id for s in second.scores}:
        return "different queries"
    return ""


def pair_scores(
    first: Sequence[Score], second: Sequence[Score], right: Callable[[Score], bool | None]
) -> Pairing:
    """Count the queries that only one of two arms got right; unscored ones are left out."""
    outcomes = {score.id: right(score) for score in first}
    pairs = [(outcomes[score.id], right(score)) for score in second]
    scored = [(a, b) for a, b in pairs if a is not None and b is not None]
    return Pairing(sum(a and not b for a, b in scored), sum(b and not a for a, b in scored))
