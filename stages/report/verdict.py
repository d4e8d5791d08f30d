"""The rule, and how much of its answer the evidence supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from stages.core.records import Answer, Doubt, EvalSummary, Rate, Verdict
from stages.core.words import plural
from stages.report.intervals import Count, Interval, ratio_interval

USE_SMALL, SPLIT = 0.90, 0.70  # the rule of the first experiment: limits that belong to the upper band
MOST_QUERIES = 100_000  # beyond this no suite will be written


@dataclass(frozen=True)
class Match:
    """A candidate's result beside the reference's on one suite, or why there is no comparison.

    Beside a recorded reference the problem is that of a measured one that was passed over.
    """

    candidate: EvalSummary
    reference: EvalSummary | None
    problem: str = ""
    same_machine: bool = False
    """Whether times and memory of the two compare."""
    candidate_origin: str = "measured"
    """Where the candidate's replies come from, in a few words."""
    reference_origin: str = "measured"
    """The same of the reference."""


def name_elsewhere(origin: str | None) -> str:
    """An origin in brackets, to go behind a name; nothing for what was measured here, as is usual."""
    return "" if origin in (None, "measured") else f" ({origin})"


def apply_rule(ratio: float) -> Answer:
    """The answer of the decision matrix to a ratio of decision rates."""
    if ratio >= USE_SMALL:
        return "use small"
    return "split" if ratio >= SPLIT else "stay with large"


def rate_ratio(candidate: Rate, reference: Rate) -> float | None:
    """Candidate over reference, rounded once, so that 18/20 to 20/20 is 0.9; None for a rate of 0."""
    return (candidate.k * reference.n) / (candidate.n * reference.k) if reference.k else None


def refuse_comparison(candidate: EvalSummary, reference: EvalSummary) -> str:
    """Why two results may not be compared, or nothing.

    A recorded reference has the scorer of its publishers; it holds decision rates only, and these
    mean the same under every version of ours.
    """
    if candidate.suite != reference.suite:
        return f"suite {candidate.suite} against {reference.suite}"
    if candidate.suite_version != reference.suite_version:
        return f"suite {candidate.suite} version {candidate.suite_version} against {reference.suite_version}"
    if candidate.suite_fingerprint != reference.suite_fingerprint:
        return f"two suites are named {candidate.suite}: their queries or accepted calls differ"
    if candidate.source == reference.source and candidate.scorer_version != reference.scorer_version:
        versions = f"scorer version {candidate.scorer_version} against {reference.scorer_version}"
        return f"{versions} (nox -s eval of both scores their kept replies anew)"
    return ""


def choose_match(matches: Sequence[Match]) -> Match:
    """The comparison that decides: of those with a reference, the one with the most queries."""
    return max(
        matches, key=lambda m: (m.reference is not None, m.candidate.tool_or_direct.n, m.candidate.suite)
    )


@dataclass
class _Weighed:
    """What the evidence supports, and why."""

    answer: Answer = "inconclusive"
    cause: Doubt | None = None
    reasons: list[str] = field(default_factory=list)
    needed: int | None = None
    note: str = ""


def reach_verdict(
    report: str, match: Match, flaws: Sequence[str], seed: int | None, caveats: Sequence[str] = ()
) -> Verdict:
    """The rule's answer to the point estimate, and the answer that the evidence supports.

    `flaws` are the findings that make any result inconclusive, whatever the numbers say; `caveats` are
    only told.
    """
    candidate, reference = match.candidate, match.reference
    limits, weighed = _limits(match), _weigh(match, flaws)
    ratio = rate_ratio(candidate.tool_or_direct, reference.tool_or_direct) if reference else None
    return Verdict(
        report=report,
        candidate=candidate.title,
        arm=candidate.arm,
        seed=seed,
        reference=reference.title if reference else None,
        reference_source=reference.source if reference else None,
        suite=candidate.suite,
        suite_version=candidate.suite_version,
        suite_fingerprint=candidate.suite_fingerprint,
        candidate_decision=candidate.tool_or_direct,
        candidate_origin=match.candidate_origin,
        reference_decision=reference.tool_or_direct if reference else None,
        reference_origin=match.reference_origin if reference else None,
        ratio=ratio,
        ratio_low=limits.low if reference else None,
        ratio_high=limits.high if reference and math.isfinite(limits.high) else None,
        point_answer=None if ratio is None else apply_rule(ratio),
        supported_answer=weighed.answer,
        cause=weighed.cause,
        reasons=[*weighed.reasons, *caveats],
        queries_needed=weighed.needed,
        queries_note=weighed.note,
    )


