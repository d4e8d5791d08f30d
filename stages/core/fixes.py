"""The five fixes, the arms made of them, and the stage in which each acts.

An arm is a set of fixes. Two arms share the work of a stage when the fixes that act there or
before are the same, and that is exactly when `arm_slug` gives both the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.errors import StageError

BITS_OF = {"bits": True, "legacy_bits": False}  # options, and whether they are for arms with the fix six_bit
PIPELINE = ("convert_data", "audit", "train", "fuse", "quantize", "eval", "report")
UPSTREAM = {  # by stage: the one whose output it reads
    **dict.fromkeys(("audit", "train"), "convert_data"),
    **{"fuse": "train", "quantize": "fuse", "eval": "quantize"},
}


@dataclass(frozen=True)
class Fix:
    """One repair of the set-up."""

    name: str
    repairs: str
    stages: tuple[str, ...]
    off: str
    on: str


FIXES: dict[str, Fix] = {
    f.name: f
    for f in (
        Fix(
            "json",
            "flaws 1-3: split <tool_response>, XML calls, two formats mixed",
            ("convert_data",),
            "legacy text as it is",
            "one format: what the target's own template writes",
        ),
        Fix(
            "tools",
            "flaw 4: no tool definitions",
            ("convert_data", "eval"),
            "bare system prompt",
            "tool schemas and Code Mode instructions in training and evaluation",
        ),
        Fix(
            "eos",
            "flaw 5: stop token differs from training",
            ("fuse",),
            "the base's eos id alone",
            "what ends an assistant turn in training, in every config file",
        ),
        Fix(
            "parser",
            "evaluation expects the other model's format",
            ("eval",),
            "the source dialect's parser",
            "the target dialect's parser",
        ),
        Fix("six_bit", "5 bits unproven on a dense model", ("quantize",), "5 bits", "6 bits"),
    )
}

FixSet = tuple[str, ...]  # names in the order of FIXES, without repeats
FAIR: FixSet = tuple(FIXES)
FLAWED: FixSet = ()
ARMS: dict[str, FixSet] = {"flawed": FLAWED, "fair": FAIR}


def parse_fixes(text: str) -> FixSet:
    """`fair`, `flawed`, or names joined by `,` or `+`. Raises StageError for an unknown name."""
    if text in ARMS:
        return ARMS[text]
    names = {name.strip() for name in text.replace("+", ",").split(",") if name.strip()}
    unknown = sorted(names - FIXES.keys())
    if unknown or not names:
        mistake = f"unknown fix {', '.join(unknown)}" if unknown else "no fix is named"
        raise StageError(f"{mistake}: use fair, flawed, or any of {', '.join(FIXES)}")
    return tuple(name for name in FIXES if name in names)


def distinct_arms(texts: Iterable[str]) -> tuple[FixSet, ...]:
    """The arms of these texts, in their order. Raises StageError for an unknown fix and for a repeat."""
    arms: list[FixSet] = []
    for text in texts:
        if (arm := parse_fixes(text.strip())) in arms:
            raise StageError(f"the arm {arm_name(arm)} is named twice: name each arm once")
        arms.append(arm)
    return tuple(arms)


def arm_name(fixes: FixSet) -> str:
    """`fair`, `flawed`, or the names joined by `+`."""
    return next((name for name, arm in ARMS.items() if arm == fixes), "+".join(fixes))


def fixes_until(fixes: FixSet, stage: str) -> FixSet:
    """The fixes of an arm that decide the output of `stage`.

    Those that act there or before; for the audit all of them, since its subject is the whole plan.
    """
    if stage == "audit":
        return fixes
    done = set(PIPELINE[: PIPELINE.index(stage) + 1])
    return tuple(name for name in fixes if done.intersection(FIXES[name].stages))


def takes_option(fixes: FixSet, option: str) -> bool:
    """Whether an option of a preset decides anything in an arm: each has one of the two numbers of bits."""
    return BITS_OF.get(option, "six_bit" in fixes) == ("six_bit" in fixes)


def require_taken(options: Mapping[str, Any], arms: Sequence[FixSet]) -> None:
    """Raise StageError for a given option that decides nothing in any of the arms."""
    for name, value in options.items():
        if any(takes_option(fixes, name) for fixes in arms):
            continue
        flags = {option: f"--{option.replace('_', '-')}" for option in BITS_OF}
        other = next(option for option in BITS_OF if option != name)
        why = "is for the fix six_bit" if BITS_OF[name] else "is for arms without the fix six_bit"
        asked = " and ".join(map(arm_name, arms))
        raise StageError(f"{flags[name]} {value} {why}, and not for {asked}: give {flags[other]} {value}")


def arm_slug(fixes: FixSet, stage: str) -> str:
    """The folder name of an arm's output of a stage, equal for arms that share the work."""
    return "+".join(fixes_until(fixes, stage)) or "none"
