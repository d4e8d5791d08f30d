"""What decides a result on a suite: the model, the prompts, and what counts as right."""

from __future__ import annotations

from pathlib import Path

from stages.core.artifact import fingerprint_json, read_manifest
from stages.core.cli import Options
from stages.core.prompts import case_row
from stages.core.records import Recipe
from stages.core.suite import Suite
from stages.eval.cells import Cell
from stages.eval.engines import GENERATOR_VERSION, Question
from stages.eval.sandbox import describe_sandbox
from stages.eval.score import SCORER_VERSION


def write_questions(options: Options, suite: Suite, cell: Cell) -> list[Question]:
    """The suite's queries as they are put to the model."""
    setup = options.preset.model
    if cell.system is not None:
        setup = setup.model_copy(update={"system": cell.system})
    cuts = cell.sampling.stop_at_call
    return [
        Question(query.id, case_row(query, setup, options.fixes), whole=cuts and query.wants_several)
        for query in suite.queries
    ]


def make_recipe(options: Options, model: str, suite: Suite, cell: Cell) -> Recipe:
    """The recipe of a suite's output; `model` is the engine's fingerprint."""
    prompts = [[question.id, question.key] for question in write_questions(options, suite, cell)]
    return Recipe(
        stage="eval",
        settings={
            "fixes": list(options.fixes),
            "suite": suite.name,
            "suite_version": suite.version,
            "scorer_version": SCORER_VERSION,
            "sandbox": describe_sandbox(),
            "dialect": options.parser,
            "max_tokens": cell.sampling.max_tokens,
            **cell.settings(),
        },
        inputs={
            "model": model,
            "suite": suite.fingerprint,
            "replies": fingerprint_json([GENERATOR_VERSION, prompts]),
        },
    )


def needs_scores_alone(folder: Path, wanted: Recipe) -> bool:
    """Whether an output differs from what is wanted in nothing but what counts as right.

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
