"""Flags of the command line for the options of a preset."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from stages.core.preset import SECTIONS


def folder(text: str) -> Path:
    """The type of a flag that takes a folder; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("name a folder")
    return Path(text)


def option_words(name: str, value: object) -> list[str]:
    """What is typed to give an option a value."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return [f"{flag}={text}"]  # one word, since a text may begin with a dash


def sections_taken(stage: str) -> Collection[str]:
    """The sections of a preset whose options a stage's command line takes."""
    return SECTIONS if stage in ("audit", "retest_fair") else ("model", stage)
