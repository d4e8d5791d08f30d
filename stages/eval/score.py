"""Scores of raw replies. Each question is scored apart: decided, formatted, chosen, filled in, ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from stages.core.chat import ToolCall
from stages.core.dialects import Reply, parse_any, parse_reply
from stages.core.errors import StageError
from stages.core.query import Query
from stages.core.records import Cause, DirectAnswer, Parsed, RawReply, Score, as_json
from stages.core.suite import Suite
from stages.eval.attribution import Signs, find_cause, read_signs
from stages.eval.behaviour import Behaviour, RunCode, observe_code
from stages.eval.matching import match_calls

SCORER_VERSION = 9
AS_SERVED = "hermes"  # how a served call is written that the target's dialect cannot say


def score_replies(
    suite: Suite,
    replies: Sequence[RawReply],
    dialect: str,
    run_code: RunCode | None = None,
    on_score: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Score the replies of a suite, read strictly in `dialect` and leniently in any.

    `on_score` is called behind each. Without `run_code` no code is run: its text is read, and `code` stays
    unscored. Raises ValueError when the replies are not those of the suite's queries, and StageError for a
    regex that takes too long.
    """
    by_id = {reply.id: reply for reply in replies}
    if by_id.keys() != {query.id for query in suite.queries}:
        raise ValueError(f"the replies are not those of suite {suite.name}")
    scores = []
    for query in suite.queries:
        scores.append(_score_query(suite, query, by_id[query.id], dialect, run_code))
        on_score()
    return scores


def _score_query(
    suite: Suite, query: Query, reply: RawReply, dialect: str, run_code: RunCode | None
) -> Score:
    try:
        return score_reply(query, reply, dialect, run_code)
    except StageError as error:
        raise StageError(f"suite {suite.name}, query {query.id}: {error}") from None


def score_reply(query: Query, reply: RawReply, dialect: str, run_code: RunCode | None = None) -> Score:
    """Score one reply."""
    tools = query.toolbox
    strict, lenient = _read_strictly(query, reply, dialect), parse_any(reply.text, tools)
    signs = read_signs(query, reply, lenient, dialect)
    code, code_lenient = (observe_code(query, reading.calls, run_code) for reading in (strict, lenient))
    cause = find_cause(query, strict, signs, dialect, code)
    forgiven = find_cause(query, lenient, signs, None, code_lenient)
    return Score(
        id=query.id,
        category=query.category,
        kind=query.kind,
        tools=list(query.functions),
        strict=_leave_unseen(_judge(query, strict, signs, cause, code, forgiving=False), reply),
        lenient=_judge(query, lenient, signs, forgiven, code_lenient, forgiving=True),
        runaway=None if signs.ended is None else signs.cut,
        cause=cause,
        answer=_judge_answer(query, lenient, signs) if query.kind == "direct" else None,
    )


def _read_strictly(query: Query, reply: RawReply, dialect: str) -> Reply:
    """A reply in the expected dialect. A call that a server's parser read and that the dialect cannot say,
    such as a text for a number, is written as JSON: it was read, whatever is wrong with its arguments."""
    reading = parse_reply(reply.text, dialect, query.toolbox)
    if reply.calls_by == "server" and not reading.calls:
        as_written = parse_reply(reply.text, AS_SERVED, query.toolbox)
        return as_written if as_written.calls and not as_written.problems else reading
    return reading


def _judge(
    query: Query, reading: Reply, signs: Signs, cause: Cause | None, code: Behaviour, *, forgiving: bool
) -> Parsed:
    wants_tool = query.kind == "tool"
    calls = bool(reading.calls) or (forgiving and signs.attempt is not None)
    match = match_calls(query, reading.calls, code)
    unread = [f"a call in a format that nothing here reads: {signs.attempt}"] if signs.foreign else []
    written = bool(reading.calls) and (forgiving or not reading.problems)
    unknown = wants_tool and None in (match.tool, match.arguments)
    return Parsed(
        dialect=reading.dialect if reading.calls else None,
        calls=[_to_json(call) for call in reading.calls],
        problems=as_json([*reading.problems, *unread]),
        decision=calls == wants_tool,
        format=written if reading.calls or signs.attempt is not None else None,
        tool=match.tool if wants_tool else None,
        arguments=match.arguments if wants_tool else None,
        code=code.works,
        printed=code.printed,
        fields=code.fields,
        stop=True if forgiving and reading.calls else False if signs.went_on else signs.ended,
        whole=None if cause is None and unknown else cause is None,
    )


def _leave_unseen(reading: Parsed, reply: RawReply) -> Parsed:
    """Without a score for how calls were written that a server's own parser read: nobody saw it."""
    unseen = reply.calls_by == "server" and reading.format is True
    return reading.model_copy(update={"format": None}) if unseen else reading


def _to_json(call: ToolCall) -> dict[str, object]:
    return {"name": as_json(call.name), "arguments": as_json(call.arguments)}


def _judge_answer(query: Query, reading: Reply, signs: Signs) -> DirectAnswer:
    said = _plain(reading.content)
    return DirectAnswer(
        not_empty=not signs.empty,
        on_terms=any(_is_said(_plain(term), said) for term in query.terms) if query.terms else None,
        not_repeating=signs.loop is None,
        no_call=not signs.calls and signs.attempt is None,
    )


def _plain(text: str) -> str:
    """A text without what two spellings of a word differ in: case, and the kind of apostrophe."""
    return text.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def _is_said(term: str, text: str) -> bool:
    """Whether a term stands where a word begins: `test` is in `tests`, `no` is not in `know`."""
    start = r"(?<!\w)" if re.match(r"\w", term) else ""
    return re.search(start + re.escape(term), text) is not None
