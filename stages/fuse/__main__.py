"""Command line of fuse."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import fuse as package
from stages.core.cli import Options, Outcome, run_stage
from stages.fuse.recipe import make_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and fuse."""
    return run_stage("fuse", package.__doc__, _work, argv, computes=True, make_recipe=make_recipe)


def _work(options: Options) -> Outcome:
    from stages.fuse.stage import fuse  # with MLX, which comes after the choice of a BLAS

    return fuse(options)


if __name__ == "__main__":
    sys.exit(main())
