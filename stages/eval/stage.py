"""The stage: every suite of the plan, one artifact each; of a sweep one for every cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from stages.core.platform import require_disk
from stages.core.prompts import query_row
from stages.core.records import (
    EvalSummary,
    Rate,
    RawReply,
    Recipe,
    Score,
    Timing,
    read_record,
    write_lines,
    write_record,
)
from stages.core.suite import Suite, load_suites
from stages.core.words import plural
from stages.eval.cells import Cell, list_cells, usual_cell
from stages.eval.clock import summarize_timing
from stages.eval.engines import GENERATOR_VERSION, Engine, Question
from stages.eval.engines.endpoint import Endpoint, check_address
from stages.eval.engines.recorded import Recorded
from stages.eval.engines.transport import Transport
from stages.eval.request import Request
from stages.eval.score import SCORER_VERSION, rate, rates_by_category, score_replies
from stages.eval.store import ReplyStore
from stages.eval.sweep import describe_sweep, summarize_sweep

NO_REQUEST = Request()


def evaluate(options: Options, request: Request = NO_REQUEST) -> Outcome:
    """Evaluate one arm's model on every suite of its preset."""
    suites = load_suites(options.preset.eval.suites)
    return evaluate_engine(options, choose_engine(options, request), suites)


def evaluate_engine(options: Options, engine: Engine, suites: Sequence[Suite]) -> Outcome:
    """Put the suites to an engine; as a sweep where the preset asks for one."""
    run = _Run(options, engine)
    if options.preset.eval.is_sweep:
        return _sweep(run, suites)
    place, cell = options.output("eval"), usual_cell(options.preset)
    results = [run.require(suite, cell, place / suite.name) for suite in suites]
    lines = tuple(_line(summary) for summary, _ in results)
    return Outcome(place, up_to_date=all(current for _, current in results), lines=lines)


def choose_engine(options: Options, request: Request) -> Engine:
    """What answers. Raises StageError when there is no model, and for an address that is none."""
    setup = options.preset
    if request.replies is not None:
        return Recorded(request.replies)
    if request.endpoint is not None:
        transport = Transport(check_address(request.endpoint), request.timeout)
        return Endpoint(transport, setup.model.dialect, request.served_model, request.concurrency)
    folder = options.input("quantize")
    # A folder that fuse did not write has its own template, unless the preset names another.
    foreign = (folder / "config.json").is_file() and read_manifest(folder) is None
    if foreign:
        content = fingerprint_model(folder)
    else:
        content = require_artifact(folder, "quantize", options.advice("quantize"), also=("fuse",)).content
    from stages.eval.engines.local import LocalEngine  # with MLX, which no other engine needs

    own = setup.model if foreign else None
    return LocalEngine(folder, content, setup.eval.completion_batch, setup.model.dialect, own)


def _sweep(run: _Run, suites: Sequence[Suite]) -> Outcome:
    """Every cell on every suite, each an output of its own, and what they say together."""
    options = run.options
    eval_place = options.place("eval")
    place = options.out or eval_place.parents[2] / "sweep" / eval_place.parent.name / eval_place.name
    current = True
    for suite in suites:
        for cell in list_cells(options.preset):
            _, was_current = run.require(suite, cell, place / suite.name / cell.slug)
            current = current and was_current
    sweep = summarize_sweep(place, suites, [*list_cells(options.preset)])
    return Outcome(place, up_to_date=current, lines=describe_sweep(sweep))


