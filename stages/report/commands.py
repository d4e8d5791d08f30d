"""The commands that a report tells its reader to run, ready to be pasted into a shell."""

from __future__ import annotations

import shlex
from dataclasses import replace

from stages.core.cli import Options


def stage_command(options: Options, stage: str) -> str:
    """The command that makes a stage's output; the model as it was asked for, be it a path."""
    return replace(options, model=shlex.quote(options.model or options.preset.name)).command(stage)


def retest_command(model: str, arms: str = "") -> str:
    """The command that runs the whole experiment for a preset, TOML file or model folder."""
    return f"nox -s retest_fair -- --model {shlex.quote(model)}" + (f" --arms {arms}" if arms else "")
