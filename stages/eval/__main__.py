"""Command line of eval."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import eval as package
from stages.core.cli import Options, Outcome, run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and evaluate."""
    return run_stage("eval", package.__doc__, _work, argv, sections=("eval",), computes=True)


def _work(options: Options) -> Outcome:
    from stages.eval.stage import evaluate  # with MLX, which comes after the choice of a BLAS

    return evaluate(options)


if __name__ == "__main__":
    sys.exit(main())
