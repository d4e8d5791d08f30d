"""The stage: every suite of the plan, one artifact each; of a sweep one for every cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core import progress
from stages.core.cli import Options, Outcome
from stages.core.errors import StageError
from stages.core.suite import Suite, load_suites
from stages.eval.cells import Cell, describe_single_draws, list_cells, usual_cell
from stages.eval.engines import Engine
from stages.eval.engines.choice import choose_engine
from stages.eval.request import Request
from stages.eval.run import Run
from stages.eval.summary import describe_causes, describe_silence, describe_summary
from stages.eval.sweep import describe_sweep, summarize_sweep

NO_REQUEST = Request()


def evaluate(options: Options, request: Request = NO_REQUEST, run: Run | None = None) -> Outcome:
    """Evaluate one arm's model on every suite of its preset, in a run that was opened before, if any."""
    suites = load_suites(options.preset.eval.suites)
    return _carry_out(run or _open_run(options, request), options, suites)


def evaluate_engine(
    options: Options, engine: Engine, suites: Sequence[Suite], *, ask_again: bool = False
) -> Outcome:
    """Put the suites to an engine; as a sweep where the preset asks for one."""
    return _carry_out(Run(options, engine, ask_again=ask_again), options, suites)


def _open_run(options: Options, request: Request) -> Run:
    return Run(options, choose_engine(options, request), ask_again=request.ask_again)


def _carry_out(run: Run, options: Options, suites: Sequence[Suite]) -> Outcome:
    place, cells = find_place(options), plan_cells(options)
    if said := describe_single_draws(options.preset):
        progress.say(f"  {said}")
    outputs = list_outputs(options, suites)
    for output in outputs:  # one that may not be replaced is said before the first query is asked
        run.is_current(*output)
    run.begin(suites, cells)
    results = [run.require(*output) for output in outputs]
    if options.preset.eval.is_sweep:
        lines = describe_sweep(summarize_sweep(place, suites, cells))
    else:
        lines = tuple(
            line for summary, _ in results for line in (describe_summary(summary), *describe_causes(summary))
        )
    odd = describe_silence(place, [folder for _, _, folder in outputs])
    return Outcome(place, up_to_date=all(current for _, current in results), lines=(*lines, *odd))


def needs_nothing(options: Options, request: Request = NO_REQUEST) -> bool:
    """Whether every output is up to date, so that no model is needed.

    Raises StageError for one that another evaluation has made, whatever the others are.
    """
    return _is_current_throughout(_open_run(options, request), options)


def find_current(options: Options, request: Request = NO_REQUEST) -> Run | None:
    """A run that has found every output up to date, for `evaluate`; None where there is something to do.

    Mistakes are left to `evaluate`, which explains them.
    """
    try:
        run = _open_run(options, request)
        return run if _is_current_throughout(run, options) else None
    except StageError:
        return None


def _is_current_throughout(run: Run, options: Options) -> bool:
    outputs = list_outputs(options, load_suites(options.preset.eval.suites))
    current = [run.is_current(*output) for output in outputs]
    return all(current)


def plan_cells(options: Options) -> list[Cell]:
    """All of a sweep, else the usual one."""
    return [*list_cells(options.preset)] if options.preset.eval.is_sweep else [usual_cell(options.preset)]


def find_place(options: Options) -> Path:
    """The folder of all outputs; that of a sweep lies beside the evaluation."""
    usual = options.place("eval")
    if options.out is not None or not options.preset.eval.is_sweep:
        return options.out or usual
    return usual.parents[2] / "sweep" / usual.parent.name / usual.name


def list_outputs(options: Options, suites: Sequence[Suite]) -> list[tuple[Suite, Cell, Path]]:
    """The folder of every suite, in a sweep of every cell of every suite."""
    place, is_sweep = find_place(options), options.preset.eval.is_sweep
    return [
        (suite, cell, place / suite.name / cell.slug if is_sweep else place / suite.name)
        for suite in suites
        for cell in plan_cells(options)
    ]
