"""The first screen of a report: the verdict, why, what to do next, and the decision matrix."""

from __future__ import annotations

from collections.abc import Sequence

from stages.core.records import Answer, Verdict
from stages.core.words import plural
from stages.report.cells import NONE, inline_code, plain, rate_cell, share_of, table
from stages.report.steps import Steps
from stages.report.verdict import name_elsewhere


def write_verdict(verdict: Verdict, asides: Sequence[str], small: str, large: str, steps: Steps) -> str:
    """The verdict in a few lines; `small` and `large` are the two models' names."""
    headline = name_answer(verdict.supported_answer, large)
    because = plain(explain_answer(verdict))
    lines = [f"**Verdict: {headline}**{because}", "", _write_point(verdict, small, large)]
    lines += [line for aside in asides if aside for line in ("", aside)]
    lines += ["", "In brackets behind a rate: its 95 % Wilson interval in percent."]
    lines += ["", "Why:", "", *(f"- {plain(reason)}" for reason in verdict.reasons)]
    lines += ["", f"Next: {_next_step(verdict, large, steps)}"]
    return "\n".join(lines)


def name_answer(answer: Answer, large: str) -> str:
    """An answer as the headline has it."""
    named = {"stay with large": f"stay with large ({large})", "inconclusive": "INCONCLUSIVE"}
    return named.get(answer, answer)


def explain_answer(verdict: Verdict) -> str:
    """In brackets, behind an answer, why there is none; else whose replies came from where no audit looks."""
    if verdict.cause:
        return f" ({verdict.cause})"
    origins = {"candidate": verdict.candidate_origin, "reference": verdict.reference_origin}
    elsewhere = [f"{side}: {o}" for side, o in origins.items() if o not in (None, "measured", "recorded")]
    return f" ({'; '.join(elsewhere)}; no audit knows how it was set up)" if elsewhere else ""


def describe_rule(verdict: Verdict, large: str) -> str:
    """The rule's answer with the ratio and its interval, as one line for a terminal."""
    decision, reference = verdict.candidate_decision, verdict.reference_decision
    said = name_elsewhere(verdict.candidate_origin)
    mine = f"{decision.k} of {plural(decision.n, 'query')} of {verdict.suite} decided right{said}"
    if reference is None or verdict.point_answer is None:
        return f"the rule gives no answer: {mine}, and no ratio to {large} can be formed"
    share = share_of(decision.value, reference.value)
    return (
        f"the rule's answer to the point estimate: {name_answer(verdict.point_answer, large)}; {mine}, "
        f"{share} of {large}, 95 % interval {_interval(verdict)}"
    )


def write_matrix(verdict: Verdict, large: str) -> str:
    """The rule as a table, with the rows that apply marked."""
    rows: list[tuple[str, Answer]] = [
        ("90 % or more", "use small"),
        ("70 % up to 90 %", "split"),
        ("less than 70 %", "stay with large"),
        (
            "any, with a flawed or unaudited set-up or an interval that crosses a limit",
            "inconclusive",
        ),
    ]
    cells = [
        [band, name_answer(answer, large), _mark_point(verdict, answer), _mark_supported(verdict, answer)]
        for band, answer in rows
    ]
    heads = [
        f"Right decisions, as a share of {large}'s",
        "Answer",
        "Point estimate",
        "What the evidence supports",
    ]
    return "## Decision matrix\n\n" + table(heads, cells)


def _mark_point(verdict: Verdict, answer: Answer) -> str:
    if answer != verdict.point_answer or verdict.ratio is None:
        return ""
    return f"**← {100 * verdict.ratio:.1f} %**"


def _mark_supported(verdict: Verdict, answer: Answer) -> str:
    if answer != verdict.supported_answer:
        return ""
    return f"**← this one: {verdict.cause}**" if verdict.cause else "**← this one**"


def _write_point(verdict: Verdict, small: str, large: str) -> str:
    decision, reference = verdict.candidate_decision, verdict.reference_decision
    said = plain(name_elsewhere(verdict.candidate_origin))
    mine = f"On suite {plain(verdict.suite)}, {small}{said} decides {rate_cell(decision)} right"
    if reference is None or verdict.ratio is None or verdict.point_answer is None:
        return f"The rule gives no answer: no ratio to {large} can be formed. {mine}."
    plainly = f", so stay with {large}" if verdict.point_answer == "stay with large" else ""
    return (
        f"The rule's answer to the point estimate: **{name_answer(verdict.point_answer, large)}**{plainly}. "
        f"{mine}, {large} ({plain(str(verdict.reference_origin))}) {rate_cell(reference)}: "
        f"**{share_of(decision.value, reference.value)} of {large}**, 95 % interval {_interval(verdict)}."
    )


def _interval(verdict: Verdict) -> str:
    high = NONE if verdict.ratio_high is None else f"{100 * verdict.ratio_high:.0f} %"
    return f"{100 * (verdict.ratio_low or 0):.0f} % to {high}"


def _next_step(verdict: Verdict, large: str, steps: Steps) -> str:
    if verdict.cause == "flawed set-up" and verdict.arm != "fair":
        return (
            f"this arm lacks fixes; run the one that has all five, {inline_code(steps.repeat)}: "
            "no number from a flawed set-up decides."
        )
    if verdict.cause == "flawed set-up":
        return (
            f"repair what is listed above, in the options too, and run {inline_code(steps.repeat)}; "
            "no number from this set-up decides."
        )
    if verdict.cause == "unaudited set-up":
        return (
            f"{inline_code(steps.own)} measures the model that was audited, then {inline_code(steps.renew)} "
            "writes this report anew. What the other set-up does to the replies shows `--compare`, where "
            "both were kept with `--out`."
        )
    if verdict.cause == "no comparable reference":
        return _measure(steps, large, "with a set-up that works")
    if verdict.cause == "too few queries":
        if verdict.queries_needed is None:
            return f"use a larger suite or a better candidate; {verdict.queries_note}."
        enough = f"about {verdict.queries_needed} queries to each model would decide ({verdict.queries_note})"
        if max(steps.unmeasured.values(), default=0) >= verdict.queries_needed:
            return f"{enough}, and there are as many here: {_measure(steps, large)}"
        return f"{enough}: write a suite of that size, put it to both with `--suites`, and report again."
    return {
        "use small": "put the small model to work, and keep the suite as a regression test.",
        "split": f"route the categories that the small model decides well to it and the rest to {large}; "
        "see the categories below.",
        "stay with large": f"stay with {large}; another candidate or more training data may be worth a run.",
    }[verdict.supported_answer]


def _measure(steps: Steps, large: str, how: str = "") -> str:
    """To measure the reference, and where the result then shows."""
    suites = " and ".join(f"{plain(name)} ({plural(n, 'query')})" for name, n in steps.unmeasured.items())
    what = ", ".join(part for part in (f"measure {large} on {suites or 'the same suites'}", how) if part)
    if not steps.measure:
        return f"{what}; {large} is this model itself: name another with `--reference`."
    return f"{what}: {inline_code(steps.measure)}, then {inline_code(steps.renew)} writes this report anew."
