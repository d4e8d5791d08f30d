"""Runs the code of a call where nothing of the machine is reachable, and says what it did.

The interpreter is Monty, a Python of its own without files, network or processes, in a child process.
Code can only compute, print and call the functions of Code Mode, which answer from recorded results.
It is stopped when it takes too long, too much memory or too many calls.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache, partial
from importlib import metadata
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_monty import Monty, MontyComplete, MontyCrashedError, MontyError

from stages.core.chat import ToolCall
from stages.core.query import Query
from stages.core.records import CodeCall, CodeRun, QueryRun, as_json
from stages.core.sample import RECORDING
from stages.core.tools import EXECUTE_CODE, FUNCTIONS
from stages.eval.blame import code_ended_itself, sandbox_is_to_blame
from stages.eval.code import FunctionCall, functions_called
from stages.eval.functions import Functions
from stages.eval.project import Project, make_project_for
from stages.eval.results import Reads, TypedResult, all_fields, lost_field

CLOCK = datetime(2024, 5, 1, 10)  # stands still, so that every run prints the same
GRACE = 1.0  # seconds after which a process that does not keep its own time is killed
LONGEST_ERROR = 300  # characters
MOST_STARTS = 8  # runs of one code to find the paths that it puts together
STUCK = "cannot suspend in this synchronous context"  # a function of Code Mode was called back by a built-in
BUILT_INS = """
_max, _min, _sorted = max, min, sorted
def map(function, *items):
    return iter([function(*taken) for taken in zip(*items)])
def filter(function, items):
    return iter([item for item in items if (item if function is None else function(item))])
def sorted(items, key=None, reverse=False):
    items = list(items)
    keys = items if key is None else [key(item) for item in items]
    return [items[i] for i in _sorted(range(len(items)), key=lambda i: keys[i], reverse=reverse)]
def _pick(pick, items, key, default):
    items = list(items[0] if len(items) == 1 else items)
    if not items and default:
        return default[0]
    keys = items if key is None else [key(item) for item in items]
    return items[pick(range(len(items)), key=lambda i: keys[i])]
def max(*items, key=None, **default):
    return _pick(_max, items, key, list(default.values()))
def min(*items, key=None, **default):
    return _pick(_min, items, key, list(default.values()))
"""
"""The built-ins that call a function, written so that this may be one of Code Mode."""


@dataclass(frozen=True)
class Limits:
    """What code may use. A run that needs more has failed."""

    seconds: float = 2.0  # of computing, and of the whole run
    memory: int = 64 * 2**20  # bytes
    depth: int = 1000  # calls inside each other, as in Python
    exchanges: int = 1000  # calls of functions and reads of fields
    printed: int = 10_000  # characters that are kept; more may be printed
    room: int = 1_000_000  # characters that may be written to files


@cache
def describe_sandbox() -> str:
    """What decides beside a code what comes of it: the interpreter's version, the recording, the limits."""
    recording = hashlib.sha256(RECORDING.read_bytes()).hexdigest()[:16]
    limits = ", ".join(f"{name} {value}" for name, value in asdict(Limits()).items())
    return f"monty {metadata.version('pydantic-monty')}, recording {recording}, {limits}"


@dataclass
class _Feed:
    """One pass of code through the interpreter."""

    functions: Functions
    reads: Reads
    printed: str = ""
    printed_something: bool = False
    error: tuple[str, str] | None = None  # kind and message
    stopped: Literal["time", "crash"] | None = None

    def take_print(self, room: int, _stream: str, text: str) -> None:
        """Keep what is printed as long as there is room."""
        self.printed_something = self.printed_something or not text.isspace()
        if len(self.printed) < room:
            self.printed = (self.printed + text)[:room]


