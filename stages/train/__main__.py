"""Command line of train."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import train as package
from stages.core.cli import Options, Outcome, guard, run_stage
from stages.train.launch import launch_ranks, read_launch, stay_quiet
from stages.train.seeds import read_seeds, train_seeds


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and train, in as many processes as they say."""
    return guard("train", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    seeds, rest = read_seeds(sys.argv[1:] if argv is None else argv)
    if seeds is not None:
        return train_seeds(seeds, rest)
    launch, rest = read_launch(rest)
    if launch is not None:
        return launch_ranks(launch, rest)
    if argv is None:
        sys.argv[1:] = rest
    with stay_quiet():
        words = None if argv is None else rest
        return run_stage("train", package.__doc__, _work, words, sections=("train",), computes=True)


def _work(options: Options) -> Outcome:
    from stages.train.ranks import LostRank  # with MLX, which comes after the choice of a BLAS
    from stages.train.stage import train

    try:
        return train(options)
    except LostRank:
        sys.exit(
            "train: another process of this run has ended; finished work is kept, the same command goes on"
        )


if __name__ == "__main__":
    sys.exit(main())
