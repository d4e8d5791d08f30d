"""What the code of a reply's calls did when it was run: its calls, whether it printed, the fields it read.

Where code ran to its end, what it did is all that counts: a call in it that is never reached was not
made, and one whose path is put together was. Where it failed, or the sandbox could not run it, its text
says what else it was about to do.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stages.core.chat import ToolCall
from stages.core.query import Calls, Expected, Query
from stages.core.records import CodeCall, CodeRun
from stages.core.tools import FUNCTIONS
from stages.eval.code import (
    UNKNOWN,
    FunctionCall,
    code_of,
    functions_called,
    functions_unread,
    parse_code,
)
from stages.eval.functions import cut_argument

RunCode = Callable[[Query, str], CodeRun]
"""Runs a code over the project of its query."""

MOST_RUNS, MOST_ENDLESS = 20, 3  # codes of a reply that are run, and those of them that come to no end
_PRINTING = {"print", "pprint", "stdout"}  # names without which nothing is printed
_WRITING = "write_file"
_QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*\"""")  # what a shell takes as it is
_SHELL_WRITING = re.compile(  # and shows nothing of it behind that
    r"^(?!.*(?:&&|;) ?(?:cat|head|tail|less|more|nl|bat)\b).*(?:(?<![\d&])>|\btee\b|\bsed\b.* -i)", re.DOTALL
)


@dataclass(frozen=True)
class Behaviour:
    """What the code of some calls did; None: no code was run, or it cannot be told."""

    made: tuple[list[FunctionCall], ...]
    """The calls of functions that it made, and where it did not end these with those of its text."""
    unsure: frozenset[str]
    """The functions that it may have called beside these, with what nobody knows: it could not be run."""
    works: bool | None
    """All of it ran to its end, could print something, and used only fields that there are."""
    printed: bool | None
    """All of it that had something to show printed something."""
    fields: bool | None
    """All of it that got a typed result asked it for fields that it has."""


def observe_code(query: Query, calls: Sequence[ToolCall], run_code: RunCode | None) -> Behaviour:
    """Run the code of calls; without `run_code`, and where too many run too long, only its text is read."""
    done: list[FunctionCall] = []
    meant: list[FunctionCall] = []
    runs: list[tuple[str, CodeRun]] = []
    unsure: set[str] = set()
    for call in calls if query.code_mode else ():
        code, said = code_of(call), [_cut(c) for c in functions_called(call)]
        if code is not None and parse_code(code) is None:
            unsure |= functions_unread(code)
        endless = sum(run.timed_out for _, run in runs) >= MOST_ENDLESS
        if run_code is None or code is None or endless or len(runs) >= MOST_RUNS:
            unsure |= functions_unread(code) if runs and code is not None else set()
            done, meant = done + said, meant + said
            continue
        run = run_code(query, code)
        runs.append((code, run))
        made = [FunctionCall(c.function, _known(c.arguments)) for c in run.calls]
        done, meant = done + made, meant + (made if run.outcome == "ran" else said)
        unsure |= functions_unread(code) if run.outcome == "unsupported" else set()
    return Behaviour(
        made=(done,) if done == meant else (done, meant),
        unsure=frozenset(unsure),
        works=_all_told(_works(query, code, run) for code, run in runs),
        printed=_all_told(_prints(query, run) for _, run in runs),
        fields=_all_told(_reads_fields(code, run) for code, run in runs),
    )


def _cut(call: FunctionCall) -> FunctionCall:
    """A call in the text of code, its arguments cut as those of a run are."""
    cut = {name: cut_argument(name, value) for name, value in call.arguments.items()}
    return FunctionCall(call.function, cut, call.rest)


def _known(arguments: dict[str, str | None]) -> dict[str, object]:
    return {name: UNKNOWN if value is None else value for name, value in arguments.items()}


def _all_told(outcomes: Iterable[bool | None]) -> bool | None:
    told = [outcome for outcome in outcomes if outcome is not None]
    return all(told) if told else None


def _works(query: Query, code: str, run: CodeRun) -> bool | None:
    """Code that cannot print is useless; one that prints what it finds may have found nothing."""
    if not run.works:
        return run.works
    mute = _prints(query, run) is False and not _can_print(code)
    return not mute and _reads_fields(code, run) is not False


def _can_print(code: str) -> bool:
    """Whether code names what prints; in a comment or a text that is no more than a word."""
    tree = parse_code(code)
    return tree is None or any(
        getattr(node, "id", None) in _PRINTING or getattr(node, "attr", None) in _PRINTING
        for node in ast.walk(tree)
    )


def _prints(query: Query, run: CodeRun) -> bool | None:
    """Whether code showed something; None where it had nothing to show.

    Who asks for nothing but writing has not asked to see anything, and a write has nothing to show.
    """
    shows = any(not _writes(call) for call in run.calls) and not any(map(_only_writes, query.accept))
    return run.printed_something if run.outcome == "ran" and shows else None


def _writes(call: CodeCall) -> bool:
    command = call.arguments.get("command") if call.function == "run_command" else None
    bare = _QUOTED.sub("", command or "")
    return call.function == _WRITING or _SHELL_WRITING.search(bare) is not None


def _only_writes(accepted: Expected | Calls) -> bool:
    calls = accepted.calls if isinstance(accepted, Calls) else (accepted,)
    return all(expected.function == _WRITING for expected in calls)


def _reads_fields(code: str, run: CodeRun) -> bool | None:
    """A name that code has as a text may be one that it asks about, as `hasattr` and `getattr` do."""
    if run.outcome == "unsupported" or not any(FUNCTIONS[call.function].result for call in run.calls):
        return None
    names = (missing.partition(".")[2] for missing in run.fields_missing)
    return all(re.search(rf"""["']{re.escape(name)}["']""", code) for name in names)
