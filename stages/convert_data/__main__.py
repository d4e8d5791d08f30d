"""Command line of convert_data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stages import convert_data as package
from stages.convert_data.request import add_flags, read_request
from stages.convert_data.stage import convert_data, find_output
from stages.core import progress
from stages.core.cli import Options, Outcome, answer_to_make, build_parser, guard, read_options, run_work
from stages.core.interrupts import catch_interrupts


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and convert."""
    parser = build_parser("convert_data", package.__doc__ or "")
    add_flags(parser)

    def body() -> int:
        catch_interrupts()
        return _run(parser.parse_args(argv))

    return guard("convert_data", body)


def _run(args: argparse.Namespace) -> int:
    request = read_request(args)

    def work(options: Options) -> Outcome:
        return convert_data(options, request)

    progress.talk_on_stderr(args.json)
    options = read_options(args)
    if not options.check:
        return run_work("convert_data", work, options)
    found = find_output(options, request)
    if found is None:
        return answer_to_make("convert_data", options.output("convert_data"), json=options.json)
    return run_work("convert_data", lambda _: found, options)


if __name__ == "__main__":
    sys.exit(main())
