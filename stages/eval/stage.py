"""The stage: every suite of the plan, one artifact each; of a sweep one for every cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core.cli import Options, Outcome
from stages.core.errors import StageError
from stages.core.suite import Suite, load_suites
from stages.eval.cells import Cell, list_cells, usual_cell
from stages.eval.engines import Engine
from stages.eval.engines.choice import choose_engine
from stages.eval.request import Request
from stages.eval.run import Run
from stages.eval.summary import describe_summary
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
    run = Run(options, engine, ask_again=ask_again)
    if options.preset.eval.is_sweep:
        cells = [*list_cells(options.preset)]
        run.begin(suites, cells)
        return _sweep(run, suites, cells, _sweep_place(options))
    cell = usual_cell(options.preset)
    run.begin(suites, [cell])
    return _evaluate_once(run, suites, cell, options.output("eval"))


def is_current_throughout(options: Options, request: Request = NO_REQUEST) -> bool:
    """Whether every output is up to date, so that no model is needed; mistakes are left to `evaluate`."""
    if options.preset.eval.is_sweep or request.ask_again:
        return False
    try:
        suites = load_suites(options.preset.eval.suites)
        run, cell = Run(options, choose_engine(options, request)), usual_cell(options.preset)
        place = options.output("eval")
        return all(run.is_current(suite, cell, place / suite.name) for suite in suites)
    except StageError:
        return False


def _evaluate_once(run: Run, suites: Sequence[Suite], cell: Cell, place: Path) -> Outcome:
    """Each suite, an output of its own."""
    results = [run.require(suite, cell, place / suite.name) for suite in suites]
    lines = tuple(describe_summary(summary) for summary, _ in results)
    return Outcome(place, up_to_date=all(current for _, current in results), lines=lines)


def _sweep(run: Run, suites: Sequence[Suite], cells: Sequence[Cell], place: Path) -> Outcome:
    """Every cell on every suite, each an output of its own, and what they say together."""
    pairs = [(suite, cell) for suite in suites for cell in cells]
    results = [run.require(suite, cell, place / suite.name / cell.slug) for suite, cell in pairs]
    sweep = summarize_sweep(place, suites, cells)
    current = all(was_current for _, was_current in results)
    return Outcome(place, up_to_date=current, lines=describe_sweep(sweep))


def _sweep_place(options: Options) -> Path:
    """`--out`, or beside the usual evaluation."""
    usual = options.place("eval")
    return options.out or usual.parents[2] / "sweep" / usual.parent.name / usual.name
