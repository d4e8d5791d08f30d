"""What makes any result inconclusive, whatever its numbers say."""

from __future__ import annotations

from stages.core.records import EvalSummary
from stages.core.silence import find_emptiness, find_sameness
from stages.core.words import plural
from stages.report.results import Arm, require_audit
from stages.report.verdict import Match, doubt_origin

MOST_RUNAWAYS = 0.1  # share of a suite; the embedded model, trained fairly, stays below 0.01


def find_flaws(arm: Arm) -> list[str]:
    """The critical findings of the arm's audit, and what its replies show: nothing ends or answers them.

    Raises StageError when the arm was not audited.
    """
    found = [finding.message for finding in require_audit(arm).critical]
    return [f"{arm.label}: {flaw}" for flaw in found + find_odd_replies(arm)]


def find_odd_replies(arm: Arm) -> list[str]:
    """The suites whose replies no working set-up gives: they run on and on, or say nothing."""
    empty = {name: find_emptiness(result.replies) for name, result in arm.suites.items()}
    return find_runaways(arm) + [f"on {name} {what}" for name, what in empty.items() if what]


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
    """What forbids a verdict on the side of the reference, where its measured result decides.

    The same as on the candidate's side; a model that ran here and was never audited is a fault too.
    """
    result = _measured(match)
    if reference is None or result is None:
        return []
    faults = [finding.message for finding in reference.audit.critical] if reference.audit else []
    if lacks_audit(reference, match):
        faults.append("it was not audited, so nobody can say that its set-up was sound")
    return [f"reference, {reference.label}: {fault}" for fault in faults + find_odd_replies(reference)]


def lacks_audit(reference: Arm, match: Match) -> bool:
    """Whether the reference ran here and no audit of its set-up exists."""
    result = _measured(match)
    return reference.audit is None and result is not None and result.engine == "local"


def find_caveats(match: Match) -> list[str]:
    """What a reader has to know of the two: that no audit can look at the set-up behind their replies, or
    that a measured reference was passed over."""
    result = _measured(match)
    caveats = [] if doubt_origin(match) else _tell_unaudited(match.candidate, "the candidate")
    if result is None:
        return caveats + ([match.problem] if match.reference and match.problem else [])
    return caveats + _tell_unaudited(result, "the reference")


def _tell_unaudited(result: EvalSummary, side: str) -> list[str]:
    """What nobody here knows of replies that a server or a file gave."""
    what = {
        "endpoint": "was measured as its server serves it: no audit here knows that server's template, "
        f"parser and stop tokens, nor its model but by name, and a call that it drops counts against {side}.",
        "recorded": "was scored from replies in a file: no audit here knows how they came about.",
    }
    return [f"{result.title}, {side}, {what[result.engine]}"] if result.engine in what else []


def find_self_comparison(arm: Arm, reference: Arm | None, match: Match) -> list[str]:
    """That one model, server or file gave the replies of both: a ratio then says nothing about two models."""
    if reference is None or _measured(match) is None:
        return []
    mine, theirs = arm.suites[match.candidate.suite], reference.suites[match.candidate.suite]
    source = mine.manifest.recipe.inputs.get("model")
    if source is None or source != theirs.manifest.recipe.inputs.get("model"):
        return []
    gave = {"local": "one model", "endpoint": "one model of a server", "recorded": "one file"}
    name, what = arm.options.preset.name, gave[mine.summary.engine]
    return [f"{what} gave the replies of both sides: {name} is compared with itself"]


def find_same_replies(arm: Arm, reference: Arm | None, match: Match) -> list[str]:
    """That candidate and reference replied the same to every query, letter by letter."""
    if reference is None or _measured(match) is None:
        return []
    suite = match.candidate.suite
    mine, theirs = ({r.id: r.text for r in side.suites[suite].replies} for side in (arm, reference))
    if mine != theirs:
        return []
    return [
        f"All {plural(len(mine), 'reply')} of {match.candidate.title} on {suite} are those of the reference, "
        "letter by letter: two models hardly ever write so. See that each has its own replies."
    ]


def find_constants(arm: Arm, reference: Arm | None, match: Match) -> list[str]:
    """The suites on which all of an arm's replies, or the reference's, are one text that says something."""
    found = [(arm.label, name, result) for name, result in sorted(arm.suites.items())]
    if reference is not None and (measured := _measured(match)) is not None:
        found.append((f"reference, {reference.label}", measured.suite, reference.suites[measured.suite]))
    odd = [
        (label, name, find_sameness(result.replies, result.scores))
        for label, name, result in found
        if not find_emptiness(result.replies)  # which is a flaw, and said as one
    ]
    return [f"{label}: on {name} {what}." for label, name, what in odd if what]


def find_unaudited(arm: Arm, suite: str) -> list[str]:
    """Whether the arm's audit saw the queries of a suite, as they were asked; older audits do not say it."""
    audited = arm.audit.suites if arm.audit else {}
    if not audited or audited.get(suite) == arm.suites[suite].summary.suite_fingerprint:
        return []
    return [
        f"{arm.label}: the audit did not look at these queries of {suite}, so nobody checked whether the "
        f"training rows have them: run {arm.options.command('audit')}."
    ]


def _measured(match: Match) -> EvalSummary | None:
    return match.reference if match.reference and match.reference.source == "measured" else None
