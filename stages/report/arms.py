"""The arms beside each other: what each fix switched on, and whether it made a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from stages.core.fixes import FIXES
from stages.core.records import Finding, Score
from stages.core.words import plural
from stages.report.cells import NONE, inline_code, plain, rate_cell, table
from stages.report.comparison import WHOLE, write_categories, write_causes, write_results, write_tools
from stages.report.effects import find_idle_fixes
from stages.report.pairs import pair_scores, refuse_pairing
from stages.report.results import Arm
from stages.report.verdict import Match, name_elsewhere

SEVERITIES = ("critical", "warning", "info")
_PAIRED: dict[str, Callable[[Score], bool | None]] = {
    "decision": lambda score: score.strict.decision,
    "right tool": lambda score: score.strict.tool,
    "right arguments": lambda score: score.strict.arguments,
    "the whole": lambda score: score.strict.whole,
}


def write_suites(arms: Sequence[Arm], matches: Mapping[str, Match], chosen: Arm, large: str) -> str:
    """One section per suite, those of `matches` first: results, paired tests, categories.

    What keeps the first one, which decides, from being compared is a reason of the verdict.
    """
    parts = []
    for suite in dict.fromkeys([*matches, *sorted({name for arm in arms for name in arm.suites})]):
        match = matches.get(suite)
        parts.append(_write_suite(suite, arms, match, chosen, large))
        if parts[1:] and match and match.problem:
            parts.append(plain(match.problem))
    summaries = [result.summary for arm in arms for result in arm.suites.values()]
    if any(summary.strict and summary.direct_queries for summary in summaries):
        parts.append(WHOLE)  # once, behind the last table that has it
    return "\n\n".join(parts)


def describe_arms(arms: Sequence[Arm]) -> str:
    """Right decisions of every arm in one sentence; nothing when there is one arm."""
    if len(arms) < 2:
        return ""
    suites = sorted({name for arm in arms for name in arm.suites})
    parts = []
    for suite in suites:
        having = [(arm.label, arm.suites[suite]) for arm in arms if suite in arm.suites]
        decided = [
            f"{label}{plain(name_elsewhere(result.origin))} {rate_cell(result.summary.tool_or_direct)}"
            for label, result in having
        ]
        parts.append(f"{plain(suite)} {', '.join(decided)}")
    return f"Arms, decided right: {'; '.join(parts)}."


def list_refusals(arms: Sequence[Arm]) -> list[str]:
    """Which arms cannot be compared on which suite, and why, a line each."""
    suites = sorted({name for arm in arms for name in arm.suites})
    return [
        f"on {suite} {line}"
        for suite in suites
        for line in _list_refused(suite, [arm for arm in arms if suite in arm.suites])
    ]


def describe_calls(arm: Arm) -> str:
    """How often the arm did more than decide right, in one sentence; nothing where no calls are wanted."""
    parts = []
    for name, result in sorted(arm.suites.items()):
        rates = result.summary.strict
        if rates is None or rates.tool is None or rates.arguments is None:
            continue
        place = plain(name + name_elsewhere(result.origin))
        parts.append(
            f"on {place} the right tool in {rate_cell(rates.tool)} of the tool queries, right "
            f"arguments in {rate_cell(rates.arguments)}, and the whole right (of a direct answer its form) "
            f"in {rate_cell(rates.whole)}"
        )
    if not parts:
        return ""
    return f"To decide right is not yet to call right: the {arm.label} arm has {'; '.join(parts)}."


def write_fixes(arms: Sequence[Arm]) -> str:
    """What each fix does, which arm has it, and which ones changed nothing here."""
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
    idle = "\n".join(f"- {sentence}" for sentence in _idle_fixes(arms))
    heads = ["fix", "repairs", "off", "on", *(arm.label for arm in arms)]
    return "\n\n".join(["## Fixes", table(heads, rows), *([idle] if idle else [])])


def _write_suite(suite: str, arms: Sequence[Arm], match: Match | None, chosen: Arm, large: str) -> str:
    having = [arm for arm in arms if suite in arm.suites]
    columns = {f"{a.label} ({plain(a.suites[suite].origin)})": a.suites[suite].summary for a in having}
    if match and match.reference:
        columns[f"{large} ({plain(match.reference_origin)})"] = match.reference
    parts = [
        f"## Results on {plain(suite)}",
        write_results(columns, match, f"{chosen.label} beside {large}"),
        _write_pairs(suite, having),
        write_causes(columns),
        write_categories(columns),
        write_tools(columns),
    ]
    return "\n\n".join(part for part in parts if part)


def _write_pairs(suite: str, arms: Sequence[Arm]) -> str:
    """Exact McNemar tests of the least repaired arm of a seed against each other arm of that seed."""
    rows = []
    for first, second in _pair_arms(arms):
        a, b = first.suites[suite], second.suites[suite]
        if refuse_pairing(a, b):
            continue
        for name, right in _PAIRED.items():
            pairing = pair_scores(a.scores, b.scores, right)
            counts = [str(pairing.only_first), str(pairing.only_second), f"{pairing.p_value:.2g}"]
            rows.append([f"{first.label} → {second.label}", name, *counts])
    heads = ["arms", "paired by query", "only the first right", "only the second right", "p (exact McNemar)"]
    refused = [f"- {line}." for line in _list_refused(suite, arms)]
    return "\n\n".join([*([table(heads, rows)] if rows else []), *refused])


def _pair_arms(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """The least repaired arm of each seed with every other one of that seed."""
    for first, second in combinations(arms, 2):
        seed = first.options.seed
        if second.options.seed == seed and first is next(a for a in arms if a.options.seed == seed):
            yield first, second


def _list_refused(suite: str, arms: Sequence[Arm]) -> list[str]:
    """Which arms are not compared on a suite that they all have, and why."""
    return [
        f"{first.label} and {second.label} are not compared: {problem}"
        for first, second in _pair_arms(arms)
        if (problem := refuse_pairing(first.suites[suite], second.suites[suite]))
    ]


def _idle_fixes(arms: Sequence[Arm]) -> list[str]:
    first, last = arms[0], arms[-1]
    return find_idle_fixes(first, last) if first is not last else []


def write_findings(arms: Sequence[Arm]) -> str:
    """What the audits found, the worst first; what several arms have alike is one row."""
    lines: list[str] = []
    found: dict[tuple[str, ...], list[str]] = {}
    for arm in arms:
        lines.append(f"- **{arm.label}**: {_count_findings(arm)}.")
        for finding in arm.audit.findings if arm.audit else ():
            found.setdefault(_cells(finding), []).append(arm.label)
    parts = ["## Audit", "\n".join(lines)]
    if found:
        rows = [
            [*cells, ", ".join(labels)]
            for cells, labels in sorted(found.items(), key=lambda row: SEVERITIES.index(row[0][0]))
        ]
        parts.append(table(["severity", "flaw", "found", "what to do", "arms"], rows))
    return "\n\n".join(parts)


def _count_findings(arm: Arm) -> str:
    if arm.audit is None:
        return f"not audited; run {inline_code(arm.options.command('audit'))}"
    critical, warnings, notes = (
        sum(finding.severity == level for finding in arm.audit.findings) for level in SEVERITIES
    )
    counts = f"{critical} critical, {plural(warnings, 'warning')}, {notes} info"
    return f"{counts}, from {plural(len(arm.audit.checks), 'check')}"


def _cells(finding: Finding) -> tuple[str, ...]:
    return finding.severity, str(finding.flaw or NONE), plain(finding.message), plain(finding.fix)
