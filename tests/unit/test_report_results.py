"""The records that a report reads: what is missing, broken or contradicts itself is one line."""

from __future__ import annotations

import json

import pytest

from stages.core.artifact import build_artifact
from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.fixes import FAIR
from stages.core.preset import load_preset
from stages.core.records import AuditReport, EvalSummary, RawReply, read_lines, read_record, write_record
from tests.report_world import World, answer_right


def test_missing_upstream_is_one_line_with_the_command(world: World) -> None:
    with pytest.raises(StageError, match=r"no evaluation of smol, arm fair: run nox -s eval -- --model smol"):
        world.write()
    folder = world.evaluate(FAIR, answer_right)
    with pytest.raises(StageError, match=r"no audit of smol, arm fair: run nox -s audit -- --model smol"):
        world.write()
    world.audit(FAIR)
    world.write()
    assert "No training log here; it would come from `nox -s train -- --model smol" in world.page()
    with pytest.raises(
        StageError, match="arm flawed: run nox -s eval -- --model smol --fixes flawed --seed 4"
    ):
        world.write(fixes="flawed", seed=4)
    (folder / "scores.jsonl").unlink()
    with pytest.raises(StageError, match=r"lacks scores\.jsonl: run nox -s eval"):
        world.write()


def test_an_audit_of_another_arm_does_not_count(world: World) -> None:
    world.evaluate(FAIR, answer_right)
    place = Options(load_preset("smol"), FAIR).place("audit")
    other = AuditReport(model="smol", arm="json+tools", checks=[], findings=[])
    with build_artifact(place, world.recipe("audit", Options(load_preset("smol"), FAIR))) as build:
        write_record(build.folder / "audit.json", other)
    with pytest.raises(StageError, match="no audit of smol, arm fair"):
        world.write()


def test_a_result_of_another_version_is_scored_anew(two_arms: World) -> None:
    place = Options(load_preset("smol"), FAIR).place("eval") / "core20" / "summary.json"
    data = json.loads(place.read_text("utf-8"))
    data["decision"] = data.pop("tool_or_direct")
    place.write_text(json.dumps(data), "utf-8")
    with pytest.raises(StageError, match=r"run nox -s eval again, which scores the kept replies anew$"):
        two_arms.write()


def test_a_summary_that_its_scores_deny_is_refused(two_arms: World) -> None:
    place = Options(load_preset("smol"), FAIR).place("eval") / "core20"
    summary = read_record(place / "summary.json", EvalSummary)
    wrong = summary.tool_or_direct.model_copy(update={"k": 12})
    write_record(place / "summary.json", summary.model_copy(update={"tool_or_direct": wrong}))
    with pytest.raises(StageError, match="the summary says 12 of 20, the scores say 20 of 20"):
        two_arms.write()


def test_a_broken_line_is_named(two_arms: World) -> None:
    replies = Options(load_preset("smol"), FAIR).place("eval") / "core20" / "replies.jsonl"
    assert len(read_lines(replies, RawReply)) == 20
    replies.write_bytes(replies.read_bytes() + b'{"id": 1\n')
    with pytest.raises(StageError, match=r"replies\.jsonl:21 is not valid: "):
        two_arms.write()
