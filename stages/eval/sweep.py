"""What the outputs of a sweep say together: how far the scores spread, and which queries are unsteady."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev

from pydantic import Field

from stages.core.records import Record, Score, read_lines, write_record
from stages.core.suite import Suite
from stages.core.words import percent, plural
from stages.eval.cells import Cell
from stages.eval.summary import rate

SWEPT = {  # by field of a reading
    "decision": "decision",
    "format": "format",
    "tool": "right tool",
    "arguments": "arguments",
    "code": "code",
    "stop": "stop",
    "whole": "the whole",
}


class Spread(Record):
    """A rate over the draws of one prompt and temperature, each draw a whole suite."""

    mean: float
    deviation: float | None = Field(description="standard deviation between draws; None for a single one")
    lowest: float
    highest: float


class SweepGroup(Record):
    """The draws of one suite, prompt and temperature."""

    suite: str
    prompt: str = Field(description="the name of the text file, own for the preset's")
    temperature: float
    draws: int
    queries: int
    rates: dict[str, Spread] = Field(
        description="by what was judged, read strictly; without what no draw had anything of"
    )
    unsteady: list[str] = Field(description="queries decided right in some draws and wrong in others")


class Sweep(Record):
    """A whole sweep."""

    groups: list[SweepGroup]


def summarize_sweep(place: Path, suites: Sequence[Suite], cells: Sequence[Cell]) -> Sweep:
    """Read the outputs of a sweep's cells, and write `sweep.json` beside them."""
    sweep = Sweep(
        groups=[
            _summarize_group(place, suite, [*draws])
            for suite in suites
            for _, draws in groupby(cells, key=lambda cell: cell.group)
        ]
    )
    write_record(place / "sweep.json", sweep)
    return sweep


def describe_sweep(sweep: Sweep) -> tuple[str, ...]:
    """A line for every group."""
    return tuple(_describe_group(group) for group in sweep.groups)


def _summarize_group(place: Path, suite: Suite, draws: Sequence[Cell]) -> SweepGroup:
    outputs = [read_lines(place / suite.name / cell.slug / "scores.jsonl", Score) for cell in draws]
    rates = {}
    for field in SWEPT:
        found = [rate(getattr(score.strict, field) for score in scores) for scores in outputs]
        values = [one.value for one in found if one is not None]
        if values:
            rates[field] = spread_of(values)
    right: dict[str, set[bool]] = {}
    for score in (score for scores in outputs for score in scores):
        right.setdefault(score.id, set()).add(score.strict.decision)
    return SweepGroup(
        suite=suite.name,
        prompt=draws[0].prompt,
        temperature=draws[0].sampling.temperature,
        draws=len(draws),
        queries=len(suite.queries),
        rates=rates,
        unsteady=[query for query, outcomes in right.items() if len(outcomes) > 1],
    )


def spread_of(values: Sequence[float]) -> Spread:
    """How a rate spreads over its draws."""
    return Spread(
        mean=round(fmean(values), 4),
        deviation=round(stdev(values), 4) if len(values) > 1 else None,
        lowest=min(values),
        highest=max(values),
    )


def _describe_group(group: SweepGroup) -> str:
    words = []
    for field, spread in group.rates.items():
        range_ = (
            "" if spread.deviation is None else f" ({percent(spread.lowest)}% to {percent(spread.highest)}%)"
        )
        words.append(f"{SWEPT[field]} {percent(spread.mean)}%{range_}")
    unsteady = f"; {len(group.unsteady)} of {plural(group.queries, 'query')} unsteady"
    return (
        f"{group.suite}, prompt {group.prompt}, temperature {group.temperature:g}, "
        f"{plural(group.draws, 'draw')}: {', '.join(words)}{unsteady if group.draws > 1 else ''}"
    )
