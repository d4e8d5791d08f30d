"""Scores of raw replies. Each question is scored apart: decided, formatted, chosen, filled in."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from stages.core.chat import ToolCall
from stages.core.dialects import Reply, parse_any, parse_reply
from stages.core.records import Parsed, Rate, RawReply, Score
from stages.core.suite import Expected, Matcher, Query, Suite
from stages.core.tools import EXECUTE_CODE
from stages.eval.code import FunctionCall, functions_called

SCORER_VERSION = 1
CALL_MARK = re.compile(r"</?tool_call>|<function=|</?tools>|```json|\"arguments\"")


def score_replies(suite: Suite, replies: Sequence[RawReply], dialect: str) -> list[Score]:
    """Score the replies of a suite, read strictly in `dialect` and leniently in any.

    Raises ValueError when the replies are not those of the suite's queries.
    """
    by_id = {reply.id: reply for reply in replies}
    if by_id.keys() != {query.id for query in suite.queries}:
        raise ValueError(f"the replies are not those of suite {suite.name}")
    return [score_reply(query, by_id[query.id], dialect) for query in suite.queries]


def score_reply(query: Query, reply: RawReply, dialect: str) -> Score:
    """Score one reply."""
    strict = parse_reply(reply.text, dialect, [EXECUTE_CODE])
    lenient = parse_any(reply.text, [EXECUTE_CODE])
    looks_like_call = bool(lenient.calls) or CALL_MARK.search(reply.text) is not None
    return Score(
        id=query.id,
        category=query.category,
        kind=query.kind,
        strict=_judge(query, strict),
        lenient=_judge(query, lenient),
        clean=bool(strict.calls) and not strict.problems if looks_like_call else None,
        runaway=reply.finish == "length",
    )


def _judge(query: Query, reading: Reply) -> Parsed:
    called = [f for call in reading.calls for f in functions_called(call)]
    wants_tool = query.kind == "tool"
    return Parsed(
        dialect=reading.dialect if reading.calls else None,
        calls=[_to_json(call) for call in reading.calls],
        problems=list(reading.problems),
        decision=bool(reading.calls) == wants_tool,
        tool=any(f.function in {e.function for e in query.accept} for f in called) if wants_tool else None,
        arguments=any(_fits(f, e) for f in called for e in query.accept) if wants_tool else None,
    )


def _to_json(call: ToolCall) -> dict[str, object]:
    return {"name": call.name, "arguments": call.arguments}


def _fits(call: FunctionCall, expected: Expected) -> bool:
    return call.function == expected.function and all(
        _matches(call.arguments.get(name), matcher) for name, matcher in expected.arguments.items()
    )


def _matches(value: str | None, matcher: Matcher) -> bool:
    if value is None:
        return False
    if matcher.any_of is not None:
        return any(_matches(value, m) for m in matcher.any_of)
    if matcher.exact is not None:
        return value == matcher.exact
    if matcher.path is not None:
        return posixpath.normpath(value.strip()) == posixpath.normpath(matcher.path)
    if matcher.contains is not None:
        return all(part in value for part in matcher.contains)
    return matcher.regex is not None and re.search(matcher.regex, value) is not None


def rate(outcomes: Iterable[bool | None]) -> Rate | None:
    """How many of the outcomes that were scored are true; None when none was scored."""
    scored = [outcome for outcome in outcomes if outcome is not None]
    return Rate(k=sum(scored), n=len(scored)) if scored else None


def rates_by_category(scores: Sequence[Score]) -> dict[str, Rate]:
    """The strict decision rate of each category."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for score in scores:
        groups[score.category].append(score.strict.decision)
    return {name: Rate(k=sum(group), n=len(group)) for name, group in sorted(groups.items())}
