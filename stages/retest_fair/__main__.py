"""Command line of retest_fair."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from stages import retest_fair as package
from stages.core import progress
from stages.core.cli import build_parser, guard, read_options
from stages.core.errors import StageError
from stages.core.fixes import distinct_arms, require_taken
from stages.core.flags import add_ask_again, add_row_flags, count, seed_list
from stages.core.interrupts import catch_interrupts
from stages.core.preset import refuse_contradictions
from stages.retest_fair.stage import Plan, check_inputs, retest


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and run the retest."""
    parser = build_parser("retest_fair", package.__doc__ or "", ("train", "quantize", "eval"), arm=None)
    add_row_flags(parser)
    add_ask_again(parser)
    parser.add_argument("--arms", help="arms to run, such as flawed,fair or fair,json+tools (%(default)s)")
    parser.add_argument(
        "--seeds", type=seed_list, metavar="N,N,…", help="train and evaluate every arm with each of these"
    )
    parser.add_argument(
        "--jobs",
        type=count,
        metavar="N",
        help="arms that train side by side (default: 2 of a small model)",
    )
    parser.add_argument(
        "--check", action="store_true", help="look at options, suites, disk and model, and make nothing"
    )
    parser.add_argument(
        "--despite-audit", action="store_true", help="train even if the fair arm's audit is critical"
    )

    def body() -> int:
        catch_interrupts()
        plan = _read_plan(parser.parse_args(argv))
        progress.talk_on_stderr(plan.options.json)
        if plan.options.out is not None:
            os.environ["FAIR_RETEST_ARTIFACTS"] = str(plan.options.out)
        if plan.options.check:
            check_inputs(plan)
            return 0
        return retest(plan)

    return guard("retest_fair", body)


def _read_plan(args: argparse.Namespace) -> Plan:
    options = read_options(args)
    refuse_contradictions(options.preset.train)
    if args.fixes is not None and args.arms is not None:
        raise StageError("--fixes names one arm and --arms several: give one of the two")
    if args.seed is not None and args.seeds is not None:
        raise StageError("--seed names one seed and --seeds several: give one of the two")
    if args.jobs is not None and args.jobs < 1:
        raise StageError(f"--jobs {args.jobs}: use 1 for one arm after the other, or more")
    share = options.rows.get("valid_share")
    if share is not None and not 0 < share < 1:
        raise StageError(
            f"--valid-share {share:g}: training needs a valid split, use a share "
            "above 0 and below 1, such as 0.1"
        )
    texts = options.preset.arms if args.arms is None else args.arms.split(",")
    arms = distinct_arms(texts) if args.fixes is None else (options.fixes,)
    require_taken(options.overrides, arms)
    seeds = args.seeds or (options.seed,)
    return Plan(
        options, arms, args.model, seeds, args.despite_audit, ask_again=args.ask_again, jobs=args.jobs
    )


if __name__ == "__main__":
    sys.exit(main())
