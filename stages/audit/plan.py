"""Checks of the plan: how the model will be quantized, prompted and read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from stages.audit.data import CONVERT
from stages.audit.probe import find_dialect
from stages.audit.registry import Issue, check
from stages.audit.rows import EXAMPLES, Row, tally
from stages.audit.subject import Subject
from stages.core.likeness import find_near, mask_paths, normalise
from stages.core.prompts import offered_tools, turns_row
from stages.core.render import render_row
from stages.core.tools import EXECUTE_CODE
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
        tuple(f"{query.id}: {query.question[:60]}" for query in tools[:EXAMPLES]),
    )


@check("plan")
def prompts_differ(subject: Subject) -> Issue | None:
    """Rows that do not begin, byte for byte, as evaluation would put their question."""
    asked = [row for row in subject.train if row.question and row.last_trained is not None]
    rows = [row for row in asked if not any(map(row.text.startswith, evaluation_prompts(row, subject)))]
    if not rows:
        return None
    found = tally(rows, subject.train)
    return Issue(
        "critical" if 2 * found.count > found.total else "warning",
        f"{found.words} begin otherwise than evaluation puts the same question",
        found.count,
        found.total,
        _advise_one_prompt(rows, subject),
        tuple(show_difference(row, subject) for row in rows[:EXAMPLES]),
    )


def _advise_one_prompt(rows: Sequence[Row], subject: Subject) -> str:
    """What makes training and evaluation show the same: for other tools another suite, else the fix tools."""
    own = [has_own_tools(row) for row in rows]
    asked = {query.code_mode for query in subject.plan.queries}
    if all(own) and asked == {True}:
        return "evaluate on a suite with the tools of these rows: --suites FILE.jsonl"
    if not any(own) and asked == {False}:
        return "evaluate on a suite of Code Mode as well, such as --suites core20"
    return "convert and evaluate with the fix tools: one prompt for both"


def has_own_tools(row: Row) -> bool:
    """Whether a row defines tools, and not Code Mode's one."""
    return row.data.get("tools") not in (None, [], [EXECUTE_CODE.to_json()])


def evaluation_prompts(row: Row, subject: Subject) -> Iterator[str]:
    """The texts that evaluation would send for a row's question; where suites have tools, with the row's."""
    turns = [{"role": "user", "content": row.question}]
    queries = subject.plan.queries
    ways: list[tuple[list[dict[str, Any]], Any]] = []
    if any(query.code_mode for query in queries):
        ways.append((turns, None))
    own = [query for query in queries if not query.code_mode]
    systems = {turn["content"] for query in own for turn in query.turns[:1] if turn["role"] == "system"}
    if any(query.turns[0]["role"] != "system" for query in own):
        ways.append((turns, row.data.get("tools") or ()))
    if row.system in systems:
        ways.append(([{"role": "system", "content": row.system}, *turns], row.data.get("tools") or ()))
    for shown, tools in ways:
        asked = turns_row(shown, tools, subject.setup, subject.fixes)
        yield render_row(asked, subject.tokenizer, prompt=True)


def show_difference(row: Row, subject: Subject) -> str:
    """The place at which a row parts from the evaluation prompt that it is most like."""
    prompts = {find_parting(row.text, asked): asked for asked in evaluation_prompts(row, subject)}
    at = max(prompts, default=0)
    asked = prompts.get(at, "")
    return f"{row.place}: trained {row.text[at : at + 40]!r}, asked {asked[at : at + 40]!r}"


def find_parting(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@check("plan")
def queries_in_training(subject: Subject) -> Issue | None:
    """Evaluation queries that the model is trained on."""
    trained = {normalise(row.question): row for row in subject.train if row.question}
    known = [query for query in subject.plan.queries if normalise(query.question) in trained]
    if not known:
        return None
    same = [(query, trained[normalise(query.question)]) for query in known[:EXAMPLES]]
    return Issue(
        "critical",
        f"{len(known)} of {len(subject.plan.queries)} evaluation queries are questions of training rows",
        len(known),
        len(subject.plan.queries),
        "remove these rows from the training data, or evaluate on another suite",
        tuple(f"{query.id} = {row.place}: {query.question[:60]}" for query, row in same),
    )


@check("plan")
def queries_near_training(subject: Subject) -> Issue | None:
    """Evaluation queries that training asks in nearly the same words, or about another path."""
    asked = [row for row in subject.train if row.question]
    trained, wordings = ({each(row.question): row for row in asked} for each in (normalise, mask_paths))
    near = [
        (query, wordings[wording])
        for query in subject.plan.queries
        if normalise(query.question) not in trained  # queries_in_training says it
        and (wording := find_near(mask_paths(query.question), list(wordings))) is not None
    ]
    if not near:
        return None
    return Issue(
        "warning",
        f"{len(near)} of {len(subject.plan.queries)} evaluation queries are nearly questions of training "
        "rows, paths aside: the result says less about other questions",
        len(near),
        len(subject.plan.queries),
        "evaluate on a suite of other questions as well",
        tuple(f"{query.id} ~ {row.place}: {query.question[:60]}" for query, row in near[:EXAMPLES]),
    )


@check("plan")
def untested_bits(subject: Subject) -> Issue | None:
    """Fewer bits than were shown to keep tool calls whole."""
    kind = "mixture of experts" if any(subject.base.config.get(key) for key in _EXPERTS) else "dense"
    if subject.plan.bits >= PROVEN_BITS[kind]:
        return None
    return Issue(
        "warning",
        f"{subject.plan.bits} bits are untested for the tool calls of a {kind} model{_size(subject)}",
        1,
        1,
        f"quantize with the fix six_bit, or to at least {PROVEN_BITS[kind]} bits",
    )


def _size(subject: Subject) -> str:
    """` of 7.62 billion parameters`, where the base's weights are there."""
    weights = subject.base.weights
    return "" if weights is None else f" of {weights.billions:.3g} billion parameters"


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