def _weigh(match: Match, flaws: Sequence[str]) -> _Weighed:
    """Numbers first, then what nobody audited, then the flaws, which outweigh both."""
    candidate, reference = match.candidate, match.reference
    if reference is None:
        weighed = _Weighed(cause="no comparable reference", reasons=[match.problem])
    elif reference.tool_or_direct.k == 0:
        useless = f"{reference.title} decided no query right: that is no reference to compare with."
        weighed = _Weighed(cause="no comparable reference", reasons=[useless])
    elif answer := _one_band(limits := _limits(match)):
        weighed = _Weighed(
            answer, reasons=[f"The whole 95 % interval of the ratio lies in the band of {answer!r}."]
        )
    else:
        needed, note = plan_queries(candidate.tool_or_direct, reference.tool_or_direct)
        weighed = _Weighed(cause="too few queries", reasons=[_spanned(limits)], needed=needed, note=note)
    if doubt := doubt_origin(match):
        _outweigh(weighed, [doubt], "unaudited set-up")
    if flaws:
        _outweigh(weighed, flaws, "flawed set-up")
    if reference is not None and reference.source != candidate.source:
        asked = plural(reference.tool_or_direct.n, "query")
        weighed.reasons.append(
            f"{reference.title} is recorded, not measured here: its {asked} had the same kinds and "
            "counts, not the same texts."
        )
    return weighed


def _outweigh(weighed: _Weighed, doubts: Sequence[str], cause: Doubt) -> None:
    """Let doubts about the set-up count for more than the numbers."""
    aside = f"The interval alone would support {weighed.answer!r}, and says nothing about a sound set-up."
    weighed.reasons = [*doubts, *(weighed.reasons if weighed.cause else [aside])]
    weighed.answer, weighed.cause = "inconclusive", cause


def doubt_origin(match: Match) -> str:
    """Why no answer follows from the candidate's rate, for the set-up that gave it is not the audited one.

    An arm's audit judges what the stages made and ran here. A server's template, parser or stop tokens can
    spoil a good model's replies, and hardly mend a bad one's: so only an answer that needs good replies holds
    for what a server served. A file of replies holds nothing that ties it to the arm's model, or to any.
    """
    candidate, reference = match.candidate, match.reference
    if candidate.engine == "local" or reference is None or not reference.tool_or_direct.k:
        return ""  # without a ratio no answer follows anyway
    if candidate.engine == "recorded":
        return (
            f"{candidate.title}: {match.candidate_origin}. Nobody here saw how they were made: by which "
            "model, with which prompt, tools and sampling. The audit is about the model that was trained "
            "here, and no answer about that one follows from them."
        )
    ratio = rate_ratio(candidate.tool_or_direct, reference.tool_or_direct)
    if ratio is not None and apply_rule(ratio) == "use small":
        return ""
    return (
        f"{candidate.title}, {match.candidate_origin}, stays below 'use small', and so does a good model "
        "behind a server that drops the tools, or has another template, parser or stop tokens: the audit is "
        "about the set-up here and not about that server's."
    )


def plan_queries(candidate: Rate, reference: Rate) -> tuple[int | None, str]:
    """How many queries put to each model would decide, should both rates stay as observed."""
    method = "the 95 % score interval of the ratio at the observed rates, the same number put to each model"
    if rate_ratio(candidate, reference) in (USE_SMALL, SPLIT):
        return None, "the ratio lies on a limit of the rule: at these rates no number of queries decides"
    if not _decides(candidate, reference, MOST_QUERIES):
        return None, f"more than {MOST_QUERIES} queries ({method})"
    few, enough = 0, MOST_QUERIES
    while enough - few > 1:
        middle = (few + enough) // 2
        if _decides(candidate, reference, middle):
            enough = middle
        else:
            few = middle
    return enough, f"estimate: {method}"


def _decides(candidate: Rate, reference: Rate, queries: int) -> bool:
    counts = (Count(rate.k * queries / rate.n, queries) for rate in (candidate, reference))
    return _one_band(ratio_interval(*counts)) is not None


def _limits(match: Match) -> Interval:
    if match.reference is None:
        return Interval(0.0, math.inf)
    return ratio_interval(Count.of(match.candidate.tool_or_direct), Count.of(match.reference.tool_or_direct))


def _one_band(limits: Interval) -> Answer | None:
    """The answer that holds for every ratio of the interval, if there is one."""
    low, high = apply_rule(limits.low), apply_rule(limits.high)
    return low if low == high else None


def _spanned(limits: Interval) -> str:
    low, high = apply_rule(limits.low), apply_rule(limits.high)
    return f"Too few queries: the 95 % interval of the ratio reaches from {low!r} to {high!r}."
