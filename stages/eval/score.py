"""Scores of raw replies. Each question is scored apart: decided, formatted, chosen, filled in, ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from stages.core.chat import ToolCall
from stages.core.dialects import Reply, parse_any, parse_reply
from stages.core.query import Query
from stages.core.records import Cause, DirectAnswer, Parsed, RawReply, Score
from stages.core.suite import Suite
from stages.eval.attribution import Signs, find_cause, read_signs
from stages.eval.code import code_of
from stages.eval.matching import match_calls

SCORER_VERSION = 2


class CodeResult(Protocol):
    """What came of running the code of a call."""

    @property
    def works(self) -> bool | None:
        """Whether the code ran to its end; None where that could not be found out."""


Runs = Mapping[str, CodeResult]
"""What came of each code that was run, by its text."""


def score_replies(
    suite: Suite, replies: Sequence[RawReply], dialect: str, runs: Runs | None = None
) -> list[Score]:
    """Score the replies of a suite, read strictly in `dialect` and leniently in any.

    Without `runs` no code was run, and `code` stays unscored. Raises ValueError when the replies are
    not those of the suite's queries.
    """
    by_id = {reply.id: reply for reply in replies}
    if by_id.keys() != {query.id for query in suite.queries}:
        raise ValueError(f"the replies are not those of suite {suite.name}")
    return [score_reply(query, by_id[query.id], dialect, runs) for query in suite.queries]


def score_reply(query: Query, reply: RawReply, dialect: str, runs: Runs | None = None) -> Score:
    """Score one reply."""
    tools = query.toolbox
    strict, lenient = parse_reply(reply.text, dialect, tools), parse_any(reply.text, tools)
    signs = read_signs(query, reply, lenient, dialect)
    code, code_lenient = (_judge_code(reading.calls, runs) for reading in (strict, lenient))
    cause = find_cause(query, strict, signs, dialect, code)
    forgiven = find_cause(query, lenient, signs, None, code_lenient)
    return Score(
        id=query.id,
        category=query.category,
        kind=query.kind,
        tools=list(query.functions),
        strict=_judge(query, strict, signs, cause, code, forgiving=False),
        lenient=_judge(query, lenient, signs, forgiven, code_lenient, forgiving=True),
        runaway=signs.cut,
        cause=cause,
        answer=_judge_answer(query, lenient, signs) if query.kind == "direct" else None,
    )


def _judge(
    query: Query, reading: Reply, signs: Signs, cause: Cause | None, code: bool | None, *, forgiving: bool
) -> Parsed:
    wants_tool = query.kind == "tool"
    match = match_calls(query, reading.calls)
    written = bool(reading.calls) and (forgiving or not reading.problems)
    return Parsed(
        dialect=reading.dialect if reading.calls else None,
        calls=[_to_json(call) for call in reading.calls],
        problems=list(reading.problems),
        decision=bool(reading.calls) == wants_tool,
        format=written if reading.calls or signs.attempt is not None else None,
        tool=match.tool if wants_tool else None,
        arguments=match.arguments if wants_tool else None,
        code=code,
        stop=True if forgiving and reading.calls else signs.ended,
        whole=cause is None,
    )


def _to_json(call: ToolCall) -> dict[str, object]:
    return {"name": call.name, "arguments": call.arguments}


def _judge_code(calls: Sequence[ToolCall], runs: Runs | None) -> bool | None:
    """Whether all code of the calls that was run works; None where none was, or nobody can tell."""
    codes = [code for call in calls if (code := code_of(call)) is not None]
    told = [works for code in codes if runs and code in runs and (works := runs[code].works) is not None]
    return all(told) if told else None


def _judge_answer(query: Query, reading: Reply, signs: Signs) -> DirectAnswer:
    said = reading.content.casefold()
    return DirectAnswer(
        not_empty=not signs.empty,
        on_terms=any(term.casefold() in said for term in query.terms) if query.terms else None,
        not_repeating=signs.loop is None,
        no_call=not signs.calls and signs.attempt is None,
    )
