"""The stage: every suite of the plan, one artifact each; of a sweep one for every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.core import progress
from stages.core.artifact import (
    build_artifact,
    fingerprint_json,
    fingerprint_model,
    is_current,
    read_manifest,
    require_artifact,
)
from stages.core.cli import Options, Outcome, artifacts_root
from stages.core.errors import StageError
from stages.core.platform import require_disk
from stages.core.prompts import case_row
from stages.core.records import (
    EvalSummary,
    Rate,
    RawReply,
    Recipe,
    Timing,
    read_lines,
    read_record,
    write_lines,
    write_record,
)
from stages.core.suite import Suite, load_suites
from stages.core.words import plural
from stages.eval.cells import Cell, list_cells, usual_cell
from stages.eval.clock import summarize_timing
from stages.eval.engines import GENERATOR_VERSION, Costs, Engine, Question, Sampling
from stages.eval.engines.endpoint import Endpoint, check_address
from stages.eval.engines.gone import GoneModel, find_scored_model
from stages.eval.engines.local import LocalEngine
from stages.eval.engines.recorded import Recorded
from stages.eval.engines.transport import Transport
from stages.eval.request import Request
from stages.eval.sandbox import CodeRunner, Sandbox, describe_sandbox
from stages.eval.score import SCORER_VERSION, score_replies
from stages.eval.store import ReplyStore, kept_models
from stages.eval.summary import summarize_scores
from stages.eval.sweep import describe_sweep, summarize_sweep

NO_REQUEST = Request()


def evaluate(options: Options, request: Request = NO_REQUEST) -> Outcome:
    """Evaluate one arm's model on every suite of its preset."""
    suites = load_suites(options.preset.eval.suites)
    return evaluate_engine(options, choose_engine(options, request), suites, ask_again=request.ask_again)


def evaluate_engine(
    options: Options, engine: Engine, suites: Sequence[Suite], *, ask_again: bool = False
) -> Outcome:
    """Put the suites to an engine; as a sweep where the preset asks for one."""
    run = _Run(options, engine, ask_again=ask_again)
    if ask_again:
        run.forget_replies(suites)
    place = find_place(options)
    results = [run.require(*output) for output in list_outputs(options, suites)]
    if options.preset.eval.is_sweep:
        lines = describe_sweep(summarize_sweep(place, suites, [*list_cells(options.preset)]))
    else:
        lines = tuple(_line(summary) for summary, _ in results)
    return Outcome(place, up_to_date=all(current for _, current in results), lines=lines)


def find_place(options: Options) -> Path:
    """The folder of all outputs; that of a sweep lies beside the evaluation."""
    usual = options.place("eval")
    if options.out is not None or not options.preset.eval.is_sweep:
        return options.out or usual
    return usual.parents[2] / "sweep" / usual.parent.name / usual.name


def list_outputs(options: Options, suites: Sequence[Suite]) -> list[tuple[Suite, Cell, Path]]:
    """The folder of every suite, in a sweep of every cell of every suite."""
    preset, place = options.preset, find_place(options)
    if preset.eval.is_sweep:
        cells = [*list_cells(preset)]
        return [(suite, cell, place / suite.name / cell.slug) for suite in suites for cell in cells]
    return [(suite, usual_cell(preset), place / suite.name) for suite in suites]


def needs_nothing(options: Options, request: Request = NO_REQUEST) -> bool:
    """Whether every output is up to date, so that no model is needed.

    Raises StageError for one that another evaluation has made, whatever the others are.
    """
    run = _Run(options, choose_engine(options, request), ask_again=request.ask_again)
    suites = load_suites(options.preset.eval.suites)
    current = [run.is_current(*output) for output in list_outputs(options, suites)]
    return all(current)


def is_current_throughout(options: Options, request: Request = NO_REQUEST) -> bool:
    """The same; mistakes are left to `evaluate`, which explains them."""
    try:
        return needs_nothing(options, request)
    except StageError:
        return False


def choose_engine(options: Options, request: Request) -> Engine:
    """What answers. Raises StageError when there is no model, and for an address that is none."""
    setup = options.preset
    if request.replies is not None:
        return Recorded(request.replies)
    if request.endpoint is not None:
        transport = Transport(check_address(request.endpoint), request.timeout)
        kept = kept_models(_store_root(options), transport.url)
        return Endpoint(transport, setup.model.dialect, request.served_model, request.concurrency, kept)
    folder = options.input("quantize")
    if not folder.exists() and (scored := find_scored_model(options)) is not None:
        return GoneModel(scored, folder, options.advice("quantize"))
    # A folder that fuse did not write has its own template, unless the preset names another.
    batch, dialect = setup.eval.completion_batch, setup.model.dialect
    if (folder / "config.json").is_file() and read_manifest(folder) is None:
        return LocalEngine(folder, fingerprint_model(folder), batch, dialect, setup.model)
    made = require_artifact(folder, "quantize", options.advice("quantize"), also=("fuse",))
    return LocalEngine(folder, made.content, batch, dialect, template=made.template)


