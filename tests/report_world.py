"""An artifacts folder as the stages leave it for a report, and what is read off the pages made of it.

The records are real ones: replies scored by eval's scorer, artifacts as stages build them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stages.core.artifact import build_artifact, fingerprint_json, read_manifest
from stages.core.cli import Options
from stages.core.fixes import FixSet
from stages.core.preset import load_preset
from stages.core.query import Expected, Query
from stages.core.records import (
    AuditReport,
    Finding,
    Given,
    LossPoint,
    RawReply,
    Recipe,
    Timing,
    Verdict,
    write_lines,
    write_record,
)
from stages.core.suite import load_suite
from stages.eval.score import score_replies
from stages.eval.summary import summarize_scores
from stages.report.lineage import MADE_FROM
from stages.report.request import Request
from stages.report.stage import write_reports

DIRECT = "A plain answer."


NASTY = (
    "a | b\n```\n# heading\n| x | y |\n````` \x1b[31mred\x07 \u202eabc "
    "<img src=x> [l](http://e) \\| *b* __i__"
)


QUERIES = [{"id": f"q{i}", "category": "concept", "kind": "direct", "query": "What?"} for i in range(40)]


SHIPPED = load_suite("core20").version
OWN_SUITE = {"name": "core20", "version": SHIPPED, "description": "A suite of that name.", "queries": QUERIES}


def call_for(query: Query) -> str:
    """A Hermes call that the query accepts."""
    accepted = query.accept[0]
    assert isinstance(accepted, Expected)
    values = []
    for name, matcher in accepted.arguments.items():
        best = matcher.any_of[0] if matcher.any_of else matcher
        value = best.exact or best.path or " ".join(best.contains or ()) or "pytest -q"
        values.append(f"{name}={value!r}")
    code = f"result = {accepted.function}({', '.join(values)})"
    arguments = {"name": "execute_code", "arguments": {"code": code}}
    return f"<tool_call>\n{json.dumps(arguments)}\n</tool_call>"


def answer_right(query: Query) -> str:
    return call_for(query) if query.kind == "tool" else DIRECT


class World:
    """An artifacts folder that the tests fill as the stages would."""

    def __init__(self, root: Path) -> None:
        self.reports = root / "reports"
        self.artifacts = root / "artifacts"

    def evaluate(
        self,
        fixes: FixSet,
        answer: Callable[[Query], str],
        *,
        suite: str = "core20",
        model: str = "smol",
        seed: int = 0,
        given: Given | None = None,
        answered_by: str = "",
        **changed: Any,
    ) -> Path:
        """The output of eval for one arm: scored replies and their summary.

        What answered is the output of quantize, if it is there, else another one for every model, or the
        one `answered_by` some name.
        """
        options = Options(load_preset(model), fixes, seed)
        asked = load_suite(suite)
        replies = [
            RawReply(id=q.id, text=answer(q), tokens=20, finish="stop", seconds=0.5) for q in asked.queries
        ]
        scores = score_replies(asked, replies, options.parser)
        timing = Timing(
            load_seconds=0.3, seconds_per_query=0.5, tokens_per_second=40, peak_memory_gb=1.25, disk_gb=0.12
        )
        summary = summarize_scores(asked, scores, options, "local", timing).model_copy(update=changed)
        folder = options.place("eval") / asked.name
        recipe = self.recipe("eval", options)
        if answered_by or not read_manifest(options.place("quantize")):
            recipe.inputs["model"] = fingerprint_json(answered_by or model)
        with build_artifact(folder, recipe, given=given) as build:
            write_lines(build.folder / "replies.jsonl", replies)
            write_lines(build.folder / "scores.jsonl", scores)
            write_record(build.folder / "summary.json", summary)
        return folder

    def audit(
        self, fixes: FixSet, findings: Sequence[Finding] = (), model: str = "smol", **more: Any
    ) -> None:
        """The output of audit for one arm."""
        options = Options(load_preset(model), fixes)
        report = AuditReport(
            model=model, arm=options.arm, checks=["mixed_dialects"], findings=list(findings), **more
        )
        with build_artifact(options.place("audit"), self.recipe("audit", options)) as build:
            write_record(build.folder / "audit.json", report)

    def convert(self, fixes: FixSet, rows: str, given: Given | None = None) -> None:
        """The output of convert_data for one arm."""
        options = Options(load_preset("smol"), fixes)
        recipe = self.recipe("convert_data", options)
        with build_artifact(options.place("convert_data"), recipe, given=given) as build:
            (build.folder / "train.jsonl").write_text(rows, "utf-8")

    def train(self, fixes: FixSet, stop_ids: Sequence[int] = (2,)) -> None:
        """The outputs of train, fuse and quantize for one arm."""
        options = Options(load_preset("smol"), fixes)
        losses = [
            LossPoint(step=step, kind="train", loss=2 / step, tokens_per_second=600, seconds=step)
            for step in range(10, 241, 10)
        ]
        losses += [
            LossPoint(step=step, kind="valid", loss=loss, tokens_per_second=None, seconds=step)
            for step, loss in ((0, 2.5), (80, 0.42), (160, 0.34), (240, 0.26))
        ]
        with build_artifact(options.place("train"), self.recipe("train", options)) as build:
            write_lines(build.folder / "log.jsonl", losses)
            build.facts |= {
                "steps": 240,
                "train_seconds": 240.0,
                "rows": 685,
                "device_peak_gb": 3.5,
            }
            build.seed, build.template, build.stop_ids = options.seed, "0123456789abcdef", [2]
        self.fuse(fixes, stop_ids)
        self.quantize(fixes, 6 if "six_bit" in fixes else 5)

    def fuse(self, fixes: FixSet, stop_ids: Sequence[int], weights: str = "w") -> None:
        """The output of fuse for one arm."""
        options = Options(load_preset("smol"), fixes)
        with build_artifact(options.place("fuse"), self.recipe("fuse", options)) as build:
            (build.folder / "config.json").write_text(json.dumps([list(stop_ids), weights]), "utf-8")
            build.template, build.stop_ids = "0123456789abcdef", list(stop_ids)

    def quantize(self, fixes: FixSet, bits: int, change: dict[str, dict[str, float]] | None = None) -> None:
        """The output of quantize for one arm."""
        options = Options(load_preset("smol"), fixes)
        with build_artifact(options.place("quantize"), self.recipe("quantize", options, bits=bits)) as build:
            (build.folder / "config.json").write_text(json.dumps({"bits": bits}), "utf-8")
            build.facts |= {"change": change} if change else {}

    @staticmethod
    def recipe(stage: str, options: Options, **settings: Any) -> Recipe:
        """A recipe with the output upstream that is there, as the stage itself would name it."""
        inputs = {"data": "d" * 64, "model": "b" * 64}
        if stage in MADE_FROM:
            role, upstream = MADE_FROM[stage]
            made = read_manifest(options.place(upstream))
            inputs[role] = made.content if made else "d" * 64
        return Recipe(stage=stage, settings={"fixes": list(options.fixes), **settings}, inputs=inputs)

    def write(self, model: str | None = "smol", **request: Any) -> dict[str, Verdict]:
        return write_reports(Request(model=model, out=self.reports, **request))

    def page(self, name: str = "smol") -> str:
        return (self.reports / f"{name}.md").read_text("utf-8")


def write_suite(path: Path, **changed: Any) -> str:
    path.write_text(json.dumps(OWN_SUITE | changed), "utf-8")
    return str(path)


def next_commands(page: str) -> list[str]:
    """The commands of the line that says what to do next."""
    (line,) = [line for line in page.splitlines() if line.startswith("Next: ")]
    return re.findall("(?<!`)`([^`]+)`", line)


def table_rows(page: str) -> list[list[str]]:
    """The cells of every row of every table, headers among them."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def check_tables(page: str) -> int:
    """Every row of every table has as many cells as its header; returns the number of rows outside fences."""
    width, rows, fence = 0, 0, ""
    for line in page.splitlines():
        if fence or line.startswith("```"):
            marks = line[: len(line) - len(line.lstrip("`"))]
            if not fence:
                fence = marks
            elif line.strip("`") == "" and len(line) >= len(fence):
                fence = ""
            continue
        if not line.startswith("|"):
            width = 0
            continue
        width = width or line.count("|")
        assert line.count("|") == width, line
        assert line.endswith("|"), line
        rows += 1
    assert not fence, "a fence was left open"
    return rows
