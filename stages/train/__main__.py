"""Command line of train."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import train as package
from stages.core.blas import ensure_fast_blas
from stages.core.cli import artifacts_root, run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and train."""
    from stages.train.stage import train

    return run_stage("train", package.__doc__, train, argv, sections=("train",))


if __name__ == "__main__":
    print(ensure_fast_blas(artifacts_root() / "blas"))
    sys.exit(main())