class Sandbox:
    """Runs one code after the other, each in a process of its own. Enter it to use it.

    A new process takes 3 ms, and what a code has done to the old one, such as a structure so deep that
    clearing it away kills the process, reaches no other.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._pool = Monty(
            max_processes=1,
            max_checkouts_per_worker=1,
            request_timeout=self.limits.seconds + GRACE,
            feed_duration_limit_grace=GRACE,
        )

    def __enter__(self) -> Sandbox:
        self._pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    def run_code(self, code: str, project: Project) -> CodeRun:
        """What the code does in the project. Never raises for anything that code does.

        A built-in of the interpreter cannot call a function of Code Mode (`map(typecheck, paths)`). Code that
        asks for that runs again with BUILT_INS, which do at once what `map` and `filter` do bit by bit; so a
        run that comes to no end with them, or to that of the memory, does not count.
        """
        run = self._run_behind("", code, project)
        if run.outcome == "unsupported" and STUCK in (run.error or ""):
            other = self._run_behind(BUILT_INS, code, project)
            return run if other.timed_out or "MemoryError" in (other.error or "") else other
        return run

    def _run_behind(self, before: str, code: str, project: Project) -> CodeRun:
        """The same behind other code, which defines names for it."""
        feed = self._feed(before, code, project, Reads())
        typed = any(FUNCTIONS[call.function].result for call in feed.functions.calls)
        used = self._trace_fields(before, code, project) if typed and feed.stopped is None else set()
        return CodeRun(
            outcome=_judge(feed, code),
            error=None if feed.error is None else as_json(": ".join(filter(None, feed.error))),
            timed_out=feed.stopped == "time",
            calls=feed.functions.calls,
            printed=as_json(feed.printed),
            printed_something=feed.printed_something,
            fields_used=sorted(used),
            fields_missing=sorted(feed.reads.missing),
        )

    def _trace_fields(self, before: str, code: str, project: Project) -> set[str]:
        """The fields that code reads: it runs again with the fields held back, so that it has to ask."""
        used: set[str] = set()
        sent: set[str] = set()
        until = time.monotonic() + self.limits.seconds
        while time.monotonic() < until:
            feed = self._feed(before, code, project, Reads(held=all_fields() - sent))
            used |= feed.reads.used
            lost = lost_field(feed.error[1]) if feed.error else None
            if lost is None or lost in sent:
                break
            sent.add(lost)
        return used | sent

    def _feed(self, before: str, code: str, project: Project, reads: Reads) -> _Feed:
        feed = _Feed(Functions(project, self.limits.room), reads)
        try:
            self._drive(before, code, feed)
        except _TimeUp:
            feed.stopped = "time"
        except MontyCrashedError as error:
            feed.stopped = "time" if error.timed_out else "crash"
            feed.error = ("SandboxCrash", _one_line(str(error)))
        except MontyError as error:
            inner = error.exception()
            feed.error = (type(inner).__name__, _one_line(str(inner)))
            if code_ended_itself(*feed.error, code):
                feed.error = None
                return feed
            if isinstance(inner, TimeoutError) and "time limit exceeded" in feed.error[1]:
                feed.stopped = "time"
        if feed.stopped == "time":
            feed.error = ("TimeoutError", f"not done after {self.limits.seconds:g} s")
        return feed

    def _drive(self, before: str, code: str, feed: _Feed) -> None:
        """Run code to its end or to an error, answering its calls."""
        limits = self.limits
        lookup = {name: partial(_call, feed, name) for name in FUNCTIONS}
        with self._pool.checkout(
            limits={
                "max_feed_duration_secs": limits.seconds,
                "max_memory": limits.memory,
                "max_recursion_depth": limits.depth,
                "max_suspensions": limits.exchanges,
            },
            assert_message_annotations=False,
            os_policy={"datetime": CLOCK, "sleep": "zero", "random_start": {"seed": 0}},
        ) as session:
            if before:
                session.feed_run(before)
            until = time.monotonic() + limits.seconds  # not before: a new process may have to be started
            step = session.feed_start(
                code, external_lookup=lookup, print_callback=partial(feed.take_print, limits.printed)
            )
            while not isinstance(step, MontyComplete):
                if time.monotonic() > until:
                    raise _TimeUp
                step = step.resume_auto()


class CodeRunner:
    """Runs codes over the projects of their queries, each once: all readings of a reply share its run."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._runs: dict[tuple[str, str], CodeRun] = {}

    def __call__(self, query: Query, code: str) -> CodeRun:
        """What the code does in the project of the query."""
        key = query.id, code
        if key not in self._runs:
            self._runs[key] = self._run(query, code)
        return self._runs[key]

    def _run(self, query: Query, code: str) -> CodeRun:
        """Run code, again where only the run told that it looks for a file that it may look for."""
        paths = free_paths(query, functions_called(ToolCall(EXECUTE_CODE.name, {"code": code})))
        for _ in range(MOST_STARTS):
            run = self._sandbox.run_code(code, make_project_for(query, paths))
            new = free_paths(query, run.calls) - paths
            if run.timed_out or not new:
                break
            paths |= new
        return run

    @property
    def runs(self) -> list[QueryRun]:
        """All runs so far, in their order."""
        return [QueryRun(id=query, code=as_json(code), run=run) for (query, code), run in self._runs.items()]


def free_paths(query: Query, calls: Iterable[FunctionCall | CodeCall]) -> set[str]:
    """The paths of calls whose function the query accepts with any path: they are right, so they exist."""
    accepted = {one.function for one in query.expected if "path" not in one.arguments}
    given = [call.arguments.get("path") for call in calls if call.function in accepted]
    return {path for path in given if isinstance(path, str)}


class _TimeUp(Exception):
    """Code keeps calling functions: its own clock stands still meanwhile, this one does not."""


def _call(feed: _Feed, name: str, /, *arguments: Any, **named: Any) -> Any:
    answer = feed.functions.call(name, arguments, named)
    return TypedResult(answer, feed.reads) if isinstance(answer, BaseModel) else answer


def _judge(feed: _Feed, code: str) -> Literal["ran", "failed", "unsupported"]:
    if feed.error is None:
        return "ran"
    if feed.stopped is not None:
        return "failed" if feed.stopped == "time" else "unsupported"
    # An answer that was not recorded can break code that would understand the real one.
    guessed = not all(call.recorded for call in feed.functions.calls)
    return "unsupported" if guessed or sandbox_is_to_blame(*feed.error, code) else "failed"


def _one_line(message: str) -> str:
    return " ".join(message.split())[:LONGEST_ERROR]
