"""The plan of a retest and its execution, stage by stage."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from stages.core import progress
from stages.core.artifact import MANIFEST, unfinished_folder
from stages.core.blas import count_cpus
from stages.core.cli import SEEDLESS, TO_MAKE, Options, artifacts_root, place_words
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FIXES, UPSTREAM, FixSet, arm_name, arm_slug, takes_option
from stages.core.flags import is_taken, option_words
from stages.core.models import expect_weights, require_model
from stages.core.pages import require_own_files
from stages.core.platform import available_memory_gb, require_disk
from stages.core.records import AuditReport, read_record
from stages.core.suite import load_suites
from stages.core.words import number_each
from stages.retest_fair.processes import Call, ask_stage, run_stages

AFTER_TRAINING = ("fuse", "quantize", "eval")
QUANTIZED_BYTES = 1.2  # of a parameter at the most, at 8 bits and with its scales
_FORCED = re.compile(r": (?![^:]*nox -s)[^:]*--force[^:]*$")  # what a stage says of its own output alone
_AGAIN = re.compile(r"(?<= make it again )((?:of the kept replies )?with )--force$")  # and of a damaged one
SIDE_BY_SIDE = 2  # trainings that share the cores unless --jobs says otherwise
SMALL = 0.5  # billions of parameters; what trains a larger model is busy with one
# Memory of a training of the embedded model on a CPU, in bytes per parameter, with its 10 layers and
# 8 rows of 1024 tokens at the most; 33 were measured.
TRAINING_BYTES, MEASURED = 40, 10 * 8 * 1024
OWN_LAYERS = 3  # times as much, with dropout or DoRA, which mlx-lm's own layers compute (docs/LOG.md)


@dataclass(frozen=True)
class Plan:
    """What is run: the options that all stages share, the arms and the seeds in their order."""

    options: Options
    arms: tuple[FixSet, ...]
    model: str
    seeds: tuple[int, ...]
    despite_audit: bool = False
    ask_again: bool = False
    jobs: int | None = None  # trainings side by side; None: as many as do some good


@dataclass(frozen=True)
class Step:
    """One stage for one arm, with one seed where it takes part in the output."""

    stage: str
    fixes: FixSet
    seed: int | None = None


def retest(plan: Plan) -> int:
    """Run the plan; returns 0, or raises StageError when a stage fails."""
    root = artifacts_root()
    log = progress.new_log_file(root / "logs", "retest_fair")
    os.environ[progress.LOG_VARIABLE] = str(log.absolute())
    started = time.perf_counter()
    _announce(plan)
    check_inputs(plan)
    progress.say(f"  log {log}")
    with progress.run_log("retest_fair", root / "logs", model=plan.options.preset.name):
        finished = find_finished(plan)
        for steps in list_groups(plan, plan.jobs or choose_jobs(plan), finished):
            run_stages(list_calls(plan, [step for step in steps if step not in finished]))
            if steps[0].stage == "audit":
                _heed_audit(plan, steps[0])
        run_stages([Call("report", report_arguments(plan))], last=True)
    progress.say(f"retest_fair: done in {time.perf_counter() - started:.0f} s, timings and memory in {log}")
    return 0


def check_inputs(plan: Plan) -> None:
    """Find out before any work what would stop it later: too little disk, no such suite, no model.

    The last thing that could is a report of that name which someone has changed by hand.
    """
    root, preset, needed_gb = artifacts_root(), plan.options.preset, estimate_disk_gb(plan)
    if preset.eval.is_sweep:
        raise StageError(
            "--temperature, --samples and --prompts make a sweep, and no verdict comes of one: "
            "leave them out here, and give them to nox -s eval afterwards"
        )
    if not plan.options.force:
        require_own_files(reports_folder(plan), preset.name, plot=True)
    require_disk(root, needed_gb, "the whole retest")
    load_suites(preset.eval.suites)
    require_model(preset, root, beside_gb=needed_gb)


def list_steps(plan: Plan) -> Iterator[Step]:
    """All data is converted and audited before any arm is trained; shared work appears once.

    A seed is done with all arms before the next one: a retest that is stopped has whole comparisons.
    """
    seen: set[tuple[str, str, int | None]] = set()
    rounds: list[tuple[tuple[str, ...], int | None]] = [(SEEDLESS, None)]
    rounds += [(stages, seed) for seed in plan.seeds for stages in (("train",), AFTER_TRAINING)]
    for stages, seed in rounds:
        for fixes in plan.arms:
            for stage in stages:
                if (key := (stage, arm_slug(fixes, stage), seed)) not in seen:
                    seen.add(key)
                    yield Step(stage, fixes, seed)


def list_groups(plan: Plan, jobs: int, finished: Collection[Step] = ()) -> Iterator[list[Step]]:
    """The steps in their order, `jobs` unfinished trainings of a seed together and any other step alone."""
    for (stage, _), group in groupby(list_steps(plan), key=lambda step: (step.stage, step.seed)):
        steps, size = list(group), 1
        if stage == "train":
            steps, size = [step for step in steps if step not in finished], jobs
        yield from (steps[i : i + size] for i in range(0, len(steps), size))


def find_finished(plan: Plan) -> set[Step]:
    """Ask the stages whose output is there which of them have nothing to do, before any work is begun.

    With --force all of them have. Raises StageError naming every output that was made otherwise. One whose
    input is missing is judged when it is its turn: nobody knows before what that input will be.
    """
    finished, problems = set(), []
    for step in list_steps(plan):
        if plan.options.force or not _can_be_asked(plan, step):
            continue
        code, line = ask_stage(step.stage, [*stage_arguments(plan, step), "--check"])
        if code == 2:
            problems.append(name_command(line, plan, step))
        elif code != TO_MAKE:
            finished.add(step)
    if problems:
        raise StageError(explain_all(problems))
    return finished


def name_command(problem: str, plan: Plan, step: Step) -> str:
    """What a stage says of a damaged output, with its command: a retest's --force makes everything anew."""
    command = f"{place_words()}nox -s {step.stage} -- {shlex.join(stage_arguments(plan, step))}"
    return _AGAIN.sub(lambda found: f"{found[1]}{command} --force", problem)


