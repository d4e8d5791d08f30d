"""One engine under evaluation: an output for every suite and cell that is put to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.core import progress
from stages.core.artifact import build_artifact, is_current, read_manifest, refuse_busy, require_artifact
from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.evaluation import REPLIES, SCORES, SUMMARY, read_evaluation
from stages.core.platform import require_disk
from stages.core.records import EvalSummary, Recipe, write_lines, write_record
from stages.core.suite import Suite
from stages.eval.cells import Cell
from stages.eval.engines import Engine
from stages.eval.recipe import make_recipe, needs_scores_alone
from stages.eval.replies import Replies
from stages.eval.sandbox import CodeRunner, Sandbox
from stages.eval.score import score_replies
from stages.eval.summary import summarize_scores


class Run:
    """An engine and the options of a run; the engine is loaded when the first reply is needed."""

    def __init__(self, options: Options, engine: Engine, *, ask_again: bool = False) -> None:
        self._options, self._engine, self._ask_again = options, engine, ask_again
        self._model = engine.fingerprint()
        self._replies = Replies(options, engine, self._model)
        self._current: dict[Path, EvalSummary] = {}
        """Of the outputs that were found up to date, for which all of their files are read and hashed."""
        # Of a server, of recorded replies and of a folder that no stage wrote nothing of the kind is known.
        self._made = read_manifest(options.input("quantize")) if engine.name == "local" else None

    def begin(self, suites: Sequence[Suite], cells: Sequence[Cell]) -> None:
        """Forget what is kept, where every query is to be asked again."""
        if self._ask_again:
            self._replies.forget(suites, cells)

    def require(self, suite: Suite, cell: Cell, target: Path) -> tuple[EvalSummary, bool]:
        """The summary of a suite, evaluated unless its output is current, and whether it was."""
        if self.is_current(suite, cell, target):
            self._replies.say_doubt(suite, cell)
            return self._current[target], True
        recipe = make_recipe(self._options, self._model, suite, cell)
        require_disk(target, 0.01, "keeping the replies")
        self._keep_replies(suite, cell, target, recipe)
        with build_artifact(target, recipe, given=self._options.given) as build:
            summary = self._evaluate(suite, cell, build.folder)
            build.facts |= self._engine.facts()
            if self._made is not None:
                build.inherit(self._made)
        return summary, False

    def is_current(self, suite: Suite, cell: Cell, target: Path) -> bool:
        """Whether an output needs nothing.

        Raises StageError where it is another evaluation's, where another process is writing it, where a
        server has another model by now, or where its files are not as they were written.
        """
        if target in self._current:
            return True
        recipe = make_recipe(self._options, self._model, suite, cell)
        replaced = self._options.force or self._ask_again or needs_scores_alone(target, recipe)
        current = is_current(target, recipe, force=replaced)
        if not self._ask_again and (told := self._replies.find_change(suite, cell)):
            raise StageError(
                f"the server has another model under this name ({told}) than when {suite.name} was answered: "
                "--ask-again asks every query anew"
            )
        if current and not self._replies.has_forgotten(suite, cell):
            self._current[target] = _read_summary(target)
            return True
        refuse_busy(target, recipe, force=True)  # what is unfinished is not gone on with
        return False

    def _keep_replies(self, suite: Suite, cell: Cell, target: Path, recipe: Recipe) -> None:
        """Keep the replies of an output that is scored anew. Damaged ones are a StageError, unless forced."""
        try:
            if not self._ask_again and needs_scores_alone(target, recipe):
                self._replies.adopt(suite, cell, target)
        except StageError as error:
            if not self._options.force:
                raise StageError(f"{error}: --force asks anew what is kept nowhere else") from None

    def _evaluate(self, suite: Suite, cell: Cell, folder: Path) -> EvalSummary:
        """Replies, scores and summary of one suite, written into `folder`."""
        replies, timing = self._replies.collect(suite, cell)
        with Sandbox() as sandbox, progress.bar(f"{suite.name}, scoring", len(replies), "replies") as bar:
            run_code = CodeRunner(sandbox)
            scores = score_replies(suite, replies, self._options.parser, run_code, bar.advance)
        summary = summarize_scores(suite, scores, self._options, self._engine.name, timing)
        write_lines(folder / REPLIES, replies)
        write_lines(folder / SCORES, scores)
        write_lines(folder / "codes.jsonl", run_code.runs)
        write_record(folder / SUMMARY, summary)
        return summary


def _read_summary(folder: Path) -> EvalSummary:
    try:
        made = require_artifact(folder, "eval", "nox -s eval", whole=False)
        return read_evaluation(folder, made).summary
    except StageError as error:
        raise StageError(f"{error}: make it again of the kept replies with --force") from None
