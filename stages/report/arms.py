"""The arms beside each other: what each fix switched on, and whether it made a difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from stages.core.fixes import FIXES
from stages.core.records import Score
from stages.core.words import plural
from stages.report.cells import NONE, inline_code, number, plain, rate_cell, table
from stages.report.commands import stage_command
from stages.report.comparison import RATES, rate_of, write_categories
from stages.report.effects import find_idle_fixes
from stages.report.pairs import pair_scores, refuse_pairing
from stages.report.results import Arm

_PAIRED: dict[str, Callable[[Score], bool | None]] = {
    "decision": lambda score: score.strict.decision,
    "right tool": lambda score: score.strict.tool,
    "right arguments": lambda score: score.strict.arguments,
}


def write_arms(arms: Sequence[Arm]) -> str:
    """One table per suite, the paired tests, and the fixes."""
    suites = sorted({name for arm in arms for name in arm.suites})
    parts = ["## Arms" if len(arms) > 1 else "## The arm on every suite"]
    for suite in suites:
        having = [arm for arm in arms if suite in arm.suites]
        parts += [f"### Suite {plain(suite)}", _write_suite(suite, having)]
        parts += [text for text in [_write_pairs(suite, having)] if text]
    parts += ["### Fixes", _write_fixes(arms)]
    parts += [f"- {sentence}" for sentence in _idle_fixes(arms)]
    return "\n\n".join(parts)


def describe_arms(arms: Sequence[Arm]) -> str:
    """Right decisions of every arm in one sentence; nothing when there is one arm."""
    if len(arms) < 2:
        return ""
    suites = sorted({name for arm in arms for name in arm.suites})
    parts = []
    for suite in suites:
        decided = [(arm.label, arm.suites[suite].summary.decision) for arm in arms if suite in arm.suites]
        parts.append(f"{plain(suite)} " + ", ".join(f"{label} {rate.k}/{rate.n}" for label, rate in decided))
    return f"Arms, decided right: {'; '.join(parts)}."


def write_arm_categories(arms: Sequence[Arm]) -> str:
    """Right decisions per category, suite and arm."""
    parts = ["## By category", "Tool or direct decided right."]
    for suite in sorted({name for arm in arms for name in arm.suites}):
        columns = {arm.label: arm.suites[suite].summary for arm in arms if suite in arm.suites}
        parts += [f"### Suite {plain(suite)} by category", write_categories(columns) or "No categories."]
    return "\n\n".join(parts)


def _write_suite(suite: str, arms: Sequence[Arm]) -> str:
    summaries = [arm.suites[suite].summary for arm in arms]
    rows = [
        [name.strip(), *(rate_cell(rate_of(s, field)) for s in summaries)] for name, field in RATES.items()
    ]
    rows.append(["time per query", *(number(s.timing.seconds_per_query, "s") for s in summaries)])
    rows.append(["tokens generated", *(_count(s.timing.generated_tokens) for s in summaries)])
    rows.append(["strict parser", *(plain(s.dialect) for s in summaries)])
    return table(["", *(arm.label for arm in arms)], rows)


def _write_pairs(suite: str, arms: Sequence[Arm]) -> str:
    """Exact McNemar tests of the least repaired arm of a seed against each other arm of that seed."""
    rows, refused = [], []
    for first, second in combinations(arms, 2):
        seed = first.options.seed
        if second.options.seed != seed or first is not next(a for a in arms if a.options.seed == seed):
            continue
        a, b = first.suites[suite], second.suites[suite]
        if problem := refuse_pairing(a, b):
            refused.append(f"- {first.label} and {second.label} are not compared: {problem}.")
            continue
        for name, right in _PAIRED.items():
            pairing = pair_scores(a.scores, b.scores, right)
            counts = [str(pairing.only_first), str(pairing.only_second), f"{pairing.p_value:.2g}"]
            rows.append([f"{first.label} → {second.label}", name, *counts])
    heads = ["paired by query", "", "only the first right", "only the second right", "p (exact McNemar)"]
    return "\n\n".join([*([table(heads, rows)] if rows else []), *refused])


def _write_fixes(arms: Sequence[Arm]) -> str:
    rows = [
        [
            f"`{f.name}`",
            plain(f.repairs),
            plain(f.off),
            plain(f.on),
            *("on" if f.name in a.options.fixes else "off" for a in arms),
        ]
        for f in FIXES.values()
    ]
    return table(["fix", "repairs", "off", "on", *(arm.label for arm in arms)], rows)


def _idle_fixes(arms: Sequence[Arm]) -> list[str]:
    first, last = arms[0], arms[-1]
    return find_idle_fixes(first, last) if first is not last else []


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value}"


def write_findings(arms: Sequence[Arm]) -> str:
    """What the audit found in each arm, the worst first."""
    parts = ["## Audit"]
    for arm in arms:
        if arm.audit is None:
            command = inline_code(stage_command(arm.options, "audit"))
            parts.append(f"**{arm.label}**: not audited; run {command}.")
            continue
        found = sorted(arm.audit.findings, key=lambda f: ("critical", "warning", "info").index(f.severity))
        counts = ", ".join(
            f"{sum(f.severity == level for f in found)} {level}" for level in ("critical", "warning", "info")
        )
        parts.append(f"**{arm.label}**: {counts}, from {plural(len(arm.audit.checks), 'check')}.")
        if found:
            rows = [
                [f.severity, str(f.flaw or NONE), plain(f.message), f"{f.count} of {f.total}", plain(f.fix)]
                for f in found
            ]
            parts.append(table(["severity", "flaw", "found", "count", "what to do"], rows))
    return "\n\n".join(parts)
