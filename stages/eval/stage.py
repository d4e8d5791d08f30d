"""The stage: every suite of the plan, one artifact each."""

from __future__ import annotations

import time
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
from stages.core.cli import Options, Outcome
from stages.core.compute import device_peak_gb
from stages.core.platform import folder_size_gb, peak_memory_gb, require_disk
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
from stages.core.tokenizer import template_source
from stages.eval.generate import GENERATOR_VERSION, Engine
from stages.eval.score import SCORER_VERSION, score_replies
from stages.eval.summary import read_timing, summarize_scores


def evaluate(options: Options) -> Outcome:
    """Evaluate one arm's model on every suite of its preset."""
    run = _Run(options)
    place = options.output("eval")
    current, lines = True, []
    for suite in load_suites(options.preset.eval.suites):
        target, recipe = place / suite.name, run.recipe(suite)
        if not is_current(target, recipe, force=options.force or needs_scores_alone(target, recipe)):
            current = False
            require_disk(target, 0.01, "the replies")
            with build_artifact(target, recipe, given=options.given) as build:
                summary = run.evaluate(suite, build.folder, target)
                build.facts |= {"generation": run.generation(suite)}
        else:
            summary = read_record(target / "summary.json", EvalSummary)
        lines.append(_line(summary))
    return Outcome(place, up_to_date=current, lines=tuple(lines))


def needs_scores_alone(folder: Path, wanted: Recipe) -> bool:
    """Whether a result differs from what is wanted in nothing but what counts as right.

    Its replies are kept then and scored again, which loses nothing that could not be made once more.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.recipe == wanted:
        return False
    made, rules = manifest.recipe, {"suite_version": None, "scorer_version": None}
    return (
        made.settings | rules == wanted.settings | rules
        and made.inputs | {"suite": ""} == wanted.inputs | {"suite": ""}
        and made.stage == wanted.stage
    )


class _Run:
    """One model under evaluation; it is loaded when the first reply is needed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = options.input("quantize")
        # A folder that fuse did not write has its own template, unless the preset names another.
        self._foreign = (self.folder / "config.json").is_file() and read_manifest(self.folder) is None
        if self._foreign:
            self.content = fingerprint_model(self.folder)
        else:
            command = options.advice("quantize")
            self.content = require_artifact(self.folder, "quantize", command, also=("fuse",)).content
        self._engine: Engine | None = None

    def generation(self, suite: Suite) -> str:
        """Fingerprint of all that decides the raw replies; parser and scorer are not part of it."""
        setup, fixes = self.options.preset.model, self.options.fixes
        return fingerprint_json(
            {
                "model": self.content,
                "version": GENERATOR_VERSION,
                "chat template": template_source(setup) if self._foreign else "of the model",
                "prompts": [[query.id, case_row(query, setup, fixes)] for query in suite.queries],
                "max_tokens": self.options.preset.eval.max_tokens,
            }
        )

    def recipe(self, suite: Suite) -> Recipe:
        """What decides the result on a suite."""
        return Recipe(
            stage="eval",
            settings={
                "fixes": list(self.options.fixes),
                "suite": suite.name,
                "suite_version": suite.version,
                "scorer_version": SCORER_VERSION,
                "dialect": self.options.parser,
                "max_tokens": self.options.preset.eval.max_tokens,
            },
            inputs={
                "model": self.content,
                "suite": suite.fingerprint,
                "replies": self.generation(suite),
            },
        )

    def evaluate(self, suite: Suite, folder: Path, target: Path) -> EvalSummary:
        """Replies, scores and summary of one suite, written into `folder`, which becomes `target`."""
        replies, timing = self._earlier_replies(suite, target) or self._new_replies(suite)
        scores = score_replies(suite, replies, self.options.parser)
        summary = summarize_scores(suite, scores, self.options, timing)
        write_lines(folder / "replies.jsonl", replies)
        write_lines(folder / "scores.jsonl", scores)
        write_record(folder / "summary.json", summary)
        return summary

    def _earlier_replies(self, suite: Suite, target: Path) -> tuple[list[RawReply], Timing] | None:
        """The replies kept here, or of another arm that asked the same model the same, if there are any."""
        if self.options.force:
            return None
        wanted = self.generation(suite)
        arms = sorted(self.options.place("eval").parents[1].glob(f"*/*/{suite.name}/manifest.json"))
        for folder in (target, *(path.parent for path in arms)):
            manifest = read_manifest(folder)
            if manifest is not None and manifest.facts.get("generation") == wanted:
                progress.say(f"  {suite.name}: the replies in {folder} are scored again")
                return read_lines(folder / "replies.jsonl", RawReply), read_timing(folder)
        return None

    def _new_replies(self, suite: Suite) -> tuple[list[RawReply], Timing]:
        if self._engine is None:
            self._engine = Engine.load(self.folder, self.options.preset.model if self._foreign else None)
        setup, fixes = self.options.preset.model, self.options.fixes
        rows: list[dict[str, Any]] = [case_row(query, setup, fixes) for query in suite.queries]
        started = time.perf_counter()
        ids = [query.id for query in suite.queries]
        replies = self._engine.answer(rows, ids, self.options.preset.eval, suite.name)
        seconds = time.perf_counter() - started
        generated = sum(reply.tokens for reply in replies)
        return replies, Timing(
            load_seconds=round(self._engine.load_seconds, 3),
            seconds_per_query=round(seconds / len(replies), 4),
            tokens_per_second=round(generated / seconds, 2),
            generated_tokens=generated,
            peak_memory_gb=max(peak_memory_gb(), device_peak_gb()),
            disk_gb=folder_size_gb(self.folder),
        )


def _line(summary: EvalSummary) -> str:
    strict = summary.strict
    shown: dict[str, Rate | None] = {"tool or direct": summary.tool_or_direct}
    if strict is not None:
        shown |= {"format": strict.format, "tool": strict.tool, "arguments": strict.arguments}
        shown |= {"code": strict.code, "stop": strict.stop, "whole": strict.whole}
    words = [f"{name} {r.k}/{r.n} ({r.value:.0%})" for name, r in shown.items() if r is not None]
    return f"{summary.suite}: {', '.join(words)}; {summary.timing.seconds_per_query:.2f} s a query"
