"""Results side by side: quality with intervals, then what each costs."""

from __future__ import annotations

from collections.abc import Mapping

from stages.core.records import EvalSummary, Rate, Timing
from stages.report.cells import (
    NONE,
    compare_size,
    compare_speed,
    number,
    plain,
    rate_cell,
    ratio_cell,
    table,
)
from stages.report.verdict import Match

RATES = {  # by field of a summary
    "decision": "tool or direct decided right",
    "decision_lenient": "… read leniently",
    "tool_queries": "tool queries decided right",
    "direct_queries": "direct queries decided right",
    "right_tool": "right tool called",
    "right_tool_lenient": "… read leniently",
    "right_arguments": "right arguments",
    "right_arguments_lenient": "… read leniently",
    "clean_calls": "calls that parse strictly",
    "runaway": "runaway replies (hit the token limit)",
}
COSTS = {  # by field of a timing: name, unit, and whether it depends on the machine
    "seconds_per_query": ("time per query", "s", True),
    "seconds_median": ("… the median query's", "s", True),
    "seconds_p95": ("… that 95 % keep below", "s", True),
    "first_token_seconds": ("time to the first token, alone", "s", True),
    "load_seconds": ("time to load", "s", True),
    "peak_memory_gb": ("peak memory", "GB", True),
    "disk_gb": ("size on disk", "GB", False),
}
TOLD = ("seconds_per_query", "load_seconds", "peak_memory_gb", "disk_gb")  # in a sentence


def write_results(columns: Mapping[str, EvalSummary], match: Match | None, beside: str) -> str:
    """The table of quality and cost, one column per result, and what to know of it.

    `match` says which two of the columns are compared in a last one, titled `beside`.
    """
    compared = match if match and match.reference else None
    rows = [
        [name, *(rate_cell(_rate(s, field)) for s in columns.values()), _rate_beside(field, compared)]
        for field, name in RATES.items()
    ]
    rows += [
        [
            name,
            *(number(getattr(s.timing, field), unit) for s in columns.values()),
            cost_beside(field, compared),
        ]
        for field, (name, unit, _) in COSTS.items()
    ]
    rows.append(["tokens a second", *(number(s.timing.tokens_per_second) for s in columns.values()), NONE])
    rows.append(["tokens generated", *(_count(s.timing.generated_tokens) for s in columns.values()), NONE])
    rows.append(["… by runaway replies", *(_runaway_costs(s.timing) for s in columns.values()), NONE])
    rows.append(["strict parser", *(_parser(s) for s in columns.values()), NONE])
    kept = [row for row in rows if set(row[1:]) != {NONE}]
    heads = ["", *columns, *([beside] if compared else [])]
    return "\n\n".join([table(heads, [row[: len(heads)] for row in kept]), *_explain(compared)])


def cost_beside(field: str, match: Match | None) -> str:
    """A cost of the candidate in words beside the reference's; a dash where the two do not compare."""
    _, unit, by_machine = COSTS[field]
    if match is None or match.reference is None or (by_machine and not match.same_machine):
        return NONE
    mine, theirs = getattr(match.candidate.timing, field), getattr(match.reference.timing, field)
    return compare_size(mine, theirs) if unit == "GB" else compare_speed(mine, theirs)


def describe_costs(match: Match) -> str:
    """The costs in one sentence; times and memory only where both come from the same machine."""
    if match.reference is None:
        return ""
    query, load, memory, disk = (cost_beside(field, match) for field in TOLD)
    if match.same_machine:
        return f"Costs beside the reference: per query {query}, load {load}, memory {memory}, disk {disk}."
    return (
        f"Costs beside the reference: disk {disk}; times and memory come from different machines and do "
        "not compare."
    )


def write_categories(columns: Mapping[str, EvalSummary]) -> str:
    """Right decisions per category, one column per result; nothing where there are no categories."""
    names = list(dict.fromkeys(name for summary in columns.values() for name in summary.by_category))
    if not names:
        return ""
    rows = [
        [plain(name), *(rate_cell(summary.by_category.get(name)) for summary in columns.values())]
        for name in names
    ]
    return f"Tool or direct decided right, by category:\n\n{table(['category', *columns], rows)}"


def _rate(summary: EvalSummary, field: str) -> Rate | None:
    rate: Rate | None = getattr(summary, field)
    return rate


def _rate_beside(field: str, match: Match | None) -> str:
    if match is None or match.reference is None:
        return NONE
    return ratio_cell(_rate(match.candidate, field), _rate(match.reference, field))


def _explain(match: Match | None) -> list[str]:
    if match is None:
        return []
    lines = ["The last column is the ratio of the two rates with its 95 % score interval."]
    if not match.same_machine:
        lines.append("The two come from different machines: times and memory do not compare.")
    return [" ".join(lines)]


def _runaway_costs(timing: Timing) -> str:
    """`31 %, 40 % of the time`."""
    if timing.runaway_tokens is None or timing.runaway_seconds is None:
        return NONE
    return f"{100 * timing.runaway_tokens:.0f} %, {100 * timing.runaway_seconds:.0f} % of the time"


def _parser(summary: EvalSummary) -> str:
    """Who reads the calls strictly; a server's parser has read those that it knows before us."""
    return (
        f"the server's, then {plain(summary.dialect)}"
        if summary.engine == "endpoint"
        else plain(summary.dialect)
    )


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value}"
