"""Command line of eval."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import eval as package
from stages.core.cli import run_stage, start_compute


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and evaluate."""
    from stages.eval.stage import evaluate

    return run_stage("eval", package.__doc__, evaluate, argv, sections=("eval",), computes=True)


if __name__ == "__main__":
    sys.exit(start_compute("eval", main))
