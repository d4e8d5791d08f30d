"""Checks of what the training rows leave out: rows that did not convert, calls that are not there."""

from __future__ import annotations

from stages.audit.registry import Issue, check
from stages.audit.rows import EXAMPLES
from stages.audit.subject import Subject

REJECTED_SHARE = 0.2  # of the training rows: with more gone, it is no longer the data that was given


@check("data")
def rows_rejected(subject: Subject) -> Issue | None:
    """Rows that the conversion left out: with many of them gone, another data set is trained on."""
    rejected = subject.rejected
    if not rejected.reasons:
        return None
    total, everywhere = rejected.train + len(subject.train), rejected.reasons.total()
    reason, count = rejected.reasons.most_common(1)[0]
    return Issue(
        "critical" if rejected.train > REJECTED_SHARE * total else "warning",
        f"{rejected.train} of {total} rows in train were rejected, {everywhere} in all splits, "
        f"{count} of them because: {reason[:120]}; see {rejected.path}",
        rejected.train,
        total,
        "mend these rows or leave them out of the data",
        tuple(f"{count} rows: {reason[:120]}" for reason, count in rejected.reasons.most_common(EXAMPLES)),
    )


@check("data")
def no_calls_trained(subject: Subject) -> Issue | None:
    """Training without a single call, where evaluation wants some."""
    queries = subject.plan.queries
    tools = [query for query in queries if query.kind == "tool"]
    if not tools or any(row.dialects for row in subject.train):
        return None
    return Issue(
        "critical",
        f"none of {len(subject.train)} training rows calls a tool, and {len(tools)} of {len(queries)} "
        "evaluation queries want a call",
        len(subject.train),
        len(subject.train),
        "train on rows with calls"
        + (f"; {subject.rejected.path} has rows that did not convert" if subject.rejected.reasons else ""),
        tuple(f"{query.id}: {query.question[:60]}" for query in tools[:EXAMPLES]),
    )
