"""Command line of fuse."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import fuse as package
from stages.core.cli import run_stage, start_compute


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and fuse."""
    from stages.fuse.stage import fuse

    return run_stage("fuse", package.__doc__, fuse, argv, computes=True)


if __name__ == "__main__":
    sys.exit(start_compute("fuse", main))
