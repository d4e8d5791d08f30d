"""Whether the calls of a reply are accepted ones.

Calls of tools must be those expected and no others, and such as the tools take: without a parameter that a
definition has not, and with all that it requires. In Code Mode the calls are those that the code made
when it ran. It may call more functions than it needs, so there it is enough that the expected ones are
among them; but each call must be one that sends code, and nothing that its tool does not take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from stages.core.chat import ToolCall
from stages.core.matcher import Matcher, fits_all
from stages.core.parameters import Parameters
from stages.core.query import Calls, Expected, Query
from stages.core.tools import EXECUTE_CODE
from stages.eval.behaviour import Behaviour, observe_code
from stages.eval.code import FunctionCall, code_of

Takes = Mapping[str, Parameters]  # what the tools take, by name
OPEN = ("type", "regex", "contains")
_ANYTHING = Parameters({})  # what is known of a function of Code Mode, whose code is run


@dataclass(frozen=True)
class Match:
    """How far the calls of a reply are right; `arguments` only where `tool` is.

    None: only a run could tell, and there was none.
    """

    tool: bool | None
    arguments: bool | None


def match_calls(query: Query, calls: Sequence[ToolCall], code: Behaviour | None = None) -> Match:
    """Compare calls with each accepted answer of a query; the best one counts.

    `code` is what the code of the calls did; without it their text is read.
    """
    if query.code_mode and not _send_code(calls):
        return Match(None if _all_lack_code(calls) else False, False)
    takes, ways, named, fitting = _read_tools(query), _list_ways(query, calls, code), False, False
    for accepted, made in product(query.accept, ways):
        several = accepted if isinstance(accepted, Calls) else Calls(calls=(accepted,))
        named = named or _names_fit(several, made, only=not query.code_mode)
        fitting = fitting or _calls_fit(several, made, takes, only=not query.code_mode)
    if not query.code_mode:
        return Match(named, fitting)
    match = Match(True, True) if fitting else _allow_unseen(query, ways, named, code)
    return match if _send_no_more(calls, takes) else Match(match.tool, False)


def _allow_unseen(
    query: Query, ways: Sequence[list[FunctionCall]], named: bool, code: Behaviour | None
) -> Match:
    """How far calls are right that do not fit, when some of their code may have called more than is seen."""
    unsure = code.unsure if code is not None else frozenset[str]()
    if not unsure:
        return Match(named, False)
    seen = [call for made in ways for call in made]
    wanted = [accepted.calls if isinstance(accepted, Calls) else (accepted,) for accepted in query.accept]
    may_fit = any(
        all(e.function in unsure or any(_fits(call, e, {}) for call in seen) for e in calls)
        for calls in wanted
    )
    names = unsure | {call.function for call in seen}
    may_name = any(all(e.function in names for e in calls) for calls in wanted)
    return Match(named or (None if may_name else False), None if may_fit else False)


def begin_right(query: Query, calls: Sequence[ToolCall], code: Behaviour) -> bool:
    """Whether calls are right as far as they go: an accepted answer has them, and others that are not there.

    In Code Mode, where code may call what it likes, the least that it has in common with them is one call.
    """
    takes = _read_tools(query)
    if query.code_mode and not (_send_code(calls) and _send_no_more(calls, takes)):
        return False
    ways = product(query.accept, _list_ways(query, calls, code))
    several = ((accepted, made) for accepted, made in ways if isinstance(accepted, Calls))
    return any(_is_begun(wanted, made, takes, only=not query.code_mode) for wanted, made in several)


def _send_code(calls: Sequence[ToolCall]) -> bool:
    return all(code_of(call) is not None for call in calls)


def _all_lack_code(calls: Sequence[ToolCall]) -> bool:
    """Whether all calls are of the tool that takes code, and none gives it any: what was meant is unknown."""
    return all(call.name == EXECUTE_CODE.name and code_of(call) is None for call in calls)


def _send_no_more(calls: Sequence[ToolCall], takes: Takes) -> bool:
    """Whether calls that send code give their tool nothing that it does not take."""
    return all(_is_taken(takes[call.name], call.arguments, {}) for call in calls)


def _list_ways(
    query: Query, calls: Sequence[ToolCall], code: Behaviour | None
) -> Sequence[list[FunctionCall]]:
    """The calls to compare, in Code Mode those of functions; any way of reading them may count."""
    if query.code_mode:
        return (code or observe_code(query, calls, None)).made
    return ([FunctionCall(call.name, call.arguments) for call in calls],)


def _is_begun(wanted: Calls, made: Sequence[FunctionCall], takes: Takes, *, only: bool) -> bool:
    if not only:
        first = wanted.calls[:1] if wanted.ordered else wanted.calls
        return len(wanted.calls) > 1 and any(_fits(c, e, takes) for c, e in product(made, first))
    if len(made) >= len(wanted.calls):
        return False
    if wanted.ordered:
        return all(_fits(c, e, takes) for c, e in zip(made, wanted.calls, strict=False))
    return _pair_up([[i for i, e in enumerate(wanted.calls) if _fits(call, e, takes)] for call in made])


def _read_tools(query: Query) -> Takes:
    return {name: Parameters(schema) for name, schema in query.toolbox.schemas.items()}


def _names_fit(wanted: Calls, made: Sequence[FunctionCall], *, only: bool) -> bool:
    names, called = {expected.function for expected in wanted.calls}, {call.function for call in made}
    return names == called if only else names <= called


def _calls_fit(wanted: Calls, made: Sequence[FunctionCall], takes: Takes, *, only: bool) -> bool:
    if only and len(made) != len(wanted.calls):
        return False
    if wanted.ordered:
        rest = iter(made)  # each expected call is looked for behind the one before
        return all(any(_fits(call, expected, takes) for call in rest) for expected in wanted.calls)
    return _pair_up([[i for i, call in enumerate(made) if _fits(call, e, takes)] for e in wanted.calls])


def _fits(call: FunctionCall, expected: Expected, takes: Takes) -> bool:
    return (
        call.function == expected.function
        and fits_all(expected.arguments, call.arguments, closed=expected.closed)
        and _is_taken(takes.get(call.function, _ANYTHING), call.arguments, expected.arguments)
    )


def _is_taken(takes: Parameters, given: Mapping[str, Any], rules: Mapping[str, Matcher]) -> bool:
    """Whether a tool takes a call beside what the suite's rules say of it.

    Of an argument that the suite names it says itself whether it may lack. A definition that names no
    parameters at all says nothing: suites are often written with no more than a tool's name.
    """
    if takes.find_missing(given.keys() | rules.keys()):
        return False
    return not takes.parts or all(_suits(takes, name, given[name], rules.get(name)) for name in given)


def _suits(takes: Parameters, name: str, value: Any, rule: Matcher | None) -> bool:
    """Whether the definition allows a value; where the suite has a rule that names values it alone decides.

    A rule for many values (OPEN) says nothing of those that no tool takes: which of them are meant, the
    definition says.
    """
    if rule is None or rule.rule in OPEN:
        return takes.find_misfit(name, value) is None and takes.lists(name, value)
    if rule.rule == "any_of":
        return any(_suits(takes, name, value, inner) for inner in rule.wanted if inner.fits(value))
    return (
        rule.rule != "all_of"
        or any(inner.rule not in OPEN for inner in rule.wanted)
        or _suits(takes, name, value, None)
    )


def _pair_up(choices: Sequence[Sequence[int]]) -> bool:
    """Whether each item gets one of its choices and no two the same (augmenting paths)."""
    taken: dict[int, int] = {}

    def place(item: int, seen: set[int]) -> bool:
        for choice in choices[item]:
            if choice not in seen:
                seen.add(choice)
                if choice not in taken or place(taken[choice], seen):
                    taken[choice] = item
                    return True
        return False

    return all(place(item, set()) for item in range(len(choices)))
