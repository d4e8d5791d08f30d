"""A few replies that failed, as the model wrote them, with what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from stages.core.errors import StageError
from stages.core.matcher import Matcher
from stages.core.query import Accepted, Calls, Query
from stages.core.records import Cause, RawReply, Score
from stages.core.suite import Suite, load_suite
from stages.core.words import plural
from stages.report.cells import fenced, inline_code, plain
from stages.report.results import Arm, SuiteResult

SHOWN = 5
ENDS = {"length": "cut off at the token limit", "call": "cut off behind its call"}  # by a reply's finish


def write_failures(arm: Arm, suite: str) -> str:
    """Up to five failed replies of one arm and suite, the earliest mistakes first."""
    result = arm.suites[suite]
    failed = _sort_failures(result.scores)
    title = f"## Failures: {arm.label} on {plain(suite)}"
    untold = _describe_untold(result.scores)
    if not failed:
        return f"{title}\n\n{untold or 'None: every reply was right.'}"
    texts = {reply.id: reply for reply in result.replies}
    queries = _find_queries(arm, result)
    kinds = Counter(_describe(score) for score in failed)
    counts = "; ".join(f"{count} times {kind}" if count > 1 else kind for kind, count in kinds.items())
    head = f"{plural(len(failed), 'reply')} of {len(result.scores)} failed: {counts}. {untold}".rstrip()
    shown = [_write_failure(s, texts.get(s.id), queries.get(s.id)) for s in failed[:SHOWN]]
    return "\n\n".join([title, head, *shown])


def _describe_untold(scores: Sequence[Score]) -> str:
    """How many replies have no known mistake and no score for the whole either; empty where none has."""
    untold = sum(score.cause is None and score.strict.whole is None for score in scores)
    if not untold:
        return ""
    return (
        f"Nobody knows of {plural(untold, 'reply')} of {len(scores)} whether the whole is right: only a full "
        "run of the code could tell, and there was none."
    )


def _sort_failures(scores: Sequence[Score]) -> list[Score]:
    """The failed replies, the earliest mistakes first, and of each one of every category before a second."""
    seen: Counter[tuple[int, str]] = Counter()
    ranked = []
    for i, score in enumerate(scores):
        if score.cause is not None:
            kind = get_args(Cause).index(score.cause), score.category
            ranked.append((kind[0], seen[kind], i))
            seen[kind] += 1
    return [scores[i] for _, _, i in sorted(ranked)]


def _describe(score: Score) -> str:
    """What went wrong first, and whether a lenient reading forgives it."""
    if score.cause == "decided wrong":
        said = "no call was made" if score.kind == "tool" else "a call was made, none was needed"
        return f"decided wrong, {said}"
    return f"{score.cause}" + (", read leniently all was right" if score.lenient.whole else "")


def _write_failure(score: Score, reply: RawReply | None, query: Query | None) -> str:
    lines = [f"### {plain(score.id)} ({plain(score.category)}): {_describe(score)}"]
    if query is not None:
        before = f" (behind {plural(len(query.turns) - 1, 'turn')})" if len(query.turns) > 1 else ""
        lines.append(f"Asked{before}: {plain(query.turns[-1]['content'])}")
    lines.append(f"Expected: {_expected(score, query)}")
    if problems := score.strict.problems:
        lines.append("Parser: " + plain("; ".join(problems)))
    if reply is None:
        return "\n\n".join([*lines, "The reply is missing from replies.jsonl."])
    if reply.served is not None and "error" in reply.served:
        return "\n\n".join(
            [*lines, "The server could not read the reply:", fenced(str(reply.served["error"]))]
        )
    told = [] if reply.tokens is None else [plural(reply.tokens, "token")]
    told += [ENDS[reply.finish]] if reply.finish in ENDS else []
    told += ["its calls as the server read them"] if reply.calls_by == "server" else []
    head = f"Reply ({', '.join(told)}):" if told else "Reply:"
    return "\n\n".join([*lines, head, fenced(reply.text)])


def _expected(score: Score, query: Query | None) -> str:
    if score.kind == "direct":
        return "an answer without a tool call"
    if query is None:
        return f"a call for {plain(', '.join(score.tools) or score.category)}"
    return " or ".join(inline_code(describe_accepted(accepted)) for accepted in query.accept)


def describe_accepted(accepted: Accepted) -> str:
    """An accepted call, or several, such as `typecheck(path='src')`."""
    if isinstance(accepted, Calls):
        join = ", then " if accepted.ordered else " and "
        return join.join(describe_accepted(call) for call in accepted.calls)
    arguments = (
        f"{f'[{name}]' if matcher.optional else name}={describe_matcher(matcher)}"
        for name, matcher in accepted.arguments.items()
    )
    return f"{accepted.function}({', '.join(arguments)})"


def describe_matcher(matcher: Matcher) -> str:
    """What an argument must be, in short."""
    wanted = matcher.wanted
    if matcher.rule in ("any_of", "all_of"):
        join = " or " if matcher.rule == "any_of" else " and "
        return join.join(map(describe_matcher, wanted))
    if matcher.rule == "items":
        return f"[{', '.join(map(describe_matcher, wanted))}]"
    if matcher.rule == "fields":
        return "{" + ", ".join(f"{key}: {describe_matcher(inner)}" for key, inner in wanted.items()) + "}"
    if matcher.rule == "contains":
        return "…" + "…".join(part if isinstance(part, str) else repr(part) for part in wanted) + "…"
    if matcher.rule == "type":
        return f"any {wanted}"
    return f"/{wanted}/" if matcher.rule == "regex" else repr(wanted)


def _find_queries(arm: Arm, result: SuiteResult) -> dict[str, Query]:
    """The suite's queries, when the suite is at hand as it was evaluated."""
    for name in arm.options.overrides.get("suites", arm.options.preset.eval.suites):
        suite = _try_suite(name)
        if suite and suite.fingerprint == result.summary.suite_fingerprint:
            return {query.id: query for query in suite.queries}
    return {}


def _try_suite(name: str) -> Suite | None:
    try:
        return load_suite(name)
    except StageError:  # an own suite may have moved since: the report then shows kind and category only
        return None
