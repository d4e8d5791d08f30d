"""Results side by side: quality with intervals, then what each costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from stages.core.records import Cause, EvalSummary, Rate, Rates, Timing
from stages.core.words import plural
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

RATES = {  # by path in a summary
    "tool_or_direct": "tool-or-direct accuracy",
    "lenient.decision": "… read leniently, where an attempt at a call counts",
    "tool_queries": "tool queries decided right",
    "direct_queries": "direct queries decided right",
    "strict.format": "calls well formed",
    "lenient.format": "… read leniently",
    "strict.tool": "right tool called",
    "lenient.tool": "… read leniently",
    "strict.arguments": "right arguments",
    "lenient.arguments": "… read leniently",
    "strict.code": "code that ran well",
    "lenient.code": "… read leniently",
    "strict.printed": "code that printed something",
    "strict.fields": "code that read only fields there are",
    "strict.stop": "ended by itself",
    "lenient.stop": "… or went on behind a call",
    "strict.whole": "the whole right (of a direct answer its form)",
    "lenient.whole": "… read leniently",
    "runaway": "runaway replies (hit the token limit)",
    "answers.not_empty": "direct answers that say something",
    "answers.on_terms": "… on the question's terms",
    "answers.not_repeating": "… without repeating themselves",
    "answers.no_call": "… without a call",
}
WHOLE = (
    "The whole of a direct query is right when the reply makes no call, ends by itself, says something and "
    "does not repeat itself. Whether the answer is true or on the question's terms is no part of it."
)
CATEGORY_RATES = {  # by what is said of it: the groups of a summary, and the rate
    "tool or direct decided right (read strictly)": ("by_category", "decision"),
    "tool or direct decided right (read leniently)": ("by_category_lenient", "decision"),
    "the whole right (read strictly)": ("by_category", "whole"),
    "the whole right (read leniently)": ("by_category_lenient", "whole"),
}
TOOL_RATES = {
    "the whole right (read strictly)": ("by_tool", "whole"),
    "the whole right (read leniently)": ("by_tool_lenient", "whole"),
}
MOST_TOOLS = 20  # rows of the table by tool; suites with tools of their own may have hundreds
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
    """Right decisions and wholes per category, one column per result; nothing without categories."""
    return _write_rates(columns, CATEGORY_RATES, "category")


def write_tools(columns: Mapping[str, EvalSummary]) -> str:
    """The whole per function that is wanted, the most wanted ones; nothing where categories say it all."""
    if all(summary.by_tool.keys() <= summary.by_category.keys() for summary in columns.values()):
        return ""
    wanted = Counter[str]()
    for summary in columns.values():
        for name, rates in summary.by_tool.items():
            wanted[name] = max(wanted[name], rates.decision.n)
    shown = [name for name, _ in wanted.most_common(MOST_TOOLS)]
    more = len(wanted) - len(shown)
    rest = f" ({plural(more, 'tool')} wanted less often left out)" if more else ""
    return _write_rates(columns, TOOL_RATES, "tool", shown, rest)


def write_causes(columns: Mapping[str, EvalSummary]) -> str:
    """What went wrong first in the failed replies, one column per measured result."""
    measured = {name: summary for name, summary in columns.items() if summary.strict is not None}
    if not any(summary.causes for summary in measured.values()):
        return ""
    rows = [
        [cause, *(str(summary.causes.get(cause, 0)) for summary in measured.values())]
        for cause in get_args(Cause)
        if any(summary.causes.get(cause) for summary in measured.values())
    ]
    failed = [f"{sum(s.causes.values())} of {s.tool_or_direct.n}" for s in measured.values()]
    rows.append(["all failed replies", *failed])
    return f"What went wrong first, read strictly:\n\n{table(['', *measured], rows)}"


def _write_rates(
    columns: Mapping[str, EvalSummary],
    rates: Mapping[str, tuple[str, str]],
    head: str,
    names: Sequence[str] | None = None,
    rest: str = "",
) -> str:
    """A table for every rate in groups; rates that are the same in all results share one."""
    titles: dict[str, list[str]] = {}
    for title, (groups, field) in rates.items():
        if shown := _write_groups(columns, groups, field, head, names):
            titles.setdefault(shown, []).append(title)
    return "\n\n".join(f"By {head}{rest}, {', '.join(same)}:\n\n{shown}" for shown, same in titles.items())


def _write_groups(
    columns: Mapping[str, EvalSummary], groups: str, field: str, head: str, names: Sequence[str] | None = None
) -> str:
    """One rate of every group, one column per result; nothing where no result has it."""
    found: list[dict[str, Rates]] = [getattr(summary, groups) for summary in columns.values()]
    names = names if names is not None else list(dict.fromkeys(name for rates in found for name in rates))
    rows = [
        [plain(name), *(rate_cell(getattr(rates.get(name), field, None)) for rates in found)]
        for name in names
    ]
    kept = [row for row in rows if set(row[1:]) != {NONE}]
    return table([head, *columns], kept) if kept else ""


def _rate(summary: EvalSummary, path: str) -> Rate | None:
    """The rate at a path such as `strict.tool`; None where a part of it is missing."""
    value: Any = summary
    for name in path.split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, Rate) else None


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
