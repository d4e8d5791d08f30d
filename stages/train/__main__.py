"""Command line of train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from stages import train as package
from stages.core import progress
from stages.core.artifact import MANIFEST
from stages.core.blas import needs_blas
from stages.core.cli import (
    Options,
    Outcome,
    build_parser,
    guard,
    is_finished,
    make_once,
    read_options,
    run_stage,
)
from stages.core.errors import INTERRUPTED_EARLY
from stages.core.preset import refuse_contradictions
from stages.train.launch import add_place, choose_launch, in_group, launch_ranks, read_place, stay_quiet
from stages.train.lifeline import watch_launcher
from stages.train.recipe import make_recipe
from stages.train.saved import describe_begun, has_saved, refuse_more_steps
from stages.train.seeds import add_seeds, read_seeds, train_seeds


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and train, in as many processes as they say."""
    return guard("train", lambda: _run(argv))


def make_parser() -> argparse.ArgumentParser:
    """All options, for the help also those that `read_seeds` and `read_place` take out beforehand."""
    parser = build_parser("train", package.__doc__ or "", ["train"])
    add_seeds(parser)
    add_place(parser)
    return parser


def _run(argv: Sequence[str] | None) -> int:
    seeds, words = read_seeds(sys.argv[1:] if argv is None else argv)
    if seeds is not None:
        return train_seeds(seeds, words)
    place, words = read_place(words)
    watch_launcher()
    known = None  # of a group the leader alone finds out what is up to date: the others may not see its disk
    if not in_group():
        options = read_options(make_parser().parse_args(words))
        _refuse(options)
        progress.talk_on_stderr(options.json)
        launch = choose_launch(options, place, on_cpu=needs_blas())
        known = make_once(partial(make_recipe, ranks=launch.size if launch else 1))
        refuse_more_steps(options, known)
        if launch is not None and not (options.check or is_finished("train", options, known)):
            return launch_ranks(launch, words)
    if argv is None:
        sys.argv[1:] = words
    with stay_quiet():
        return run_stage(
            "train",
            package.__doc__,
            _work,
            None if argv is None else words,
            make_recipe=known,
            sections=["train"],
            computes=True,
            refuse=_refuse,
            begun=describe_begun,
        )


def _refuse(options: Options) -> None:
    refuse_contradictions(options.preset.train)


def _work(options: Options) -> Outcome:
    from stages.train.ranks import LostRank  # with MLX, which comes after the choice of a BLAS
    from stages.train.stage import train

    try:
        return train(options)
    except KeyboardInterrupt as interrupt:
        if has_saved(options) or (options.output("train") / MANIFEST).is_file():
            raise
        raise KeyboardInterrupt(INTERRUPTED_EARLY) from interrupt
    except LostRank as error:
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    sys.exit(main())
