"""The stage: for each report its records, its verdict, its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core import progress
from stages.core.errors import StageError
from stages.core.preset import Preset, preset_names
from stages.core.records import Verdict, write_record
from stages.report.arms import describe_arms, write_arm_categories, write_arms, write_findings
from stages.report.cells import plain, short_model, table
from stages.report.commands import retest_command
from stages.report.comparison import describe_costs, write_categories, write_comparison
from stages.report.failures import write_failures
from stages.report.opening import describe_rule, name_answer, write_matrix, write_verdict
from stages.report.provenance import write_provenance, write_recorded_provenance
from stages.report.recorded import FIRST_EXPERIMENT, Recorded, RecordedFlaw, load_recorded
from stages.report.results import (
    Arm,
    choose_arm,
    evaluated_models,
    find_arms,
    load_model_preset,
    require_audit,
)
from stages.report.training import write_recorded_training, write_training
from stages.report.verdict import Match, choose_match, reach_verdict, refuse_comparison

MOST_RUNAWAYS = 0.1  # share of a suite; the embedded model, trained fairly, stays below 0.01


@dataclass(frozen=True)
class Request:
    """What was asked for; None means all models, the default arm, any seed, the preset's reference."""

    model: str | None = None
    fixes: str | None = None
    seed: int | None = None
    reference: str | None = None
    out: Path = Path("reports")


def write_reports(request: Request) -> dict[str, Verdict]:
    """Write one report, or all there are; returns the verdicts by the reports' names.

    Without a model a report that cannot be written stops no other one: its StageError comes last.
    """
    if request.model is not None:
        verdict = report_model(load_model_preset(request.model, request.reference), request)
        return {verdict.report: verdict}
    written, problems = {FIRST_EXPERIMENT: report_recorded(request.out)}, []
    for name in evaluated_models():
        if name not in preset_names():
            progress.say(
                f"  {name}: not one of our presets; name it with --model FILE.toml or --model FOLDER"
            )
            continue
        try:
            written[name] = report_model(load_model_preset(name, request.reference), request)
        except StageError as error:
            problems.append(str(error))
    if problems:
        raise StageError("; ".join(problems))
    return written


def find_runaways(arm: Arm) -> list[str]:
    """The suites on which more replies ran into the token limit than a working set-up lets."""
    rates = {name: result.summary.runaway for name, result in arm.suites.items()}
    return [
        f"{rate.k} of {rate.n} replies on {name} ran into the token limit: nothing ends them"
        for name, rate in rates.items()
        if rate is not None and rate.value > MOST_RUNAWAYS
    ]


def report_model(preset: Preset, request: Request) -> Verdict:
    """The report of one measured model. Raises StageError when something upstream is missing."""
    arms, recorded = find_arms(preset, request.model), load_recorded()
    arm = choose_arm(arms, preset, request.fixes, request.seed, request.model)
    flaws = [f"{arm.label}: {finding.message}" for finding in require_audit(arm).critical]
    flaws += [f"{arm.label}: {problem}" for problem in find_runaways(arm)]
    reference = find_reference(preset)
    matches = [match_result(arm, suite, reference, recorded, preset) for suite in arm.suites]
    match = choose_match(matches)
    measured = reference if match.reference and match.reference.source == "measured" else None
    if measured and measured.audit:
        flaws += [f"reference, {measured.label}: {finding.message}" for finding in measured.audit.critical]
    verdict = reach_verdict(preset.name, match, flaws, arm.options.seed)
    small, large = short_model(preset.name), short_model(preset.model.reference)
    again = retest_command(request.model or preset.name)
    page = [
        f"# {plain(small)}: {plain(match.candidate.title)}, {arm.label} arm",
        write_verdict(verdict, [describe_arms(arms), describe_costs(match)], large, again),
        write_matrix(verdict, large),
        write_comparison(match, small, large),
        *[
            f"Suite {plain(m.candidate.suite)} is not compared: {plain(m.problem)}"
            for m in matches
            if m.problem
        ],
        write_arms(arms),
        write_arm_categories(arms),
        write_findings(arms),
        write_training(arms),
        write_failures(arm, match.candidate.suite),
        write_provenance(arms, match, measured, recorded),
    ]
    return save_report(request.out, verdict, page, large)


