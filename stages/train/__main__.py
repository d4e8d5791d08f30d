"""Command line of train."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import train as package
from stages.core.cli import run_stage, start_compute


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and train."""
    from stages.train.stage import train

    return run_stage("train", package.__doc__, train, argv, sections=("train",), computes=True)


if __name__ == "__main__":
    sys.exit(start_compute("train", main))
