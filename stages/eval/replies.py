"""The replies of one engine: those that earlier runs kept, and new ones to what none of them asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.core import progress
from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.records import EvalSummary, RawReply, Timing, read_lines, read_record
from stages.core.suite import Suite
from stages.core.words import plural
from stages.eval.cells import Cell
from stages.eval.clock import summarize_timing
from stages.eval.engines import GENERATOR_VERSION, Costs, Engine, Question, Sampling
from stages.eval.recipe import write_questions
from stages.eval.store import ReplyStore, replies_root


class Replies:
    """What an engine replies, each prompt and draw asked once; `model` is the engine's fingerprint."""

    def __init__(self, options: Options, engine: Engine, model: str) -> None:
        self._options, self._engine, self._model = options, engine, model
        self._stores: dict[Sampling, ReplyStore] = {}
        self._doubt_is_said = False

    def collect(self, suite: Suite, cell: Cell) -> tuple[list[RawReply], Timing]:
        """The reply to every query of a suite, and what they took. Only what is not kept is asked."""
        questions, draw = write_questions(self._options, suite, cell), cell.sampling.sample
        if self._engine.name == "recorded":  # they lie on the disk already
            return self._read_recorded(questions, cell.sampling, suite.name)
        store = self._store(cell)
        left = {question.key: question for question in questions if store.find(question, draw) is None}
        if kept := sum(question.key not in left for question in questions):
            progress.say(f"  {suite.name}: {plural(kept, 'reply')} of an earlier run used again")
            self.say_doubt(suite, cell)
        if left:
            self._ask([*left.values()], cell.sampling, store, suite.name)
        found = [store.find(question, draw) for question in questions]
        replies = [reply for reply in found if reply is not None]
        return replies, summarize_timing(replies, store.read_costs(suite.name))

    def find_change(self, suite: Suite, cell: Cell) -> str:
        """What the server tells otherwise of its model than when it gave the kept replies; else empty."""
        asked = write_questions(self._options, suite, cell)
        return self._store(cell).find_change(asked, cell.sampling.sample, self._served_as)

    def say_doubt(self, suite: Suite, cell: Cell) -> None:
        """Say, once, that nobody can tell whether the server's model gave the kept replies that are used."""
        if self._doubt_is_said or self._engine.name != "endpoint":
            return
        asked = write_questions(self._options, suite, cell)
        if not self._store(cell).tells_apart(asked, cell.sampling.sample, self._served_as):
            self._doubt_is_said = True
            progress.say(
                "  nothing tells whether the server's model is still the one that gave the kept replies: "
                "--ask-again asks every query anew"
            )

    def has_forgotten(self, suite: Suite, cell: Cell) -> bool:
        """Whether a query had a reply and is to be asked again."""
        asked = write_questions(self._options, suite, cell)
        return self._store(cell).has_forgotten(asked, cell.sampling.sample)

    def forget(self, suites: Sequence[Suite], cells: Sequence[Cell]) -> None:
        """Have every query asked again: of all suites, before the first one is asked.

        Where an earlier run was stopped after it had done that, this one goes on with what was left. Raises
        StageError, and forgets nothing, where there is nobody to ask.
        """
        self._engine.load()
        pairs = [(suite, cell) for cell in cells for suite in suites]
        begun = any(self.has_forgotten(suite, cell) for suite, cell in pairs)
        if begun and not any(self.find_change(suite, cell) for suite, cell in pairs):
            return
        for suite, cell in pairs:
            store = self._store(cell)
            store.forget(write_questions(self._options, suite, cell), cell.sampling.sample)
            store.forget_costs(suite.name)

    def adopt(self, suite: Suite, cell: Cell, output: Path) -> None:
        """Keep the replies of an output that is about to be scored anew, where they are kept no more.

        Raises StageError where they are damaged.
        """
        if self._engine.name == "recorded":
            return
        store, draw = self._store(cell), cell.sampling.sample
        asked = write_questions(self._options, suite, cell)
        gone = [question for question in asked if not store.knows(question, draw)]
        made = {r.id: r for r in read_lines(output / "replies.jsonl", RawReply)} if gone else {}
        adopted = [question for question in gone if question.id in made]
        for question in adopted:
            store.keep(question, draw, made[question.id])
        if adopted:
            timing = read_record(output / "summary.json", EvalSummary).timing
            store.add_costs(suite.name, Costs(**timing.model_dump(include=set(Costs.model_fields))))

    def _read_recorded(
        self, questions: Sequence[Question], sampling: Sampling, suite: str
    ) -> tuple[list[RawReply], Timing]:
        read: list[RawReply] = []
        self._engine.answer(questions, sampling, lambda _, reply: read.append(reply), suite)
        return read, summarize_timing(read, self._engine.costs())

    def _ask(self, questions: Sequence[Question], sampling: Sampling, store: ReplyStore, suite: str) -> None:
        """Ask, and keep each reply. Raises StageError, and keeps none, where the model changed meanwhile."""

        served_as = self._served_as  # of the time before anything is asked

        def keep(asked: Question, reply: RawReply) -> None:
            store.keep(asked, sampling.sample, reply, served_as)
            store.add_costs(suite, self._engine.costs())

        self._engine.load()
        self._engine.answer(questions, sampling, keep, suite)
        if told := store.find_change(questions, sampling.sample, self._engine.served_as()):
            store.forget(questions, sampling.sample)
            raise StageError(
                f"the server changed its model while it was asked ({told}): its replies are not used, "
                "the same command asks again"
            )

    @cached_property
    def _served_as(self) -> dict[str, Any]:
        """What the engine tells of its model beside the fingerprint, before anything is asked."""
        return self._engine.served_as()

    def _store(self, cell: Cell) -> ReplyStore:
        """The store of a cell, which other draws and suites share: opened once."""
        shared = replace(cell.sampling, sample=0)
        if shared not in self._stores:
            self._stores[shared] = self._open_store(shared)
        return self._stores[shared]

    def _open_store(self, sampling: Sampling) -> ReplyStore:
        """The kept replies of this engine and sampling; the prompt and the draw are looked up in it."""
        key = {
            **self._engine.facts(),
            "model": self._model,
            "generator_version": GENERATOR_VERSION,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "stop_at_call": sampling.stop_at_call and self._options.preset.model.dialect,
        }
        return ReplyStore(replies_root(self._options), key)
