"""What the code of a reply's calls did when it was run: its calls, whether it printed, the fields it read.

Where code ran to its end, what it did is all that counts: a call in it that is never reached was not
made, and one whose path is put together was. Where it failed, or the sandbox could not run it, its text
says what else it was about to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stages.core.chat import ToolCall
from stages.core.query import Query
from stages.core.records import CodeRun
from stages.core.tools import FUNCTIONS
from stages.eval.code import UNKNOWN, FunctionCall, code_of, functions_called

RunCode = Callable[[Query, str], CodeRun]
"""Runs a code over the project of its query."""

_PRINTING = re.compile(r"\bp?print\b|\bstdout\b")
_WRITING = "write_file"  # who asks for it alone has not asked to see anything


@dataclass(frozen=True)
class Behaviour:
    """What the code of some calls did; None: no code was run, or it cannot be told."""

    made: tuple[list[FunctionCall], ...]
    """The calls of functions that it made, and where it did not end these with those of its text."""
    works: bool | None
    """All of it ran to its end, could print something, and used only fields that there are."""
    printed: bool | None
    """All of it that had something to show printed something."""
    fields: bool | None
    """All of it that got a typed result asked it for fields that it has."""


def observe_code(query: Query, calls: Sequence[ToolCall], run_code: RunCode | None) -> Behaviour:
    """Run the code of calls; without `run_code` only its text is read."""
    done: list[FunctionCall] = []
    meant: list[FunctionCall] = []
    runs: list[tuple[str, CodeRun]] = []
    for call in calls if query.code_mode else ():
        code, said = code_of(call), functions_called(call)
        if run_code is None or code is None:
            done, meant = done + said, meant + said
            continue
        run = run_code(query, code)
        runs.append((code, run))
        made = [FunctionCall(c.function, _known(c.arguments)) for c in run.calls]
        done, meant = done + made, meant + (made if run.outcome == "ran" else said)
    return Behaviour(
        made=(done,) if done == meant else (done, meant),
        works=_all_told(_works(query, code, run) for code, run in runs),
        printed=_all_told(_prints(query, run) for _, run in runs),
        fields=_all_told(_reads_fields(code, run) for code, run in runs),
    )


def _known(arguments: dict[str, str | None]) -> dict[str, object]:
    return {name: UNKNOWN if value is None else value for name, value in arguments.items()}


def _all_told(outcomes: Iterable[bool | None]) -> bool | None:
    told = [outcome for outcome in outcomes if outcome is not None]
    return all(told) if told else None


def _works(query: Query, code: str, run: CodeRun) -> bool | None:
    """Code without a word of printing is useless; one that prints what it finds may have found nothing."""
    if not run.works:
        return run.works
    mute = _prints(query, run) is False and _PRINTING.search(code) is None
    return not mute and _reads_fields(code, run) is not False


def _prints(query: Query, run: CodeRun) -> bool | None:
    shows = run.calls and all(expected.function != _WRITING for expected in query.expected)
    return run.printed_something if run.outcome == "ran" and shows else None


def _reads_fields(code: str, run: CodeRun) -> bool | None:
    """A name that code has as a text may be one that it asks about, as `hasattr` and `getattr` do."""
    if run.outcome == "unsupported" or not any(FUNCTIONS[call.function].result for call in run.calls):
        return None
    names = (missing.partition(".")[2] for missing in run.fields_missing)
    return all(re.search(rf"""["']{re.escape(name)}["']""", code) for name in names)
