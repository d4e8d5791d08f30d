"""Whether the calls of a reply are accepted ones.

Calls of tools must be those expected and no others, and such as the tools take: without a parameter that a
definition has not, and with all that it requires. In Code Mode the calls are those that the code made
when it ran. It may call more functions than it needs, so there it is enough that the expected ones are
among them; but each call must be one that sends code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from stages.core.chat import ToolCall
from stages.core.matcher import fits_all
from stages.core.parameters import Parameters
from stages.core.query import Calls, Expected, Query
from stages.eval.behaviour import Behaviour, observe_code
from stages.eval.code import FunctionCall, code_of

Takes = Mapping[str, Parameters]  # what the tools take, by name


@dataclass(frozen=True)
class Match:
    """How far the calls of a reply are right; `arguments` only where `tool` is."""

    tool: bool
    arguments: bool


def match_calls(query: Query, calls: Sequence[ToolCall], code: Behaviour | None = None) -> Match:
    """Compare calls with each accepted answer of a query; the best one counts.

    `code` is what the code of the calls did; without it their text is read.
    """
    if query.code_mode:
        if any(code_of(call) is None for call in calls):
            return Match(False, False)
        ways = (code or observe_code(query, calls, None)).made
    else:
        ways = ([FunctionCall(call.name, call.arguments) for call in calls],)
    takes = {name: Parameters(schema) for name, schema in query.toolbox.schemas.items()}
    named = fitting = False
    for accepted, made in product(query.accept, ways):
        several = accepted if isinstance(accepted, Calls) else Calls(calls=(accepted,))
        named = named or _names_fit(several, made, only=not query.code_mode)
        fitting = fitting or _calls_fit(several, made, takes, only=not query.code_mode)
    return Match(named, fitting)


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
        and (call.function not in takes or _is_taken(takes[call.function], call, expected))
    )


def _is_taken(takes: Parameters, call: FunctionCall, expected: Expected) -> bool:
    """Whether a tool takes a call beside what the suite's rules say of it.

    Of an argument that the suite names it says itself what it may be, and whether it may lack. A definition
    that names no parameters at all says nothing: suites are often written with no more than a tool's name.
    """
    named = expected.arguments.keys()
    if takes.find_missing(call.arguments.keys() | named):
        return False
    given = ((name, value) for name, value in call.arguments.items() if name not in named)
    return not takes.parts or not any(takes.find_misfit(name, value) for name, value in given)


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