def explain_all(problems: Sequence[str]) -> str:
    """What several stages say of their outputs, in one line; what --force does is said of all of them."""
    problems = [*dict.fromkeys(problems)]
    told = [_FORCED.sub("", problem) for problem in problems]
    remedy = ": --force makes everything anew, --out FOLDER keeps what is there" if told != problems else ""
    return "; ".join(dict.fromkeys(told)) + remedy


def _can_be_asked(plan: Plan, step: Step) -> bool:
    """Whether there is an output of the step, or an unfinished one, and the output that it is made of."""
    if step.stage == "eval" and plan.ask_again:
        return False
    options = replace(plan.options, fixes=step.fixes, seed=step.seed or 0)
    place, source = options.place(step.stage), UPSTREAM.get(step.stage)
    begun = place.exists() or unfinished_folder(place).exists()
    return begun and (source is None or (options.place(source) / MANIFEST).is_file())


def choose_jobs(plan: Plan, memory_gb: float | None = None, cores: int | None = None) -> int:
    """How many arms train side by side: those of a small model leave cores idle, and fit into memory.

    `memory_gb` and `cores` are those of the machine unless they are given.
    """
    preset, setup = plan.options.preset, plan.options.preset.train
    billions = expect_weights(preset).billions
    if setup.ranks > 1 or not 0 < billions <= SMALL:
        return 1
    work = setup.num_layers * setup.batch_size * setup.max_seq_length
    if setup.dropout or setup.fine_tune_type == "dora":
        work *= OWN_LAYERS
    each_gb = billions * TRAINING_BYTES * max(work / MEASURED, 1)
    fitting = int((available_memory_gb() if memory_gb is None else memory_gb) / each_gb)
    return max(min(SIDE_BY_SIDE, count_cpus() if cores is None else cores, fitting), 1)


