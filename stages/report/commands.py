"""The commands that a report tells its reader to run, ready to be pasted into a shell.

They say again what the runs said whose outputs are reported: data, suites, and every other option.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.core.cli import Options, artifacts_root, place_words
from stages.core.fixes import parse_fixes, takes_option
from stages.core.flags import option_words
from stages.core.records import Manifest
from stages.report.request import Request


def recall_options(
    options: Options, manifests: Mapping[str, Manifest], evaluations: Sequence[Manifest]
) -> Options:
    """The options with what an arm's stages were given: the newest word counts, and all suites do.

    The reference is left out: it is the report's own.
    """
    made = sorted([*manifests.values(), *evaluations], key=lambda manifest: manifest.created)
    overrides = {name: value for manifest in made for name, value in _given(manifest).items()}
    usual = options.preset.eval.suites
    asked = dict.fromkeys(s for manifest in evaluations for s in _given(manifest).get("suites", usual))
    overrides = {name: overrides[name] for name in overrides if name not in ("reference", "suites")}
    if asked.keys() != set(usual):
        overrides["suites"] = tuple(asked)
    rows = manifests.get("convert_data")
    data = rows.given.data if rows and rows.given else None
    asked_rows = rows.given.rows if rows and rows.given else {}
    return replace(options, data=Path(data) if data else None, overrides=overrides, rows=asked_rows)


def retest_command(
    options: Options, arms: Sequence[str], reports: Path, *, seeds: Sequence[int] = (), force: bool = False
) -> str:
    """The command that runs the whole experiment, and writes its report into `reports` as before.

    `seeds` are several, the one that the verdict is about first; else it is the one of the options.
    """
    words = [f"nox -s retest_fair -- --model {_model(options)}"]
    if tuple(arms) != options.preset.arms:
        words.append(f"--arms {','.join(arms)}")
    if len(seeds) > 1:
        words.append(f"--seeds {','.join(map(str, seeds))}")
    elif options.seed:
        words.append(f"--seed {options.seed}")
    if options.data is not None:
        words.append(f"--data {shlex.quote(str(options.data))}")
    run = [parse_fixes(arm) for arm in arms]
    kept = {k: v for k, v in options.overrides.items() if any(takes_option(fixes, k) for fixes in run)}
    for name, value in {**options.rows, **kept}.items():
        words += map(shlex.quote, option_words(name, value))
    if force:
        words.append("--force")
    if reports == artifacts_root() / "reports":  # where retest_fair --out puts them
        return " ".join([*words, f"--out {shlex.quote(str(artifacts_root()))}"])
    return place_words() + " ".join(words)


def answer_command(options: Options, manifest: Manifest, *, again: bool) -> str:
    """The evaluation that gets its replies from where those of `manifest` came: a model, a server, a file.

    With `again` what is there is replaced: a server is asked every query anew.
    """
    facts, command = manifest.facts, options.command("eval")
    if url := facts.get("url"):
        words = {"--endpoint": url, "--served-model": facts.get("served_model")}
        named = [f"{flag} {shlex.quote(str(value))}" for flag, value in words.items() if value]
        return " ".join([command, *named, *(["--ask-again"] if again else [])])
    if facts.get("engine") == "recorded":
        command += f" --replies {shlex.quote(str(facts.get('file', 'FILE')))}"
    return command + (" --force" if again else "")


def report_command(request: Request, model: str) -> str:
    """The command that writes a model's report anew."""
    asked = {
        "--model": request.model or model,
        "--fixes": request.fixes,
        "--seed": request.seed,
        "--reference": request.reference,
        "--out": None if request.out == Request.out else request.out,
    }
    words = [f"{flag} {shlex.quote(str(value))}" for flag, value in asked.items() if value is not None]
    return f"{place_words()}nox -s report -- {' '.join(words)}"


def _given(manifest: Manifest) -> dict[str, Any]:
    return manifest.given.overrides if manifest.given else {}


def _model(options: Options) -> str:
    return shlex.quote(options.model or options.preset.name)
