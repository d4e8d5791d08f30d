"""The large model's results, and which of them a candidate's may be compared with."""

from __future__ import annotations

from stages.core.preset import Preset
from stages.report.cells import short_model
from stages.report.pairs import refuse_results
from stages.report.recorded import Recorded
from stages.report.results import Arm, find_arms
from stages.report.verdict import Match, refuse_comparison


def find_reference(preset: Preset, large: Preset) -> Arm | None:
    """The reference model's own fair arm with its lowest seed, when it was measured."""
    if large.name == preset.name:
        return None
    arms = find_arms(large, preset.model.reference)
    return next((arm for arm in arms if arm.options.arm == "fair"), None)


def match_result(arm: Arm, suite: str, reference: Arm | None, recorded: Recorded, large: str) -> Match:
    """An arm's result on a suite beside that of the model `large`: measured, else recorded.

    The problem says why there is none, or why a measured one was passed over.
    """
    mine, name = arm.suites[suite], short_model(large)
    theirs = reference.suites.get(suite) if reference else None
    refused = refuse_results(mine, theirs) if theirs else "none was measured here"
    if theirs and not refused:
        same = mine.machine == theirs.machine
        return Match(
            mine.summary,
            theirs.summary,
            same_machine=same,
            candidate_origin=mine.origin,
            reference_origin=theirs.origin,
        )
    problems = [f"measured: {refused}" if theirs else refused]
    if large == recorded.reference.model:
        problem = refuse_comparison(mine.summary, recorded.reference)
        if not problem:
            passed = f"What was measured here of {name} on suite {suite} does not compare: {refused}."
            return Match(
                mine.summary,
                recorded.reference,
                passed if theirs else "",
                candidate_origin=mine.origin,
                reference_origin="recorded",
            )
        problems.append(f"recorded: {problem}")
    problem = f"No comparable result of {name} on suite {suite}: {'; '.join(problems)}."
    return Match(mine.summary, None, problem, candidate_origin=mine.origin)
