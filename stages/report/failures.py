"""A few replies that failed, as the model wrote them, with what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stages.core.errors import StageError
from stages.core.records import RawReply, Score
from stages.core.suite import Matcher, Query, Suite, load_suite
from stages.core.words import plural
from stages.report.cells import fenced, inline_code, plain
from stages.report.results import Arm, SuiteResult

SHOWN = 5
ENDS = {"length": "cut off at the token limit", "call": "cut off behind its call"}  # by a reply's finish


def write_failures(arm: Arm, suite: str) -> str:
    """Up to five failed replies of one arm and suite, wrong decisions first."""
    result = arm.suites[suite]
    failed = _sort_failures(result.scores)
    title = f"## Failures: {arm.label} on {plain(suite)}"
    if not failed:
        return f"{title}\n\nNone: every reply was right."
    texts = {reply.id: reply for reply in result.replies}
    queries = _find_queries(arm, result)
    kinds = Counter(_failure(score)[1] for score in failed)
    counts = "; ".join(f"{count} times {kind}" if count > 1 else kind for kind, count in kinds.items())
    head = f"{plural(len(failed), 'reply')} of {len(result.scores)} failed: {counts}."
    shown = [_write_failure(s, texts.get(s.id), queries.get(s.id)) for s in failed[:SHOWN]]
    return "\n\n".join([title, head, *shown])


def _sort_failures(scores: Sequence[Score]) -> list[Score]:
    """The failed replies, the worst kind first, and of each kind one of every category before a second."""
    seen: Counter[tuple[int, str]] = Counter()
    ranked = []
    for i, score in enumerate(scores):
        if rank := _failure(score)[0]:
            kind = rank, score.category
            ranked.append((rank, seen[kind], i))
            seen[kind] += 1
    return [scores[i] for _, _, i in sorted(ranked)]


def _failure(score: Score) -> tuple[int, str]:
    """How a reply failed, the worst kind as 1; (0, "") when it did not."""
    if not score.strict.decision:
        read = "; read leniently it was right" if score.lenient.decision else ""
        return 1, (
            "no call was found" if score.kind == "tool" else "a tool was called, none was needed"
        ) + read
    if score.strict.tool is False:
        return 2, "another tool was called"
    if score.strict.arguments is False:
        return 3, "the right tool got other arguments"
    if score.clean is False:
        return 4, "the call does not parse strictly"
    return (5, "it ran on to the token limit") if score.runaway else (0, "")


def _write_failure(score: Score, reply: RawReply | None, query: Query | None) -> str:
    lines = [f"### {plain(score.id)} ({plain(score.category)}): {_failure(score)[1]}"]
    if query is not None:
        lines.append(f"Asked: {plain(query.query)}")
    lines.append(f"Expected: {_expected(score, query)}")
    if problems := score.strict.problems:
        lines.append("Parser: " + plain("; ".join(problems)))
    if reply is None:
        return "\n\n".join([*lines, "The reply is missing from replies.jsonl."])
    told = [] if reply.tokens is None else [plural(reply.tokens, "token")]
    told += [ENDS[reply.finish]] if reply.finish in ENDS else []
    told += ["its calls as the server read them"] if reply.calls_by == "server" else []
    head = f"Reply ({', '.join(told)}):" if told else "Reply:"
    return "\n\n".join([*lines, head, fenced(reply.text)])


def _expected(score: Score, query: Query | None) -> str:
    if score.kind == "direct":
        return "an answer without a tool call"
    if query is None:
        return f"a call for {plain(score.category)}"
    calls = (
        f"{e.function}({', '.join(f'{name}={_pattern(m)}' for name, m in e.arguments.items())})"
        for e in query.accept
    )
    return " or ".join(map(inline_code, calls))


def _pattern(matcher: Matcher) -> str:
    """What an argument must be, in short."""
    if matcher.any_of is not None:
        return " or ".join(_pattern(m) for m in matcher.any_of)
    if matcher.contains is not None:
        return "…" + "…".join(matcher.contains) + "…"
    if matcher.regex is not None:
        return f"/{matcher.regex}/"
    return repr(matcher.exact if matcher.exact is not None else matcher.path)


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
