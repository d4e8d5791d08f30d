"""Scores of raw replies. Each question is scored apart: decided, formatted, chosen, filled in, ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.core.chat import ToolCall
from stages.core.dialects import Reply, parse_any, parse_reply
from stages.core.query import Query
from stages.core.records import Cause, CodeRun, DirectAnswer, Parsed, RawReply, Score, as_json
from stages.core.suite import Suite
from stages.eval.attribution import Signs, find_cause, read_signs
from stages.eval.code import code_of
from stages.eval.matching import match_calls

SCORER_VERSION = 4


RunCode = Callable[[Query, str], CodeRun]
"""Runs a code over the project of its query."""


def score_replies(
    suite: Suite, replies: Sequence[RawReply], dialect: str, run_code: RunCode | None = None
) -> list[Score]:
    """Score the replies of a suite, read strictly in `dialect` and leniently in any.

    Without `run_code` no code is run, and `code` stays unscored. Raises ValueError when the replies
    are not those of the suite's queries.
    """
    by_id = {reply.id: reply for reply in replies}
    if by_id.keys() != {query.id for query in suite.queries}:
        raise ValueError(f"the replies are not those of suite {suite.name}")
    return [score_reply(query, by_id[query.id], dialect, run_code) for query in suite.queries]


def score_reply(query: Query, reply: RawReply, dialect: str, run_code: RunCode | None = None) -> Score:
    """Score one reply."""
    tools = query.toolbox
    strict, lenient = parse_reply(reply.text, dialect, tools), parse_any(reply.text, tools)
    signs = read_signs(query, reply, lenient, dialect)
    code, code_lenient = (_judge_code(query, reading.calls, run_code) for reading in (strict, lenient))
    cause = find_cause(query, strict, signs, dialect, code)
    forgiven = find_cause(query, lenient, signs, None, code_lenient)
    return Score(
        id=query.id,
        category=query.category,
        kind=query.kind,
        tools=list(query.functions),
        strict=_leave_unseen(_judge(query, strict, signs, cause, code, forgiving=False), reply),
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
        problems=as_json(reading.problems),
        decision=bool(reading.calls) == wants_tool,
        format=written if reading.calls or signs.attempt is not None else None,
        tool=match.tool if wants_tool else None,
        arguments=match.arguments if wants_tool else None,
        code=code,
        stop=True if forgiving and reading.calls else signs.ended,
        whole=cause is None,
    )


def _leave_unseen(reading: Parsed, reply: RawReply) -> Parsed:
    """Without a score for how calls were written that a server's own parser read: nobody saw it."""
    unseen = reply.calls_by == "server" and reading.format is True
    return reading.model_copy(update={"format": None}) if unseen else reading


def _to_json(call: ToolCall) -> dict[str, object]:
    return {"name": as_json(call.name), "arguments": as_json(call.arguments)}


def _judge_code(query: Query, calls: Sequence[ToolCall], run_code: RunCode | None) -> bool | None:
    """Whether all code of the calls ran to its end; None where none was run, or nobody can tell."""
    if run_code is None or not query.code_mode:
        return None
    codes = [code for call in calls if (code := code_of(call)) is not None]
    told = [works for code in codes if (works := run_code(query, code).works) is not None]
    return all(told) if told else None


def _judge_answer(query: Query, reading: Reply, signs: Signs) -> DirectAnswer:
    said = reading.content.casefold()
    return DirectAnswer(
        not_empty=not signs.empty,
        on_terms=any(term.casefold() in said for term in query.terms) if query.terms else None,
        not_repeating=signs.loop is None,
        no_call=not signs.calls and signs.attempt is None,
    )
