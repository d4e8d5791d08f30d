"""The same arm trained with several seeds: how far its results lie apart, and what depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import median

from stages.core.records import Answer, EvalSummary, Rate, Recipe, SeedAnswer, Verdict
from stages.core.words import number_each, plural
from stages.report.cells import inline_code, plain, table
from stages.report.opening import name_answer
from stages.report.results import Arm
from stages.report.verdict import refuse_comparison

_RATES: dict[str, Callable[[EvalSummary], Rate | None]] = {
    "tool or direct": lambda summary: summary.tool_or_direct,
    "right tool": lambda summary: summary.strict.tool if summary.strict else None,
    "right arguments": lambda summary: summary.strict.arguments if summary.strict else None,
    "the whole right": lambda summary: summary.strict.whole if summary.strict else None,
}


def sort_seeds(arm: Arm, arms: Sequence[Arm], suite: str) -> tuple[list[Arm], list[str]]:
    """The arm with all its seeds on a suite, itself first, and in words the seeds that do not compare."""
    same, refused = [arm], []
    for other in arms:
        if other is arm or other.options.fixes != arm.options.fixes or suite not in other.suites:
            continue
        if problem := _refuse(arm, other, suite):
            refused.append(f"{other.label} is not counted: {problem}.")
        else:
            same.append(other)
    return same, refused


def answer_seeds(same: Sequence[Arm], reach: Callable[[Arm], Verdict]) -> list[SeedAnswer]:
    """What the verdict is with each seed, in the order of the seeds; nothing where there is one."""
    verdicts = [(arm.options.seed, reach(arm)) for arm in same] if len(same) > 1 else []
    return [
        SeedAnswer(
            seed=seed,
            decision=verdict.candidate_decision,
            ratio=verdict.ratio,
            point_answer=verdict.point_answer,
            supported_answer=verdict.supported_answer,
        )
        for seed, verdict in sorted(verdicts, key=lambda pair: pair[0])
    ]


def describe_seeds(verdict: Verdict, large: str) -> str:
    """The spread over the seeds in a few sentences beside the verdict; nothing where there is one."""
    if not verdict.seeds:
        return ""
    rates = [answer.decision.value for answer in verdict.seeds]
    ratios = [answer.ratio for answer in verdict.seeds if answer.ratio is not None]
    shares = f", {_range(ratios)} of {large}" if len(ratios) == len(rates) else ""
    said = [
        f"The verdict is about seed {verdict.seed}. With {plural(len(rates), 'seed')} of this arm "
        f"{_range(rates)} are decided right on {plain(verdict.suite)} (median {_percent(median(rates))})"
        f"{shares}."
    ]
    ruled = {a.seed: a.point_answer for a in verdict.seeds if a.point_answer is not None}
    if len(ruled) == len(rates):
        said.append(_compare("The rule's answer", ruled, large))
    supported = {a.seed: a.supported_answer for a in verdict.seeds}
    said.append(_compare("What the evidence supports", supported, large))
    return " ".join(said)


def depends_on_seed(verdict: Verdict) -> bool:
    """Whether another seed of the arm would have led to another answer."""
    return len({(a.point_answer, a.supported_answer) for a in verdict.seeds}) > 1


def write_spread(arms: Sequence[Arm], suites: Sequence[str], more: str) -> str:
    """A table of the lowest, median and highest rate over the seeds of every arm that has several.

    `more` is the command that measures it where no arm has.
    """
    rows, notes = [], []
    for suite in suites:
        for _, group in groupby(arms, key=lambda arm: arm.options.fixes):
            having = [arm for arm in group if suite in arm.suites]
            same, refused = sort_seeds(having[0], having, suite) if having else ([], [])
            notes += [f"- {plain(suite)}: {plain(sentence)}" for sentence in refused]
            rows += _write_rows(suite, same) if len(same) > 1 else []
    if not rows and not notes:
        rest = f"how much the result depends on the seed is not measured. {inline_code(more)} does it."
        return f"## Seeds\n\nEvery arm was trained with one seed: {rest}"
    heads = ["suite", "arm", "seeds", "share right", "lowest", "median", "highest", "points apart"]
    return "\n\n".join(
        ["## Seeds", *([table(heads, rows)] if rows else []), *(["\n".join(notes)] if notes else [])]
    )


def _write_rows(suite: str, same: Sequence[Arm]) -> list[list[str]]:
    seeds = ", ".join(str(arm.options.seed) for arm in same)
    rows = []
    for name, read in _RATES.items():
        rates = [rate.value for arm in same if (rate := read(arm.suites[suite].summary)) is not None]
        if len(rates) == len(same):
            cells = [_percent(value) for value in (min(rates), median(rates), max(rates))]
            apart = f"{100 * (max(rates) - min(rates)):.1f}"
            rows.append([plain(suite), same[0].options.arm, seeds, name, *cells, apart])
    return rows


def _refuse(arm: Arm, other: Arm, suite: str) -> str:
    """Why a seed's result is no other draw of the same experiment, or nothing."""
    mine, theirs = arm.suites[suite], other.suites[suite]
    if problem := refuse_comparison(mine.summary, theirs.summary):
        return problem
    if mine.summary.engine != theirs.summary.engine:
        return f"{theirs.origin}, where {arm.label} is {mine.origin}"
    made = {**arm.manifests, "eval": mine.manifest}, {**other.manifests, "eval": theirs.manifest}
    stages = [name for name in made[0] if name in made[1]]
    changed = [s for s in stages if _settings(made[0][s].recipe) != _settings(made[1][s].recipe)]
    return f"{' and '.join(changed)} had other settings or data" if changed else ""


def _settings(recipe: Recipe) -> tuple[dict[str, object], Mapping[str, str]]:
    """What decides an output beside the seed; behind the training every input differs by it."""
    settings = {name: value for name, value in recipe.settings.items() if name != "seed"}
    return settings, recipe.inputs if recipe.stage == "train" else {}


def _compare(what: str, answers: Mapping[int, Answer], large: str) -> str:
    """`What the evidence supports is the same with every seed`, or which seed has which answer."""
    seeds: dict[Answer, list[int]] = {}
    for seed, answer in answers.items():
        seeds.setdefault(answer, []).append(seed)
    if len(seeds) == 1:
        return f"{what} is the same with every seed."
    named = [
        f"{name_answer(answer, large)} with {number_each('seed', having)}" for answer, having in seeds.items()
    ]
    return f"**{what} depends on the seed**: {', '.join(named)}."


def _range(values: Sequence[float]) -> str:
    """`88.0 to 95.0 %`."""
    return f"{100 * min(values):.1f} to {_percent(max(values))}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
