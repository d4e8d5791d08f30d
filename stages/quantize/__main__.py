"""Command line of quantize."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import quantize as package
from stages.core.cli import run_stage, start_compute


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and quantize."""
    from stages.quantize.stage import quantize

    return run_stage("quantize", package.__doc__, quantize, argv, sections=("quantize",), computes=True)


if __name__ == "__main__":
    sys.exit(start_compute("quantize", main))
