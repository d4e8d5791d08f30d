"""Train with several seeds, one after the other, each in a process and with an output of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.cli import TO_MAKE, Parser
from stages.core.errors import StageError
from stages.core.flags import folder, seed_list
from stages.train.lifeline import LAUNCHER, exit_code, forward_signals, open_lifeline


@dataclass(frozen=True)
class Seeds:
    """The seeds in their order, and the folder that gets `seedN` for each; None: the default places."""

    seeds: tuple[int, ...]
    out: Path | None


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """The flag for several seeds."""
    group = parser.add_argument_group("several runs")
    group.add_argument(
        "--seeds",
        type=seed_list,
        metavar="N,N,…",
        help="train with each of these, one after the other; --out FOLDER has each in FOLDER/seedN",
    )


def read_seeds(argv: Sequence[str]) -> tuple[Seeds | None, list[str]]:
    """What the options say about several seeds, None without `--seeds` or for help, and the other options.

    Raises StageError for `--seed` together with `--seeds`, and for seeds that are no list of numbers.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    add_seeds(parser)
    if parser.parse_known_args(list(argv))[0].seeds is None or {"-h", "--help"} & set(argv):
        return None, list(argv)
    parser.add_argument("--seed")
    parser.add_argument("--out", type=folder)
    found, rest = parser.parse_known_args(list(argv))
    if found.seed is not None:
        raise StageError("--seed names one seed and --seeds several: give one of the two")
    return Seeds(found.seeds, found.out), rest


def train_seeds(seeds: Seeds, argv: Sequence[str]) -> int:
    """Run this stage with each seed; 0, or the exit code of the first that did not end well.

    What is finished stays: the same command goes on with the seed that it was stopped in. With `--force` it
    would begin again with the first, and is told what to say instead. `--check` asks every seed: 2 where one
    has a mistake, else TO_MAKE where one is yet to be made.
    """
    checked = set()
    for place, seed in enumerate(seeds.seeds):
        code = _train_seed(seed, seeds.out, argv)
        if code in (2, TO_MAKE) and "--check" in argv:
            checked.add(code)
        elif code:
            if place and "--force" in argv:
                left, done = (",".join(map(str, part)) for part in (seeds.seeds[place:], seeds.seeds[:place]))
                print(f"train: go on with --seeds {left}: --force would train {done} again", file=sys.stderr)
            return code
    return min(checked, default=0)


def _train_seed(seed: int, out: Path | None, argv: Sequence[str]) -> int:
    command = [sys.executable, "-m", "stages.train", *argv, "--seed", str(seed)]
    if out is not None:
        command += ["--out", str(out / f"seed{seed}")]
    with open_lifeline() as alive:
        told = os.environ | {LAUNCHER: str(alive)}
        process = subprocess.Popen(command, env=told, pass_fds=[alive])
        with forward_signals([process]):
            return exit_code(process.wait())
