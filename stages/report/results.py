"""What the stages left below `artifacts` about one model: every arm with its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stages.core.artifact import MANIFEST, require_artifact
from stages.core.cli import Options, artifacts_root
from stages.core.errors import StageError
from stages.core.evaluation import read_evaluation
from stages.core.fixes import FAIR, FIXES, FixSet, arm_name, parse_fixes
from stages.core.preset import Preset, load_preset
from stages.core.records import (
    AuditReport,
    EvalSummary,
    LossPoint,
    Manifest,
    RawReply,
    Score,
    read_lines,
    read_record,
)
from stages.report.commands import recall_options, retest_command
from stages.report.lineage import require_lineage
from stages.report.request import Request

CHAIN = ("convert_data", "audit", "train", "fuse", "quantize")


@dataclass(frozen=True)
class SuiteResult:
    """One arm's result on one suite."""

    summary: EvalSummary
    scores: list[Score]
    replies: list[RawReply]
    manifest: Manifest

    @property
    def machine(self) -> str:
        """The kind of machine it was measured on, such as `Linux x86_64`; of a server its address."""
        if self.summary.engine == "local":
            return self.manifest.platform.partition(",")[0]
        return str(self.manifest.facts.get("url", f"unknown, {self.manifest.content}"))  # equal to no other

    @property
    def origin(self) -> str:
        """Where the replies come from, in a few words; `measured` is a model in one of our processes."""
        facts = self.manifest.facts
        return {
            "local": "measured",
            "endpoint": f"served by {str(facts.get('url', 'a server')).rpartition('//')[2]}",
            "recorded": f"replies from a file, {facts['file']}" if "file" in facts else "replies from a file",
        }[self.summary.engine]

    @property
    def sandbox(self) -> str:
        """What ran the code of its calls, with its version; empty where the manifest does not say."""
        return str(self.manifest.recipe.settings.get("sandbox", ""))


@dataclass(frozen=True)
class Arm:
    """One arm with one seed: its results, and the records of the stages that led to them."""

    options: Options
    suites: dict[str, SuiteResult]
    audit: AuditReport | None
    losses: list[LossPoint]
    manifests: dict[str, Manifest] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The arm's name, with its seed unless that is 0."""
        return self.options.arm + (f", seed {self.options.seed}" if self.options.seed else "")

    @property
    def largest(self) -> SuiteResult:
        """The result on the suite with the most queries."""
        return max(self.suites.values(), key=lambda s: (s.summary.tool_or_direct.n, s.summary.suite))


def find_arms(preset: Preset, model: str | None = None) -> list[Arm]:
    """Every evaluated arm and seed of a model, the least repaired first.

    `model` is how a user names it in commands, None for the preset's name. Raises StageError when
    the records of an arm are incomplete or do not belong together.
    """
    found = {
        (parse_fixes(summary.arm), summary.seed)
        for folder in _find_results(preset.name)
        for summary in [_read_summary(folder)]
    }
    return [
        _read_arm(Options(preset, fixes, seed, model=model))
        for fixes, seed in sorted(found, key=lambda a: (rank(a[0]), a[1]))
    ]


def rank(fixes: FixSet) -> tuple[int, list[int]]:
    """Sorts arms: fewer fixes first, then in the order of the fixes."""
    return len(fixes), [list(FIXES).index(name) for name in fixes]


def choose_arm(arms: Sequence[Arm], preset: Preset, request: Request) -> Arm:
    """The arm that the verdict is about: as asked, else fair, else the most repaired; the lowest seed.

    Raises StageError naming the commands that make a missing one.
    """
    wanted, seed = None if request.fixes is None else parse_fixes(request.fixes), request.seed
    fitting = [
        arm for arm in arms if wanted in (None, arm.options.fixes) and seed in (None, arm.options.seed)
    ]
    if not fitting:
        known = arms[-1].options if arms else Options(preset, FAIR, model=request.model)
        missing = replace(known, fixes=FAIR if wanted is None else wanted, seed=seed or 0)
        whole = retest_command(missing, [missing.arm], request.out)
        raise StageError(
            f"no evaluation of {preset.name}, arm {missing.arm}: run {missing.command('eval')} "
            f"(or {whole} for all stages)"
        )
    most = max(rank(arm.options.fixes) for arm in fitting)
    return next(arm for arm in fitting if rank(arm.options.fixes) == most)


