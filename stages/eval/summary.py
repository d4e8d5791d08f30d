"""The scores of a suite as rates: each question apart, strictly and leniently, by category and tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

from stages.core.cli import Options
from stages.core.records import (
    AnswerRates,
    Cause,
    EvalSummary,
    Parsed,
    Rate,
    Rates,
    RawReply,
    Score,
    Timing,
    read_lines,
)
from stages.core.silence import find_silence
from stages.core.suite import Suite
from stages.core.words import name_some, percent
from stages.eval.engines import EngineName
from stages.eval.score import SCORER_VERSION


def summarize_scores(
    suite: Suite, scores: Sequence[Score], options: Options, engine: EngineName, timing: Timing
) -> EvalSummary:
    """The result of one model and arm on a suite."""
    wanting = [score for score in scores if score.kind == "tool"]
    return EvalSummary(
        scorer_version=SCORER_VERSION,
        model=options.preset.name,
        title=options.preset.title,
        arm=options.arm,
        seed=options.seed,
        suite=suite.name,
        suite_version=suite.version,
        suite_fingerprint=suite.fingerprint,
        dialect=options.parser,
        engine=engine,
        tool_or_direct=_count(s.strict.decision for s in scores),
        tool_queries=rate(s.strict.decision for s in scores if s.kind == "tool"),
        direct_queries=rate(s.strict.decision for s in scores if s.kind == "direct"),
        strict=rate_readings([s.strict for s in scores]),
        lenient=rate_readings([s.lenient for s in scores]),
        runaway=rate(s.runaway for s in scores),
        answers=_rate_answers(scores),
        causes=dict(Counter(s.cause for s in scores if s.cause is not None)),
        by_category=rates_by(scores, _category),
        by_tool=rates_by(wanting, _tools),
        by_category_lenient=rates_by(scores, _category, lenient=True),
        by_tool_lenient=rates_by(wanting, _tools, lenient=True),
        timing=timing,
    )


def describe_summary(summary: EvalSummary) -> str:
    """A summary as a line: what was right, and the time of a query."""
    strict = summary.strict
    shown: dict[str, Rate | None] = {"tool or direct": summary.tool_or_direct}
    if strict is not None:
        shown |= {"format": strict.format, "tool": strict.tool, "arguments": strict.arguments}
        shown |= {"code": strict.code, "stop": strict.stop, "whole": strict.whole}
    if summary.answers is not None:
        shown["answers on terms"] = summary.answers.on_terms
    words = [f"{name} {r.k}/{r.n} ({percent(r.value)}%)" for name, r in shown.items() if r is not None]
    took = summary.timing.seconds_per_query
    return f"{summary.suite}: {', '.join(words)}" + (f"; {took:.2f} s a query" if took is not None else "")


def describe_causes(summary: EvalSummary) -> tuple[str, ...]:
    """How many replies failed, by what went wrong first, in a line; none where none failed."""
    counts = [f"{n} {cause}" for cause in get_args(Cause) if (n := summary.causes.get(cause))]
    return (f"  failures: {', '.join(counts)}",) if counts else ()


def describe_silence(place: Path, outputs: Iterable[Path]) -> tuple[str, ...]:
    """A line of warning where the replies of outputs look as if nothing had answered; alike ones share it."""
    odd: dict[str, list[str]] = {}
    for folder in outputs:
        replies = read_lines(folder / "replies.jsonl", RawReply)
        if found := find_silence(replies, read_lines(folder / "scores.jsonl", Score)):
            odd.setdefault(found, []).append(folder.relative_to(place).as_posix())
    return tuple(f"WARNING: {name_some(names, 3)}: {found}" for found, names in odd.items())


def rate(outcomes: Iterable[bool | None]) -> Rate | None:
    """How many of the outcomes that were scored are true; None when none was scored."""
    scored = [outcome for outcome in outcomes if outcome is not None]
    return Rate(k=sum(scored), n=len(scored)) if scored else None


def rate_readings(readings: Sequence[Parsed]) -> Rates:
    """How many readings are right in each respect; there is at least one."""
    return Rates(
        decision=_count(r.decision for r in readings),
        format=rate(r.format for r in readings),
        tool=rate(r.tool for r in readings),
        arguments=rate(r.arguments for r in readings),
        code=rate(r.code for r in readings),
        printed=rate(r.printed for r in readings),
        fields=rate(r.fields for r in readings),
        stop=rate(r.stop for r in readings),
        whole=rate(r.whole for r in readings),
    )


def _category(score: Score) -> Sequence[str]:
    return [score.category]


def _tools(score: Score) -> Sequence[str]:
    return score.tools


def rates_by(
    scores: Sequence[Score], names: Callable[[Score], Sequence[str]], *, lenient: bool = False
) -> dict[str, Rates]:
    """The rates of the scores that share a name, by that name, of one of the readings."""
    groups: dict[str, list[Parsed]] = {}
    for score in scores:
        for name in names(score):
            groups.setdefault(name, []).append(score.lenient if lenient else score.strict)
    return {name: rate_readings(group) for name, group in sorted(groups.items())}


def _rate_answers(scores: Sequence[Score]) -> AnswerRates | None:
    answers = [score.answer for score in scores if score.answer is not None]
    if not answers:
        return None
    return AnswerRates(
        not_empty=_count(a.not_empty for a in answers),
        on_terms=rate(a.on_terms for a in answers),
        not_repeating=_count(a.not_repeating for a in answers),
        no_call=_count(a.no_call for a in answers),
    )


def _count(outcomes: Iterable[bool]) -> Rate:
    counted = list(outcomes)
    return Rate(k=sum(counted), n=len(counted))
