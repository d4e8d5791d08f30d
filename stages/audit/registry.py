"""The checks: one function each, registered under its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stages.audit.subject import Subject
from stages.core import progress
from stages.core.records import Finding

Place = Literal["data", "tokenizer", "template", "config", "plan"]
Severity = Literal["critical", "warning", "info"]
LAST = 9  # behind the published flaws
ORDER: tuple[Severity, ...] = ("critical", "warning", "info")


@dataclass(frozen=True)
class Issue:
    """What a check found; the registry adds the check's name, place and flaw."""

    severity: Severity
    message: str
    count: int
    total: int
    fix: str
    examples: tuple[str, ...] = ()


Examine = Callable[[Subject], Issue | None]


@dataclass(frozen=True)
class Check:
    """One registered check. `flaw` is the number of the published flaw that it finds, 1 to 5."""

    name: str
    place: Place
    flaw: int | None
    examine: Examine


CHECKS: dict[str, Check] = {}


def check(place: Place, flaw: int | None = None) -> Callable[[Examine], Examine]:
    """Register a function as the check of its name."""

    def register(examine: Examine) -> Examine:
        name = examine.__name__
        if name in CHECKS:
            raise ValueError(f"two checks are named {name}")
        CHECKS[name] = Check(name, place, flaw, examine)
        return examine

    return register


def run_checks(subject: Subject) -> list[Finding]:
    """The findings of every check: the critical ones first, of these the published flaws first."""
    found = []
    with progress.bar("checking", len(CHECKS), "checks") as bar:
        for one in CHECKS.values():
            if (issue := one.examine(subject)) is not None:
                found.append((one, issue))
            bar.advance()
    found.sort(key=lambda pair: (ORDER.index(pair[1].severity), pair[0].flaw or LAST))
    return [
        Finding(
            check=one.name,
            severity=issue.severity,
            place=one.place,
            flaw=None if issue.severity == "info" else one.flaw,  # what does no harm is no flaw
            message=issue.message,
            count=issue.count,
            total=issue.total,
            fix=issue.fix,
            examples=list(issue.examples),
        )
        for one, issue in found
    ]
