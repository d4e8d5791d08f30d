"""Command line of train."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import train as package
from stages.core.cli import Options, Outcome, guard, run_stage, start_compute
from stages.train.launch import launch_ranks, read_launch, stay_quiet


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and train, in as many processes as they say."""
    return guard("train", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    launch, rest = read_launch(argv)
    if launch is not None:
        return launch_ranks(launch, rest)
    with stay_quiet():
        return run_stage("train", package.__doc__, _work, rest, sections=("train",), computes=True)


def _work(options: Options) -> Outcome:
    from stages.train.stage import train  # with MLX, which comes after the choice of a BLAS

    return train(options)


if __name__ == "__main__":
    sys.exit(start_compute("train", main))
