"""What a reader may do next: the commands that repeat, complete and renew a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stages.core.cli import Options
from stages.core.fixes import FAIR
from stages.core.preset import Preset
from stages.report.commands import answer_command, recall_options, report_command, retest_command
from stages.report.request import Request
from stages.report.results import Arm
from stages.report.verdict import Match

ADVISED_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Steps:
    """Commands, and what there is to measure."""

    repeat: str
    """Runs the experiment again, or for an arm that lacks fixes the arm that has them."""
    own: str = ""
    """Puts the suites to the arm's own model, in a process here."""
    measure: str = ""
    """Measures the reference on the candidate's suites; empty when that is the candidate itself."""
    renew: str = ""
    """Writes this report anew."""
    seeds: str = ""
    """Measures with more seeds."""
    unmeasured: Mapping[str, int] = field(default_factory=dict)
    """The suites without a comparable result of the reference, with their numbers of queries."""


def plan_steps(
    request: Request,
    arms: Sequence[Arm],
    same: Sequence[Arm],
    large: Preset,
    reference: Arm | None,
    matches: Iterable[Match],
) -> Steps:
    """The steps from the report on the first arm of `same`, whose reference is the model `large`.

    The others of `same` are that arm with its other seeds.
    """
    arm = same[0]
    lacking = {m.candidate.suite: m.candidate.tool_or_direct.n for m in matches if m.reference is None}
    asked = {} if request.reference is None else {"reference": request.reference}
    repeated = replace(arm.options, overrides=arm.options.overrides | asked)
    fair = arm.options.fixes == FAIR
    seeds = [a.options.seed for a in same]
    names = [a.options.arm for a in arms if a.options.seed == seeds[0]]
    more = [seeds[0], *(seed for seed in ADVISED_SEEDS if seed != seeds[0])]
    return Steps(
        repeat=retest_command(repeated, names if fair else ["fair"], request.out, seeds=seeds, force=fair),
        own=_evaluate_own(arm, repeated, request),
        seeds=retest_command(repeated, names, request.out, seeds=more),
        measure=_measure(request, arm, large, reference, lacking.keys()),
        renew=report_command(request, arm.options.preset.name),
        unmeasured=lacking,
    )


def _evaluate_own(arm: Arm, repeated: Options, request: Request) -> str:
    """The evaluation of the model that the arm's stages made; all of them where it is not made."""
    if "quantize" in arm.manifests:
        return f"{arm.options.command('eval')} --force"
    return retest_command(repeated, [arm.options.arm], request.out, force=True)


def _measure(request: Request, arm: Arm, large: Preset, reference: Arm | None, lacking: Iterable[str]) -> str:
    """The command that puts the candidate's suites to the reference, trained on the same data."""
    preset = arm.options.preset
    if large.name == preset.name:
        return ""
    suites = arm.options.overrides.get("suites", preset.eval.suites)
    asked = {} if suites == large.eval.suites else {"suites": suites}
    if reference is None:
        options = Options(large, FAIR, data=arm.options.data, overrides=asked, model=preset.model.reference)
        return retest_command(options, ["fair"], request.out)
    # The model is there: it lacks the replies, or has those to another suite of that name.
    kept = {name: value for name, value in reference.options.overrides.items() if name != "suites"}
    options = replace(reference.options, overrides=kept | asked)
    stale = any(suite in reference.suites for suite in lacking)
    return answer_command(options, reference.largest.manifest, again=stale)


def ask_anew(arm: Arm, suite: str) -> str:
    """The command that gets an arm's replies once more from the server or file that gave those to `suite`.

    It names all the suites that the same server answered; a file answers one.
    """
    made = arm.suites[suite].manifest
    same = [result.manifest for result in arm.suites.values() if result.manifest.facts == made.facts]
    return answer_command(recall_options(arm.options, {}, same), made, again=True)
