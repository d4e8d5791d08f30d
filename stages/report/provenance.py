"""Where every figure comes from: recorded or measured, by which code, on which machine."""

from __future__ import annotations

from collections.abc import Sequence

from stages.core.records import Manifest
from stages.report.cells import NONE, number, plain, table
from stages.report.recorded import Recorded
from stages.report.results import Arm
from stages.report.verdict import Match


def write_provenance(
    arms: Sequence[Arm], matches: Sequence[Match], reference: Arm | None, recorded: Recorded
) -> str:
    """Sources, then one row per stage and arm, then versions."""
    sources = {match.reference.source for match in matches if match.reference}
    used = reference if "measured" in sources else None
    own = [*arms, *([used] if used else [])]
    parts = [
        "## Provenance",
        _sources(arms, used, recorded if "recorded" in sources else None),
        _stages(own),
        _facts(own),
        _results(own),
    ]
    return "\n\n".join([*parts, _packages(own)])


def write_recorded_provenance(recorded: Recorded) -> str:
    """The origin of published figures, and what they leave open."""
    lines = [
        f"- Published in {plain(recorded.origin)}.",
        f"- Machine: {plain(recorded.machine)}.",
        *(f"- {plain(note)}" for note in recorded.notes),
        "- Ratios, intervals and the verdict are computed from these figures by this project.",
    ]
    return "## Provenance\n\n" + "\n".join(lines)


def _sources(arms: Sequence[Arm], reference: Arm | None, recorded: Recorded | None) -> str:
    lines = []
    for measured in (arms, [reference] if reference else []):
        results = [result for arm in measured for result in arm.suites.values()]
        places: dict[tuple[str, str], set[str]] = {}
        for r in results:
            machine = plain(r.manifest.platform)
            places.setdefault((plain(r.summary.title), plain(r.origin)), set()).add(machine)
        lines += [_source(*key, "; ".join(sorted(found)), len(places)) for key, found in places.items()]
    if recorded is not None:
        lines.append(f"- Recorded, not measured here: every figure of {plain(recorded.reference.title)}.")
        lines.append(f"- Published in {plain(recorded.origin)}; machine: {plain(recorded.machine)}.")
        lines += [f"- {plain(note)}" for note in recorded.notes]
    return "\n".join(lines)


def _source(title: str, origin: str, machines: str, ways: int) -> str:
    """One line of the sources; a model may have come by its replies in several `ways`."""
    figures = f"every figure of {title}" if ways == 1 else f"figures of {title}, as the last table says"
    where = "on" if origin == "measured" else "scored on"
    return f"- {origin[0].upper()}{origin[1:]}: {figures}, {where} {machines}."


def _stages(arms: Sequence[Arm]) -> str:
    """One row per artifact; arms that share one are named together."""
    shared: dict[tuple[str, str], tuple[Manifest, list[str]]] = {}
    for arm in arms:
        made = [(stage, stage, manifest) for stage, manifest in arm.manifests.items()]
        made += [("eval", f"eval {name}", result.manifest) for name, result in sorted(arm.suites.items())]
        for stage, title, manifest in made:
            key = title, str(arm.options.place(stage))
            shared.setdefault(key, (manifest, []))[1].append(_name(arm, arms))
    rows = [
        [
            plain(stage),
            ", ".join(names),
            plain(manifest.created),
            number(manifest.seconds, "s", 1),
            number(manifest.peak_memory_gb, "GB"),
            plain(manifest.commit),
            f"`{manifest.content[:12]}`",
            " ".join(
                f"{plain(_name_input(role, manifest))} `{value[:12]}`"
                for role, value in sorted(manifest.recipe.inputs.items())
            ),
        ]
        for (stage, _), (manifest, names) in shared.items()
    ]
    return table(["stage", "arm", "made", "took", "peak memory", "commit", "content", "inputs"], rows)


def _name_input(role: str, manifest: Manifest) -> str:
    """What an input of a stage is. Of eval `replies` is about the prompts, `model` about what answered."""
    if manifest.recipe.stage != "eval" or role not in ("replies", "model"):
        return role
    answered = {"endpoint": "server", "recorded": "file of replies"}
    return "prompts" if role == "replies" else answered.get(str(manifest.facts.get("engine")), role)


def _facts(arms: Sequence[Arm]) -> str:
    rows = []
    for arm in arms:
        train, fuse = (arm.manifests.get(stage) for stage in ("train", "fuse"))
        quantize = arm.manifests["quantize"].recipe.settings if "quantize" in arm.manifests else {}
        template = (fuse and fuse.template) or (train and train.template) or NONE
        rows.append(
            [
                _name(arm, arms),
                str(arm.options.seed),
                plain(template[:12]),
                _ids(train.stop_ids if train else None),
                _ids(fuse.stop_ids if fuse else None),
                plain(str(quantize.get("bits", NONE))),
            ]
        )
    return table(["arm", "seed", "chat template", "turns end with", "fused model stops at", "bits"], rows)


def _ids(ids: list[int] | None) -> str:
    return ", ".join(map(str, ids)) if ids else NONE


def _results(arms: Sequence[Arm]) -> str:
    rows = [
        [
            _name(arm, arms),
            plain(name),
            str(r.summary.suite_version),
            f"`{r.summary.suite_fingerprint[:12]}`",
            str(r.summary.scorer_version),
            plain(r.origin),
        ]
        for arm in arms
        for name, r in sorted(arm.suites.items())
    ]
    return table(["arm", "suite", "suite version", "queries", "scorer version", "source"], rows)


def _packages(arms: Sequence[Arm]) -> str:
    """The versions of every evaluation; usually one line."""
    seen: dict[str, list[str]] = {}
    for arm in arms:
        for result in arm.suites.values():
            line = ", ".join(
                f"{name} {version}" for name, version in sorted(result.manifest.packages.items())
            )
            names = seen.setdefault(line, [])
            if (name := _name(arm, arms)) not in names:
                names.append(name)
    return "\n".join(
        f"- Packages of the evaluation of {', '.join(names)}: {plain(line)}." for line, names in seen.items()
    )


def _name(arm: Arm, arms: Sequence[Arm]) -> str:
    """The arm's label, with the model in front when the report is about two models."""
    several = len({a.options.preset.name for a in arms}) > 1
    return f"{plain(arm.options.preset.name)} {arm.label}" if several else arm.label
