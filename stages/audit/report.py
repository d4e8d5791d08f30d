"""The audit in words: lines for the terminal and `audit.md`."""

from __future__ import annotations

from collections import Counter

from tabulate import tabulate

from stages.audit.registry import ORDER
from stages.core.records import AuditReport, Finding


def describe_audit(report: AuditReport) -> tuple[str, ...]:
    """One line per finding, the critical ones first, and a summary."""
    return (*map(_line, report.findings), _summary(report))


def write_markdown(report: AuditReport) -> str:
    """The text of `audit.md`."""
    parts = [f"# Audit of {report.model}, arm {report.arm}\n", f"{_summary(report)}.\n"]
    if report.findings:
        rows = [_cells(finding) for finding in report.findings]
        parts.append(tabulate(rows, headers=["severity", "flaw", "check", "count"], tablefmt="github") + "\n")
    parts += [_section(finding) for finding in report.findings]
    parts.append("## Checks that ran\n\n" + ", ".join(report.checks) + ".\n")
    return "\n".join(parts)


def _cells(finding: Finding) -> list[str | int]:
    name, count = f"{finding.place}.{finding.check}", f"{finding.count} of {finding.total}"
    return [finding.severity, finding.flaw or "", name, count]


def _line(finding: Finding) -> str:
    flaw = f" (flaw {finding.flaw})" if finding.flaw else ""
    cure = "" if finding.severity == "info" else f". To do: {finding.fix}"
    return f"{finding.severity} {finding.place}.{finding.check}{flaw}: {finding.message}{cure}"


def _summary(report: AuditReport) -> str:
    counts = Counter(finding.severity for finding in report.findings)
    found = ", ".join(f"{counts[severity]} {severity}" for severity in ORDER)
    verdict = (
        "a verdict would be inconclusive" if report.critical else "nothing in the set-up forbids a verdict"
    )
    return f"{len(report.checks)} checks: {found}; {verdict}"


def _section(finding: Finding) -> str:
    title = f"## {finding.severity}: {finding.check}"
    lines = [title, "", f"{finding.message}.", "", f"To do: {finding.fix}."]
    if finding.examples:
        lines += ["", *(f"- `{example.replace('`', chr(39))}`" for example in finding.examples)]
    return "\n".join(lines) + "\n"
