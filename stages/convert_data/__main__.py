"""Command line of convert_data."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import convert_data as package
from stages.convert_data.stage import convert_data
from stages.core.cli import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and convert."""
    return run_stage("convert_data", package.__doc__, convert_data, argv)


if __name__ == "__main__":
    sys.exit(main())