def report_recorded(out: Path) -> Verdict:
    """The report of the first experiment, from its published figures."""
    recorded = load_recorded()
    match = Match(recorded.candidate, recorded.reference)
    flaws = [describe_flaw(flaw) for flaw in recorded.flaws if flaw.number]
    verdict = reach_verdict(recorded.name, match, flaws, None)
    small, large = short_model(recorded.candidate.model), short_model(recorded.reference.model)
    again = retest_command(recorded.candidate.model)
    page = [
        f"# First experiment: {recorded.title}",
        f"All figures here are {recorded.source}.",
        write_verdict(verdict, [describe_costs(match)], large, again),
        write_matrix(verdict, large),
        write_comparison(match, small, large),
        "## By category\n\n" + write_categories({small: recorded.candidate, large: recorded.reference}),
        _write_flaws(recorded),
        write_recorded_training(recorded.training),
        write_recorded_provenance(recorded),
    ]
    return save_report(out, verdict, page, large)


def describe_flaw(flaw: RecordedFlaw) -> str:
    """One published flaw as a reason."""
    count = f" ({flaw.count} of {flaw.total} rows)" if flaw.count is not None else ""
    return f"Flaw {flaw.number}, {flaw.severity}: {flaw.title}{count}."


def find_reference(preset: Preset) -> Arm | None:
    """The reference model's own fair arm with its lowest seed, when it was measured."""
    reference = load_model_preset(preset.model.reference, None)
    if reference.name == preset.name:
        return None
    arms = find_arms(reference, preset.model.reference)
    return next((arm for arm in arms if arm.options.arm == "fair"), None)


def match_result(arm: Arm, suite: str, reference: Arm | None, recorded: Recorded, preset: Preset) -> Match:
    """An arm's result on a suite beside the measured reference, else beside the recorded 30B."""
    candidate = arm.suites[suite].summary
    others = [reference.suites[suite].summary] if reference and suite in reference.suites else []
    problems = []
    for other in [*others, recorded.reference]:
        problem = refuse_comparison(candidate, other)
        if not problem:
            return Match(candidate, other)
        problems.append(f"{problem} ({other.source})")
    command = retest_command(preset.model.reference, "fair")
    return Match(candidate, None, f"no comparable reference, {'; '.join(problems)}: run {command}.")


def save_report(out: Path, verdict: Verdict, page: Sequence[str], large: str) -> Verdict:
    """Write both files, each whole or not at all, and say the verdict."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{verdict.report}.md"
    partial = out / f".{verdict.report}.md.partial"
    partial.write_text("\n\n".join(part for part in page if part) + "\n", "utf-8")
    partial.replace(target)
    write_record(out / f"{verdict.report}.json", verdict)
    answer = name_answer(verdict.supported_answer, large) + (f" ({verdict.cause})" if verdict.cause else "")
    progress.say(f"  {verdict.report}: {describe_rule(verdict, large)}")
    progress.say(f"  {verdict.report}: verdict {answer}, report {target}")
    return verdict


def _write_flaws(recorded: Recorded) -> str:
    rows = [
        [
            str(flaw.number or "–"),
            flaw.severity,
            plain(flaw.title),
            f"{flaw.count} of {flaw.total} rows" if flaw.count is not None else "–",
            plain(flaw.detail),
            f"`{flaw.repaired_by}`",
        ]
        for flaw in recorded.flaws
    ]
    return "## Flaws of the set-up\n\n" + table(
        ["flaw", "severity", "what", "count", "detail", "repaired by"], rows
    )
