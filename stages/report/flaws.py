"""What makes any result inconclusive, whatever its numbers say."""

from __future__ import annotations

from stages.core.words import plural
from stages.report.results import Arm, require_audit
from stages.report.verdict import Match

MOST_RUNAWAYS = 0.1  # share of a suite; the embedded model, trained fairly, stays below 0.01


def find_flaws(arm: Arm) -> list[str]:
    """The critical findings of the arm's audit, and replies that nothing ends.

    Raises StageError when the arm was not audited.
    """
    flaws = [f"{arm.label}: {finding.message}" for finding in require_audit(arm).critical]
    return flaws + [f"{arm.label}: {problem}" for problem in find_runaways(arm)]


def find_runaways(arm: Arm) -> list[str]:
    """The suites on which more replies ran into the token limit than a working set-up lets."""
    rates = {name: result.summary.runaway for name, result in arm.suites.items()}
    return [
        f"{rate.k} of {plural(rate.n, 'reply')} on {name} ran into the token limit{_limit(arm, name)}: "
        "nothing ends them, or --max-tokens is too low"
        for name, rate in rates.items()
        if rate is not None and rate.value > MOST_RUNAWAYS
    ]


def _limit(arm: Arm, suite: str) -> str:
    tokens = arm.suites[suite].manifest.recipe.settings.get("max_tokens")
    return "" if tokens is None else f" of {tokens}"


def find_faults(reference: Arm | None, match: Match) -> list[str]:
    """The critical findings of the reference's own audit, where its measured result decides."""
    measured = match.reference is not None and match.reference.source == "measured"
    if not reference or not reference.audit or not measured:
        return []
    return [f"reference, {reference.label}: {finding.message}" for finding in reference.audit.critical]
