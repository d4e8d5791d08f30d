"""Command line of convert_data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stages import convert_data as package
from stages.convert_data.stage import Request, convert_data
from stages.core import progress
from stages.core.cli import Options, Outcome, build_parser, catch_interrupts, guard, read_options, run_work
from stages.core.errors import StageError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and convert."""
    parser = build_parser("convert_data", package.__doc__ or "")
    _add_flags(parser)

    def body() -> int:
        catch_interrupts()
        return _run(parser.parse_args(argv))

    return guard("convert_data", body)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the data and the work")
    group.add_argument(
        "--valid-share",
        type=float,
        metavar="SHARE",
        help="where the data have no valid split: this share of the train rows; 0 does without",
    )
    group.add_argument(
        "--shard-mb",
        type=int,
        default=Request.shard_mb,
        metavar="MB",
        help=f"a longer split is written in shards of this size (default: {Request.shard_mb})",
    )
    group.add_argument("--workers", type=int, metavar="N", help="processes (default: one for every core)")
    group.add_argument(
        "--engine",
        choices=["local", "ray"],
        default=Request.engine,
        help="where the work is done: on this machine, or on a Ray cluster (default: local)",
    )


def _run(args: argparse.Namespace) -> int:
    request = _read_request(args)

    def work(options: Options) -> Outcome:
        return convert_data(options, request)

    progress.talk_on_stderr(args.json)
    return run_work("convert_data", work, read_options(args))


def _read_request(args: argparse.Namespace) -> Request:
    if args.valid_share is not None and not 0 <= args.valid_share < 1:
        raise StageError(f"--valid-share {args.valid_share}: use a share from 0 up to 1, such as 0.1")
    for flag, number in (("--shard-mb", args.shard_mb), ("--workers", args.workers)):
        if number is not None and number < 1:
            raise StageError(f"{flag} {number}: use 1 or more")
    return Request(args.valid_share, args.shard_mb, args.workers, args.engine)


if __name__ == "__main__":
    sys.exit(main())
