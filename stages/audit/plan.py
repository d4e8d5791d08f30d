"""Checks of the plan: how the model will be quantized, prompted and read."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from stages.audit.data import CONVERT
from stages.audit.probe import find_dialect
from stages.audit.registry import Issue, check
from stages.audit.rows import EXAMPLES, Row, tally
from stages.audit.subject import Subject
from stages.core.prompts import offered_tools, query_row
from stages.core.render import render_row
from stages.core.wording import normalise
from stages.core.words import plural

PROVEN_BITS = {"dense": 6, "mixture of experts": 5}  # fewer were never shown to keep tool calls whole
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@check("plan")
def parser_differs(subject: Subject) -> Issue | None:
    """A strict parser for another dialect than the one that the model is taught, or its template has."""
    parser = subject.plan.parser
    counts = Counter(dialect for row in subject.train for dialect in row.dialects)
    taught = counts.most_common(1)[0][0] if counts else None
    template = find_dialect(subject.tokenizer)
    others = {"the training rows write": taught, "the chat template writes": template}
    wrong = {place: dialect for place, dialect in others.items() if dialect not in (None, parser)}
    if not wrong:
        return None
    queries = subject.plan.queries
    tools = sum(query.kind == "tool" for query in queries)
    return Issue(
        "critical",
        f"evaluation reads replies as {parser}, but "
        + " and ".join(f"{place} {dialect}" for place, dialect in wrong.items())
        + f": right calls to {tools} of {plural(len(queries), 'query')} can count as none",
        tools,
        len(queries),
        _advise_one_dialect(subject, taught, template),
    )


def _advise_one_dialect(subject: Subject, taught: str | None, template: str | None) -> str:
    """What brings parser, rows and template to the target's dialect: only what is not so yet."""
    target, steps = subject.setup.dialect, []
    if subject.plan.parser != target:
        steps.append("evaluate with the fix parser")
    if taught not in (None, target, template):
        steps.append(CONVERT)
    if template not in (None, target):
        steps.append(f"give the template's dialect as --dialect {template}, or another --chat-template")
    return ", and ".join(steps)


@check("plan", flaw=4)
def evaluation_without_tools(subject: Subject) -> Issue | None:
    """Tool queries that are asked without showing any tool."""
    queries = subject.plan.queries
    tools = [query for query in queries if query.kind == "tool"]
    if not tools or offered_tools(subject.fixes):
        return None
    return Issue(
        "critical",
        f"{len(tools)} of {len(queries)} evaluation queries want a tool, and the prompt defines none",
        len(tools),
        len(queries),
        "evaluate with the fix tools",
        tuple(f"{query.id}: {query.query[:60]}" for query in tools[:EXAMPLES]),
    )


@check("plan")
def prompts_differ(subject: Subject) -> Issue | None:
    """Rows that do not begin, byte for byte, as evaluation would put their question."""
    asked = [row for row in subject.train if row.question and row.last_trained is not None]
    rows = [row for row in asked if not row.text.startswith(evaluation_prompt(row.question, subject))]
    if not rows:
        return None
    found = tally(rows, subject.train)
    return Issue(
        "critical" if 2 * found.count > found.total else "warning",
        f"{found.words} begin otherwise than evaluation puts the same question",
        found.count,
        found.total,
        "convert and evaluate with the fix tools: one prompt for both",
        tuple(show_difference(row, subject) for row in rows[:EXAMPLES]),
    )


def evaluation_prompt(question: str, subject: Subject) -> str:
    """The text that evaluation will send for a question."""
    return render_row(query_row(question, subject.setup, subject.fixes), subject.tokenizer, prompt=True)


def show_difference(row: Row, subject: Subject) -> str:
    """The first place at which a row and its evaluation prompt part."""
    asked = evaluation_prompt(row.question, subject)
    pairs = enumerate(zip(row.text, asked, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(row.text), len(asked)))
    return f"{row.place}: trained {row.text[at : at + 40]!r}, asked {asked[at : at + 40]!r}"


@check("plan")
def queries_in_training(subject: Subject) -> Issue | None:
    """Evaluation queries that the model is trained on."""
    trained = {normalise(row.question): row for row in subject.train if row.question}
    known = [query for query in subject.plan.queries if normalise(query.query) in trained]
    if not known:
        return None
    return Issue(
        "critical",
        f"{len(known)} of {len(subject.plan.queries)} evaluation queries are questions of training rows",
        len(known),
        len(subject.plan.queries),
        "remove these rows from the training data, or evaluate on another suite",
        tuple(f"{q.id} = {trained[normalise(q.query)].place}: {q.query[:60]}" for q in known[:EXAMPLES]),
    )


@check("plan")
def untested_bits(subject: Subject) -> Issue | None:
    """Fewer bits than were shown to keep tool calls whole."""
    kind = "mixture of experts" if any(subject.base.config.get(key) for key in _EXPERTS) else "dense"
    if subject.plan.bits >= PROVEN_BITS[kind]:
        return None
    return Issue(
        "warning",
        f"{subject.plan.bits} bits are untested for the tool calls of a {kind} model of "
        f"{subject.setup.billions:g} billion parameters",
        1,
        1,
        f"quantize with the fix six_bit, or to at least {PROVEN_BITS[kind]} bits",
    )


@check("plan")
def reply_limit(subject: Subject) -> Issue | None:
    """Trained turns that are longer than a reply may be."""
    limit = subject.preset.eval.max_tokens
    rows = [row for row in subject.train if longest_turn(row) > limit]
    if not rows:
        return None
    longest = max(map(longest_turn, rows))
    return Issue(
        "warning",
        f"{len(rows)} of {len(subject.train)} training rows have a turn of more than max_tokens {limit}, "
        f"the longest {longest}: such a reply counts as a runaway",
        len(rows),
        len(subject.train),
        f"--max-tokens {longest}",
        tuple(f"{row.place}: {longest_turn(row)} tokens" for row in rows[:EXAMPLES]),
    )


def longest_turn(row: Row) -> int:
    """Tokens of the longest assistant's turn of a row."""
    return max((sum(1 for _ in group) for mine, group in groupby(row.encoded.supervised) if mine), default=0)