def needs_scores_alone(folder: Path, wanted: Recipe) -> bool:
    """Whether a result differs from what is wanted in nothing but what counts as right.

    Its replies are kept then and scored again, which loses nothing that could not be made once more.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.recipe == wanted:
        return False
    made, rules = manifest.recipe, {"suite_version": None, "scorer_version": None, "sandbox": None}
    return (
        made.settings | rules == wanted.settings | rules
        and made.inputs | {"suite": ""} == wanted.inputs | {"suite": ""}
        and made.stage == wanted.stage
    )


class _Run:
    """One engine under evaluation; it is loaded when the first reply is needed."""

    def __init__(self, options: Options, engine: Engine, *, ask_again: bool = False) -> None:
        self.options, self.engine, self._ask_again = options, engine, ask_again
        self._stores: dict[Sampling, ReplyStore] = {}
        self._model = engine.fingerprint()
        # Of a server, of recorded replies and of a folder that no stage wrote nothing of the kind is known.
        self._made = read_manifest(options.input("quantize")) if engine.name == "local" else None

    def require(self, suite: Suite, cell: Cell, target: Path) -> tuple[EvalSummary, bool]:
        """The summary of a suite, evaluated unless its output is current, and whether it was."""
        recipe = self.recipe(suite, cell)
        if self.is_current(suite, cell, target):
            return read_record(target / "summary.json", EvalSummary), True
        require_disk(target, 0.01, "the replies")
        if needs_scores_alone(target, recipe) and not self._ask_again:
            self._adopt_replies(suite, cell, target)
        with build_artifact(target, recipe, given=self.options.given) as build:
            summary = self.evaluate(suite, cell, build.folder)
            build.facts |= self.engine.facts()
            if self._made is not None:
                build.inherit(self._made)
        return summary, False

    def questions(self, suite: Suite, cell: Cell) -> list[Question]:
        """The suite's queries as they are put to the model."""
        setup, fixes = self.options.preset.model, self.options.fixes
        if cell.system is not None:
            setup = setup.model_copy(update={"system": cell.system})
        cuts = cell.sampling.stop_at_call
        return [
            Question(query.id, case_row(query, setup, fixes), whole=cuts and query.wants_several)
            for query in suite.queries
        ]

    @cached_property
    def _served_as(self) -> dict[str, Any]:
        """What the engine tells of its model beside the fingerprint, before anything is asked."""
        return self.engine.served_as()

    def forget_replies(self, suites: Sequence[Suite]) -> None:
        """Have every query asked again: of all suites, before the first one is asked.

        Where an earlier run was stopped after it had done that, this one goes on with what was left. Raises
        StageError, and forgets nothing, where there is nobody to ask.
        """
        self.engine.load()
        setup = self.options.preset
        cells = [*list_cells(setup)] if setup.eval.is_sweep else [usual_cell(setup)]
        pairs = [(suite, cell) for cell in cells for suite in suites]
        opened = [(self._store(cell), self.questions(suite, cell), cell, suite) for suite, cell in pairs]
        begun = any(store.has_forgotten(asked, cell.sampling.sample) for store, asked, cell, _ in opened)
        if begun and not any(self._find_change(store, asked, cell) for store, asked, cell, _ in opened):
            return
        for store, asked, cell, suite in opened:
            store.forget(asked, cell.sampling.sample)
            store.forget_costs(suite.name)

    def is_current(self, suite: Suite, cell: Cell, target: Path) -> bool:
        """Whether an output needs nothing.

        Raises StageError where it is another evaluation's, or where a server has another model by now.
        """
        recipe, store, asked = self.recipe(suite, cell), self._store(cell), self.questions(suite, cell)
        replaced = self.options.force or self._ask_again or needs_scores_alone(target, recipe)
        current = is_current(target, recipe, force=replaced)
        if told := self._find_change(store, asked, cell):
            raise StageError(
                f"the server has another model under this name ({told}) than when {suite.name} was answered: "
                "--ask-again asks every query anew"
            )
        return current and not store.has_forgotten(asked, cell.sampling.sample)

    def recipe(self, suite: Suite, cell: Cell) -> Recipe:
        """What decides the result on a suite."""
        prompts = [[question.id, question.key] for question in self.questions(suite, cell)]
        return Recipe(
            stage="eval",
            settings={
                "fixes": list(self.options.fixes),
                "suite": suite.name,
                "suite_version": suite.version,
                "scorer_version": SCORER_VERSION,
                "sandbox": describe_sandbox(),
                "dialect": self.options.parser,
                "max_tokens": cell.sampling.max_tokens,
                **cell.settings(),
            },
            inputs={
                "model": self._model,
                "suite": suite.fingerprint,
                "replies": fingerprint_json([GENERATOR_VERSION, prompts]),
            },
        )

    def evaluate(self, suite: Suite, cell: Cell, folder: Path) -> EvalSummary:
        """Replies, scores and summary of one suite, written into `folder`."""
        replies, timing = self._reply(suite, cell)
        with Sandbox() as sandbox:
            run_code = CodeRunner(sandbox)
            scores = score_replies(suite, replies, self.options.parser, run_code)
        summary = summarize_scores(suite, scores, self.options, self.engine.name, timing)
        write_lines(folder / "replies.jsonl", replies)
        write_lines(folder / "scores.jsonl", scores)
        write_lines(folder / "codes.jsonl", run_code.runs)
        write_record(folder / "summary.json", summary)
        return summary

    def _reply(self, suite: Suite, cell: Cell) -> tuple[list[RawReply], Timing]:
        """The replies to a suite: those that an earlier run kept, and of what is left new ones."""
        questions, sampling = self.questions(suite, cell), cell.sampling
        if self.engine.name == "recorded":  # they lie on the disk already
            recorded: list[RawReply] = []
            self.engine.answer(questions, sampling, lambda _, reply: recorded.append(reply), suite.name)
            return recorded, summarize_timing(recorded, self.engine.costs())
        store, draw = self._store(cell), sampling.sample
        left = {question.key: question for question in questions if store.find(question, draw) is None}
        if kept := sum(question.key not in left for question in questions):
            progress.say(f"  {suite.name}: {plural(kept, 'reply')} of an earlier run used again")

        def keep(asked: Question, reply: RawReply) -> None:
            store.keep(asked, draw, reply, self._served_as)
            store.add_costs(suite.name, self.engine.costs())

        if left:
            self.engine.load()
            self.engine.answer([*left.values()], sampling, keep, suite.name)
            self._require_unchanged([*left.values()], draw, store)
        found = [store.find(question, draw) for question in questions]
        replies = [reply for reply in found if reply is not None]
        return replies, summarize_timing(replies, store.read_costs(suite.name))

    def _adopt_replies(self, suite: Suite, cell: Cell, target: Path) -> None:
        """Keep the replies of an output that is about to be scored anew, where they are kept no more."""
        store, draw = self._store(cell), cell.sampling.sample
        made = {reply.id: reply for reply in read_lines(target / "replies.jsonl", RawReply)}
        gone = [q for q in self.questions(suite, cell) if q.id in made and not store.knows(q, draw)]
        if gone and self.engine.name != "recorded":
            for question in gone:
                store.keep(question, draw, made[question.id])
            timing = read_record(target / "summary.json", EvalSummary).timing
            store.add_costs(suite.name, Costs(**timing.model_dump(include=set(Costs.model_fields))))

    def _find_change(self, store: ReplyStore, asked: Sequence[Question], cell: Cell) -> str:
        """What the server tells otherwise of its model than when it gave the kept replies."""
        return store.find_change(asked, cell.sampling.sample, self._served_as)

    def _require_unchanged(self, asked: Sequence[Question], draw: int, store: ReplyStore) -> None:
        """Raise StageError, and keep no reply, where the server changed its model while it was asked."""
        if told := store.find_change(asked, draw, self.engine.served_as()):
            store.forget(asked, draw)
            raise StageError(
                f"the server changed its model while it was asked ({told}): its replies are not used, "
                "the same command asks again"
            )

    def _store(self, cell: Cell) -> ReplyStore:
        """The store of a cell, which other draws and suites share: opened once."""
        shared = replace(cell.sampling, sample=0)
        if shared not in self._stores:
            self._stores[shared] = self._open_store(cell)
        return self._stores[shared]

    def _open_store(self, cell: Cell) -> ReplyStore:
        """The kept replies of this engine and sampling; the prompt and the draw are looked up in it."""
        sampling, setup = cell.sampling, self.options.preset
        key = {
            **self.engine.facts(),
            "model": self._model,
            "generator_version": GENERATOR_VERSION,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "stop_at_call": sampling.stop_at_call and setup.model.dialect,
        }
        return ReplyStore(_store_root(self.options), key)


def _store_root(options: Options) -> Path:
    return artifacts_root() / options.preset.name / "replies"


def _line(summary: EvalSummary) -> str:
    strict = summary.strict
    shown: dict[str, Rate | None] = {"tool or direct": summary.tool_or_direct}
    if strict is not None:
        shown |= {"format": strict.format, "tool": strict.tool, "arguments": strict.arguments}
        shown |= {"code": strict.code, "stop": strict.stop, "whole": strict.whole}
    words = [f"{name} {r.k}/{r.n} ({r.value:.0%})" for name, r in shown.items() if r is not None]
    took = summary.timing.seconds_per_query
    return f"{summary.suite}: {', '.join(words)}" + (f"; {took:.2f} s a query" if took is not None else "")
