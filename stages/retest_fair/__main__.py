"""Command line of retest_fair."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stages import retest_fair as package
from stages.core.cli import build_parser, catch_interrupts, guard, read_options
from stages.core.errors import StageError
from stages.core.fixes import FixSet, parse_fixes
from stages.retest_fair.stage import Plan, retest


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and run the retest."""
    parser = build_parser("retest_fair", package.__doc__ or "", ("train", "quantize", "eval"))
    parser.add_argument("--arms", help="arms to run, such as flawed,fair (default: what the preset names)")
    parser.add_argument(
        "--despite-audit", action="store_true", help="train even if the fair arm's audit is critical"
    )
    parser.set_defaults(fixes=None)  # one arm, where it is given
    catch_interrupts()
    return guard("retest_fair", lambda: retest(_read_plan(parser.parse_args(argv))))


def _read_plan(args: argparse.Namespace) -> Plan:
    options = read_options(args)
    if args.arms and args.fixes:
        raise StageError("--fixes names one arm and --arms several: give one of the two")
    if args.fixes:
        arms: tuple[FixSet, ...] = (options.fixes,)
    else:
        names = args.arms.split(",") if args.arms else options.preset.arms
        arms = tuple(dict.fromkeys(parse_fixes(name.strip()) for name in names))
    return Plan(options, arms, model=args.model, despite_audit=args.despite_audit)


if __name__ == "__main__":
    sys.exit(main())
