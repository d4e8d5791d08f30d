"""Command line of convert_data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stages import convert_data as package
from stages.convert_data.stage import convert_data
from stages.convert_data.wishes import add_wishes, read_wishes
from stages.core.cli import Options, Outcome, build_parser, catch_interrupts, guard, run_work


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and convert."""
    parser = build_parser("convert_data", package.__doc__ or "")
    add_wishes(parser)
    catch_interrupts()
    return guard("convert_data", lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    wishes = read_wishes(args)

    def work(options: Options) -> Outcome:
        return convert_data(options, wishes)

    return run_work("convert_data", work, args)


if __name__ == "__main__":
    sys.exit(main())