class _Run:
    """One engine under evaluation; it is loaded when the first reply is needed."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self.options, self.engine = options, engine
        self._model = engine.fingerprint()

    def require(self, suite: Suite, cell: Cell, target: Path) -> tuple[EvalSummary, bool]:
        """The summary of a suite, evaluated unless its output is current, and whether it was."""
        recipe = self.recipe(suite, cell)
        if is_current(target, recipe, force=self.options.force):
            return read_record(target / "summary.json", EvalSummary), True
        require_disk(target, 0.01, "the replies")
        with build_artifact(target, recipe, given=self.options.given) as build:
            summary = self.evaluate(suite, cell, build.folder)
            build.facts |= self.engine.facts()
        return summary, False

    def questions(self, suite: Suite, cell: Cell) -> list[Question]:
        """The suite's queries as they are put to the model."""
        setup, fixes = self.options.preset.model, self.options.fixes
        if cell.system is not None:
            setup = setup.model_copy(update={"system": cell.system})
        return [Question(query.id, query_row(query.query, setup, fixes)) for query in suite.queries]

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
        scores = score_replies(suite, replies, self.options.parser)
        summary = self._summarize(suite, cell, scores, timing)
        write_lines(folder / "replies.jsonl", replies)
        write_lines(folder / "scores.jsonl", scores)
        write_record(folder / "summary.json", summary)
        return summary

    def _reply(self, suite: Suite, cell: Cell) -> tuple[list[RawReply], Timing]:
        """The replies to a suite: those that an earlier run kept, and of what is left new ones."""
        questions, sampling = self.questions(suite, cell), cell.sampling
        if self.engine.name == "recorded":  # they lie on the disk already
            recorded: list[RawReply] = []
            self.engine.answer(questions, sampling, lambda _, reply: recorded.append(reply), suite.name)
            return recorded, summarize_timing(recorded, self.engine.costs())
        store, draw = self._open_store(cell), sampling.sample
        if self.options.force:
            for question in questions:
                store.forget(question, draw)
        left = {question.key: question for question in questions if store.find(question, draw) is None}
        if kept := sum(question.key not in left for question in questions):
            progress.say(f"  {suite.name}: {plural(kept, 'reply')} of an earlier run used again")
        if left:
            self.engine.load()
            self.engine.answer(
                [*left.values()], sampling, lambda asked, reply: store.keep(asked, draw, reply), suite.name
            )
            store.write_costs(self.engine.costs())
        found = [store.find(question, draw) for question in questions]
        replies = [reply for reply in found if reply is not None]
        return replies, summarize_timing(replies, store.read_costs())

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
        return ReplyStore(artifacts_root() / setup.name / "replies", key)

    def _summarize(self, suite: Suite, cell: Cell, scores: list[Score], timing: Timing) -> EvalSummary:
        options = self.options
        decision = rate(s.strict.decision for s in scores)
        assert decision is not None  # a suite has at least one query
        return EvalSummary(
            scorer_version=SCORER_VERSION,
            model=options.preset.name,
            title=options.preset.title,
            arm=options.arm,
            seed=options.seed,
            suite=suite.name,
            suite_version=suite.version,
            suite_fingerprint=suite.fingerprint,
            dialect=options.parser,
            engine=self.engine.name,
            decision=decision,
            decision_lenient=rate(s.lenient.decision for s in scores),
            tool_queries=rate(s.strict.decision for s in scores if s.kind == "tool"),
            direct_queries=rate(s.strict.decision for s in scores if s.kind == "direct"),
            right_tool=rate(s.strict.tool for s in scores),
            right_tool_lenient=rate(s.lenient.tool for s in scores),
            right_arguments=rate(s.strict.arguments for s in scores),
            right_arguments_lenient=rate(s.lenient.arguments for s in scores),
            clean_calls=rate(s.clean for s in scores),
            runaway=rate(None if cell.sampling.stop_at_call else s.runaway for s in scores),
            by_category=rates_by_category(scores),
            timing=timing,
        )


def _line(summary: EvalSummary) -> str:
    shown: dict[str, Rate | None] = {
        "decision": summary.decision,
        "right tool": summary.right_tool,
        "arguments": summary.right_arguments,
        "clean calls": summary.clean_calls,
        "runaway": summary.runaway,
    }
    words = [f"{name} {r.k}/{r.n} ({r.value:.0%})" for name, r in shown.items() if r is not None]
    took = summary.timing.seconds_per_query
    return f"{summary.suite}: {', '.join(words)}" + (f"; {took:.2f} s a query" if took is not None else "")