def require_audit(arm: Arm) -> AuditReport:
    """The arm's audit: without one nobody can say that the set-up was sound."""
    if arm.audit is None:
        command = arm.options.command("audit")
        raise StageError(f"no audit of {arm.options.preset.name}, arm {arm.options.arm}: run {command}")
    return arm.audit


def evaluated_models() -> list[str]:
    """The models with an evaluation below `artifacts`, by their folder's name."""
    root = artifacts_root()
    names = sorted(p.parent.name for p in root.glob("*/eval") if not p.parent.name.startswith("."))
    return [name for name in names if _find_results(name)]


def is_reference_alone(name: str) -> bool:
    """Whether a model was measured to compare others with: by a server or a file, and never audited."""
    if any((artifacts_root() / name / "audit").glob("*/audit.json")):
        return False
    return all(_read_summary(folder).engine != "local" for folder in _find_results(name))


def load_model_preset(model: str, reference: str | None) -> Preset:
    """The preset, with another reference when one was asked for."""
    return load_preset(model, None if reference is None else {"reference": reference})


def _find_results(name: str) -> list[Path]:
    folders = (p.parent for p in (artifacts_root() / name / "eval").glob("*/seed*/*/summary.json"))
    return sorted(f for f in folders if not any(part.startswith(".") for part in f.parts[-3:]))


def _read_arm(options: Options) -> Arm:
    place = options.place("eval")
    suites = {}
    for folder in sorted(p.parent for p in place.glob("*/summary.json") if not p.parent.name.startswith(".")):
        result = _read_suite(folder, options)
        suites[result.summary.suite] = result
    losses = options.place("train") / "log.jsonl"
    places = {stage: options.place(stage) for stage in CHAIN}
    manifests = {
        stage: require_artifact(folder, stage, options.command(stage), whole=False)
        for stage, folder in places.items()
        if (folder / MANIFEST).is_file()
    }
    evaluations = {suite: result.manifest for suite, result in suites.items()}
    recalled = recall_options(options, manifests, [*evaluations.values()])
    require_lineage(recalled, manifests, evaluations)
    return Arm(
        options=recalled,
        suites=suites,
        audit=_read_audit(options),
        losses=read_lines(losses, LossPoint) if losses.is_file() else [],
        manifests=manifests,
    )


def _read_audit(options: Options) -> AuditReport | None:
    """The audit of exactly this arm: what it says of the plan holds for no other one."""
    path = options.place("audit") / "audit.json"
    audit = read_record(path, AuditReport) if path.is_file() else None
    return audit if audit and audit.arm == options.arm else None


def _read_summary(folder: Path) -> EvalSummary:
    try:
        return read_record(folder / "summary.json", EvalSummary)
    except StageError as error:
        raise StageError(f"{error}: run nox -s eval again, which scores the kept replies anew") from None


def _read_suite(folder: Path, options: Options) -> SuiteResult:
    manifest = require_artifact(folder, "eval", options.command("eval"), whole=False)
    command = options.repeat(manifest)
    try:
        found = read_evaluation(folder, manifest)
    except StageError as error:
        raise StageError(f"{error}: run {command} --force") from None
    summary = found.summary
    if arm_name(parse_fixes(summary.arm)) != options.arm or summary.seed != options.seed:
        raise StageError(f"{folder} holds arm {summary.arm}, seed {summary.seed}: run {command} --force")
    return SuiteResult(summary, found.scores, found.replies, manifest)
