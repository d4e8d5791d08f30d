"""The stage: for each report its records, its verdict, its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

from stages.core import progress
from stages.core.cli import Options, artifacts_root
from stages.core.errors import StageError
from stages.core.fixes import FAIR
from stages.core.pages import ForeignFiles, plot_name, sign_verdict
from stages.core.preset import Preset, preset_names
from stages.core.records import Verdict
from stages.report.arms import (
    describe_arms,
    describe_calls,
    list_refusals,
    write_findings,
    write_fixes,
    write_suites,
)
from stages.report.cells import cut, plain, short_model, table
from stages.report.commands import retest_command
from stages.report.comparison import describe_costs, write_categories, write_results
from stages.report.failures import write_failures
from stages.report.flaws import (
    find_caveats,
    find_constants,
    find_faults,
    find_flaws,
    find_same_replies,
    find_self_comparison,
    find_unaudited,
    lacks_audit,
)
from stages.report.opening import (
    describe_rule,
    explain_answer,
    name_answer,
    write_matrix,
    write_verdict,
)
from stages.report.pages import save_page
from stages.report.plot import draw_losses
from stages.report.provenance import write_provenance, write_recorded_provenance
from stages.report.quantizing import write_quantizing
from stages.report.recorded import FIRST_EXPERIMENT, Recorded, RecordedFlaw, load_recorded
from stages.report.reference import find_reference, match_result
from stages.report.request import Request
from stages.report.results import (
    Arm,
    choose_arm,
    evaluated_models,
    find_arms,
    is_reference_alone,
    load_model_preset,
    require_audit,
)
from stages.report.seeds import answer_seeds, depends_on_seed, describe_seeds, sort_seeds, write_spread
from stages.report.steps import Steps, ask_anew, plan_steps
from stages.report.training import list_losses, write_recorded_training, write_training
from stages.report.verdict import Match, choose_match, reach_verdict


def write_reports(request: Request) -> dict[str, Verdict]:
    """Write one report, or all there are; returns the verdicts by the reports' names.

    Without a model a report that cannot be written stops no other one: its StageError comes last.
    """
    if request.model is not None:
        verdict = report_model(load_model_preset(request.model, request.reference), request)
        return {verdict.report: verdict}
    written, foreign, problems = {}, list[Path](), list[str]()
    models = evaluated_models()
    if not models:
        progress.say(f"  no evaluation in {artifacts_root()}: the first experiment alone")
    for name in [FIRST_EXPERIMENT, *models]:
        try:
            if passed := _pass_over(name):
                progress.say(f"  {name}: {passed}")
            else:
                written[name] = _write_report(name, request)
        except ForeignFiles as error:
            foreign += error.paths
        except StageError as error:
            problems.append(str(error))
    problems += [str(ForeignFiles(foreign))] if foreign else []
    if problems:
        raise StageError("; ".join(problems))
    return written


def _pass_over(name: str) -> str:
    """Why an evaluated model that nobody asked for by its name has no report; empty where it has one."""
    if name == FIRST_EXPERIMENT:
        return ""
    if name not in preset_names():
        return "not one of our presets; name it with --model FILE.toml or --model FOLDER"
    if is_reference_alone(name):
        return (
            "a reference and no candidate, so it has no report of its own: its replies came from a server "
            "or a file, and nothing of it was audited"
        )
    return ""


def _write_report(name: str, request: Request) -> Verdict:
    if name == FIRST_EXPERIMENT:
        return report_recorded(request)
    return report_model(load_model_preset(name, request.reference), request)


def report_model(preset: Preset, request: Request) -> Verdict:
    """The report of one measured model. Raises StageError when something upstream is missing."""
    arms, recorded = find_arms(preset, request.model), load_recorded()
    arm = choose_arm(arms, preset, request)
    large_preset = load_model_preset(preset.model.reference, None)
    reference = find_reference(preset, large_preset)
    small, large = plain(short_model(preset.name)), plain(short_model(large_preset.name))
    found = {suite: match_result(arm, suite, reference, recorded, large_preset.name) for suite in arm.suites}
    match = choose_match([*found.values()])
    matches = {match.candidate.suite: match, **found}  # the one that decides comes first
    suite = match.candidate.suite

    # Without any reference no suite decides: each one's reason counts.
    passed_over = [] if match.reference else [m.problem for m in found.values() if m is not match]

    def reach(seed: Arm) -> Verdict:
        theirs = match_result(seed, suite, reference, recorded, large_preset.name)
        problems = [*find_flaws(seed), *find_faults(reference, theirs)]
        one = find_self_comparison(seed, reference, theirs)
        problems += one
        caveats = [] if one else find_same_replies(seed, reference, theirs)
        caveats += [*find_constants(seed, reference, theirs), *find_unaudited(seed, suite)]
        caveats += [*find_caveats(theirs), *passed_over]
        return reach_verdict(preset.name, theirs, problems, seed.options.seed, caveats)

    same, _ = sort_seeds(arm, arms, suite)
    verdict = reach(arm).model_copy(update={"seeds": answer_seeds(same, reach)})
    steps = plan_steps(request, arms, same, large_preset, reference, matches.values())
    steps = replace(steps, repeat=_choose_repair(arm, reference, match, steps, request))
    asides = [
        describe_seeds(verdict, large),
        describe_arms(arms),
        describe_calls(arm),
        describe_costs(match),
    ]
    page = [
        f"# {small}: {plain(cut(match.candidate.title))}, {arm.label} arm",
        write_verdict(verdict, asides, small, large, steps),
        write_matrix(verdict, large),
        write_suites(arms, matches, arm, large),
        write_spread(arms, [*matches], steps.seeds),
        write_fixes(arms),
        write_findings(arms),
        write_training(arms, plot_name(preset.name)),
        write_quantizing(arms),
        write_failures(arm, suite),
        write_provenance(arms, [*matches.values()], reference, recorded),
    ]
    losses = list_losses(arms)
    plot = draw_losses(losses) if losses else None
    saved = save_report(request, verdict, page, short_model(large_preset.name), plot)
    for line in [*passed_over, *list_refusals(arms)]:
        progress.say(f"  {verdict.report}: {line}")
    return saved


def _choose_repair(arm: Arm, reference: Arm | None, match: Match, steps: Steps, request: Request) -> str:
    """The command that mends a flawed set-up; to an arm that lacks fixes these come first."""
    if arm.options.fixes != FAIR:
        return steps.repeat
    if reference and find_faults(reference, match) and not find_flaws(arm):
        return _repair(reference, match, request)
    if find_self_comparison(arm, reference, match):
        return steps.own
    if arm.suites[match.candidate.suite].summary.engine != "local" and not require_audit(arm).critical:
        return ask_anew(arm, match.candidate.suite)
    return steps.repeat


def _repair(reference: Arm, match: Match, request: Request) -> str:
    """The command that mends a reference: the audit that it lacks, the answers anew, else the whole work."""
    if lacks_audit(reference, match):
        return reference.options.command("audit")
    if reference.suites[match.candidate.suite].summary.engine != "local":
        return ask_anew(reference, match.candidate.suite)
    return retest_command(reference.options, ["fair"], request.out, force=True)


def report_recorded(request: Request) -> Verdict:
    """The report of the first experiment, from its published figures."""
    recorded = load_recorded()
    match = Match(
        recorded.candidate,
        recorded.reference,
        same_machine=True,
        candidate_origin="recorded",
        reference_origin="recorded",
    )
    flaws = [describe_flaw(flaw) for flaw in recorded.flaws if flaw.number]
    verdict = reach_verdict(recorded.name, match, flaws, None)
    small, large = short_model(recorded.candidate.model), short_model(recorded.reference.model)
    again = load_model_preset(recorded.candidate.model, None)
    steps = Steps(retest_command(Options(again, FAIR), again.arms, request.out))
    columns = {f"{small} (recorded)": recorded.candidate, f"{large} (recorded)": recorded.reference}
    page = [
        f"# First experiment: {recorded.title}",
        write_verdict(verdict, [describe_costs(match)], small, large, steps),
        f"All figures here are {recorded.source}.",
        write_matrix(verdict, large),
        f"## Results on {recorded.candidate.suite}",
        write_results(columns, match, f"{small} beside {large}"),
        write_categories(columns),
        _write_flaws(recorded),
        write_recorded_training(recorded.training),
        write_recorded_provenance(recorded),
    ]
    return save_report(request, verdict, page, large)


def describe_flaw(flaw: RecordedFlaw) -> str:
    """One published flaw as a reason."""
    count = f" ({flaw.count} of {flaw.total} rows)" if flaw.count is not None else ""
    return f"Flaw {flaw.number}, {flaw.severity}: {flaw.title}{count}."


def save_report(
    request: Request, verdict: Verdict, page: Sequence[str], large: str, plot: str | None = None
) -> Verdict:
    """Write the page, its picture and the verdict, and say the verdict."""
    verdict = sign_verdict(verdict)
    target = save_page(request.out, verdict, page, plot, force=request.force)
    answer = name_answer(verdict.supported_answer, large) + explain_answer(verdict)
    progress.say(f"  {verdict.report}: {describe_rule(verdict, large)}")
    if verdict.cause and verdict.reasons:
        progress.say(f"  {verdict.report}: {shorten(verdict.reasons[0], 160, placeholder=' ...')}")
    progress.say(f"  {verdict.report}: verdict {answer}, report {target}")
    if depends_on_seed(verdict):
        progress.say(f"  {verdict.report}: another seed would have led to another answer, see the report")
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