def list_calls(plan: Plan, steps: list[Step]) -> list[Call]:
    """What is run for steps that go together; where there are several, their lines begin with the arm."""
    names = [arm_name(step.fixes) if len(steps) > 1 else "" for step in steps]
    width = max(map(len, names), default=0)
    return [
        Call(step.stage, stage_arguments(plan, step), label=name.ljust(width))
        for step, name in zip(steps, names, strict=True)
    ]


def stage_arguments(plan: Plan, step: Step) -> list[str]:
    """The command-line options of one stage: the common ones and those of its preset sections."""
    options = plan.options
    arguments = ["--model", plan.model, "--fixes", ",".join(step.fixes) or "flawed"]
    if step.seed is not None:
        arguments += ["--seed", str(step.seed)]
    if step.stage == "convert_data" and options.data is not None:
        arguments += ["--data", str(options.data)]
    if options.force:
        arguments.append("--force")
    if step.stage == "convert_data":
        arguments += [word for name, value in options.rows.items() for word in option_words(name, value)]
    if step.stage == "eval" and plan.ask_again:
        arguments.append("--ask-again")
    for name, value in options.overrides.items():
        taken = step.stage != "quantize" or takes_option(step.fixes, name)
        if taken and is_taken(name, step.stage):
            arguments += option_words(name, value)
    return arguments


def report_arguments(plan: Plan) -> list[str]:
    """The options of the report on this run; its verdict is about the first seed."""
    arguments = ["--model", plan.model, "--seed", str(plan.seeds[0])]
    if plan.options.json:
        arguments.append("--json")
    if plan.options.force:
        arguments.append("--force")
    if reference := plan.options.overrides.get("reference"):
        arguments += ["--reference", str(reference)]
    if plan.options.out is not None:
        arguments += ["--out", str(reports_folder(plan))]
    return arguments


def reports_folder(plan: Plan) -> Path:
    """Where the report goes: below `--out`, else where reports always go."""
    return (plan.options.out or Path()) / "reports"


def estimate_disk_gb(plan: Plan) -> float:
    """Disk that the arms still need: the fused and the quantized model of those that have none yet."""
    root, weights = artifacts_root() / plan.options.preset.name, expect_weights(plan.options.preset)
    wanted = {Path(arm_slug(arm, "quantize"), f"seed{seed}") for arm in plan.arms for seed in plan.seeds}
    missing = [place for place in wanted if not (root / "quantize" / place / MANIFEST).is_file()]
    return 0.1 + (weights.whole_gb + weights.billions * QUANTIZED_BYTES) * len(missing)


def _announce(plan: Plan) -> None:
    options = plan.options
    progress.say(f"retest_fair: {options.preset.title}, arms {', '.join(arm_name(a) for a in plan.arms)}")
    seeds = number_each("seed", plan.seeds)
    progress.say(f"  {seeds}, reference {options.preset.model.reference}")
    if share := options.rows.get("valid_share"):
        progress.say(f"  valid: {share:g} of the rows, drawn with seed 0, the same ones for every seed")
    for fixes in plan.arms:
        off = [name for name in FIXES if name not in fixes]
        progress.say(
            f"  arm {arm_name(fixes)}: " + (f"without {', '.join(off)}" if off else "all five fixes")
        )
    for name, value in options.overrides.items():
        reached = [arm_name(fixes) for fixes in plan.arms if takes_option(fixes, name)]
        if len(reached) < len(plan.arms):
            progress.say(f"  {' '.join(option_words(name, value))} reaches {', '.join(reached)} alone")


def _heed_audit(plan: Plan, step: Step) -> None:
    """Stop before hours are spent when the set-up that is meant to be fair is not."""
    if step.fixes != FAIR or plan.despite_audit:
        return
    folder = artifacts_root() / plan.options.preset.name / "audit" / arm_slug(step.fixes, "audit")
    found = read_record(folder / "audit.json", AuditReport).critical
    if found:
        names = ", ".join(finding.check for finding in found)
        raise StageError(
            f"the audit of the fair arm found what forbids a verdict ({names}), see {folder / 'audit.md'}: "
            "mend it, or go on with --despite-audit"
        )
