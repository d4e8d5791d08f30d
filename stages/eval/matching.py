"""Whether the calls of a reply are accepted ones.

Calls of tools must be those expected and no others. The code of Code Mode may call more functions than
it needs, so there it is enough that the expected ones are among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.core.chat import ToolCall
from stages.core.matcher import fits_all
from stages.core.query import Calls, Expected, Query
from stages.eval.code import FunctionCall, functions_called


@dataclass(frozen=True)
class Match:
    """How far the calls of a reply are right; `arguments` only where `tool` is."""

    tool: bool
    arguments: bool


def match_calls(query: Query, calls: Sequence[ToolCall]) -> Match:
    """Compare calls with each accepted answer of a query; the best one counts."""
    made = [f for call in calls for f in functions_called(call)] if query.code_mode else _as_made(calls)
    named = fitting = False
    for accepted in query.accept:
        several = accepted if isinstance(accepted, Calls) else Calls(calls=(accepted,))
        named = named or _names_fit(several, made, only=not query.code_mode)
        fitting = fitting or _calls_fit(several, made, only=not query.code_mode)
    return Match(named, fitting)


def _as_made(calls: Sequence[ToolCall]) -> list[FunctionCall]:
    return [FunctionCall(call.name, call.arguments) for call in calls]


def _names_fit(wanted: Calls, made: Sequence[FunctionCall], *, only: bool) -> bool:
    names, called = {expected.function for expected in wanted.calls}, {call.function for call in made}
    return names == called if only else names <= called


def _calls_fit(wanted: Calls, made: Sequence[FunctionCall], *, only: bool) -> bool:
    if only and len(made) != len(wanted.calls):
        return False
    if wanted.ordered:
        rest = iter(made)  # each expected call is looked for behind the one before
        return all(any(_fits(call, expected) for call in rest) for expected in wanted.calls)
    return _pair_up([[i for i, call in enumerate(made) if _fits(call, e)] for e in wanted.calls])


def _fits(call: FunctionCall, expected: Expected) -> bool:
    return call.function == expected.function and fits_all(
        expected.arguments, call.arguments, closed=expected.closed
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
