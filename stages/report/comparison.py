"""The candidate beside the reference: quality with intervals, then what each costs."""

from __future__ import annotations

from stages.core.records import EvalSummary, Rate, Timing
from stages.report.cells import NONE, compare_size, compare_speed, number, plain, rate_cell, share_of, table
from stages.report.verdict import Match, rate_ratio

RATES = {
    "tool or direct decided right": "decision",
    "… read leniently": "decision_lenient",
    "tool queries decided right": "tool_queries",
    "direct queries decided right": "direct_queries",
    "right tool called": "right_tool",
    "… read leniently ": "right_tool_lenient",
    "right arguments": "right_arguments",
    "… read leniently  ": "right_arguments_lenient",
    "calls that parse strictly": "clean_calls",
    "runaway replies (hit the token limit)": "runaway",
}


def rate_of(summary: EvalSummary, field: str) -> Rate | None:
    """One of the rates of RATES."""
    rate: Rate | None = getattr(summary, field)
    return rate


def write_comparison(match: Match, small: str, large: str) -> str:
    """The table of quality and cost; a rate is `k/n = percent (95 % interval)`."""
    candidate, reference = match.candidate, match.reference
    heads = ["", f"{small} ({candidate.source})"]
    if reference is None:
        rows = [[name, rate_cell(rate_of(candidate, field))] for name, field in RATES.items()]
        rows += [[name, mine] for name, mine, _, _ in _costs(candidate.timing, None)]
        return f"## {small} alone\n\n{plain(match.problem)}\n\n{table(heads, rows)}"
    heads += [f"{large} ({reference.source})", f"{small} beside {large}"]
    rows = [_rate_row(name, field, candidate, reference) for name, field in RATES.items()]
    rows += [list(row) for row in _costs(candidate.timing, reference.timing)]
    kept = [row for row in rows if row[1] != NONE or row[2] != NONE]
    parts = [
        f"## {small} beside {large}, suite {plain(candidate.suite)}",
        table(heads, kept),
        _explain(match),
    ]
    return "\n\n".join(parts)


def _rate_row(name: str, field: str, candidate: EvalSummary, reference: EvalSummary) -> list[str]:
    mine, theirs = rate_of(candidate, field), rate_of(reference, field)
    ratio = rate_ratio(mine, theirs) if mine and theirs else None
    return [name.strip(), rate_cell(mine), rate_cell(theirs), share_of(ratio, 1.0)]


def _costs(mine: Timing, theirs: Timing | None) -> list[tuple[str, str, str, str]]:
    def row(name: str, field: str, unit: str, digits: int) -> tuple[str, str, str, str]:
        a, b = getattr(mine, field), getattr(theirs, field) if theirs else None
        compare = compare_size if unit == "GB" else compare_speed
        return name, number(a, unit, digits), number(b, unit, digits), compare(a, b)

    return [
        row("time per query", "seconds_per_query", "s", 2),
        row("time to load", "load_seconds", "s", 2),
        row("peak memory", "peak_memory_gb", "GB", 2),
        row("size on disk", "disk_gb", "GB", 2),
    ]


def describe_costs(match: Match) -> str:
    """The costs in one sentence; times only where both come from the same kind of source."""
    if match.reference is None:
        return ""
    query, load, memory, disk = (row[3] for row in _costs(match.candidate.timing, match.reference.timing))
    sizes = f"memory {memory}, disk {disk}"
    if match.candidate.source != match.reference.source:
        return (
            f"Costs beside the reference: {sizes}; times were taken on different machines and do not compare."
        )
    return f"Costs beside the reference: per query {query}, load {load}, {sizes}."


def _explain(match: Match) -> str:
    lines = ["In brackets the 95 % Wilson interval in percent."]
    if match.reference and match.candidate.source != match.reference.source:
        lines.append(
            "The two columns come from different machines: sizes compare, times do not. "
            "The recorded queries had the same kinds and counts but other texts."
        )
    return " ".join(lines)


def write_categories(results: dict[str, EvalSummary]) -> str:
    """Right decisions per category, one column per result."""
    names = list(dict.fromkeys(name for summary in results.values() for name in summary.by_category))
    if not names:
        return ""
    rows = [
        [plain(name), *(rate_cell(summary.by_category.get(name)) for summary in results.values())]
        for name in names
    ]
    return table(["category", *results], rows)
