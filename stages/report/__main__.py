"""Command line of report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from stages import report as package
from stages.core import progress
from stages.core.cli import Parser, artifacts_root, guard
from stages.core.errors import StageError
from stages.core.flags import folder
from stages.core.interrupts import catch_interrupts
from stages.report.request import Request
from stages.report.stage import write_reports


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and write the reports."""
    parser = _build_parser()
    catch_interrupts()
    return guard("report", lambda: _run(parser.parse_args(argv)))


def _build_parser() -> Parser:
    """Own options: without a model the report has no arm and no seed to default to."""
    parser = Parser(
        prog="python -m stages.report",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", help="preset, .toml file or model folder (default: every report there is)")
    parser.add_argument(
        "--fixes", help="the arm that the verdict is about (default: fair, else the most repaired)"
    )
    parser.add_argument(
        "--seed", type=int, help="the seed that the verdict is about (default: the lowest measured)"
    )
    parser.add_argument(
        "--reference", help="preset of the large model (default: the one that the preset names)"
    )
    parser.add_argument(
        "--out", type=folder, default=Path("reports"), help="folder of the reports (default: reports)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace files of the same names that are no earlier reports"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the outcome as JSON on stdout, all else on stderr"
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    progress.talk_on_stderr(args.json)
    if args.seed is not None and args.seed < 0:
        raise StageError(f"--seed {args.seed}: use 0 or a positive number")
    for flag in ("fixes", "seed", "reference"):
        if args.model is None and getattr(args, flag) is not None:
            raise StageError(f"--{flag} is about one model's report: name the model with --model")
    started = time.perf_counter()
    request = Request(args.model, args.fixes, args.seed, args.reference, args.out, args.force)
    with progress.run_log("report", artifacts_root() / "logs", model=args.model):
        written = write_reports(request)
    seconds = time.perf_counter() - started
    # One report: its own path, since a retest ends with these lines.
    place = args.out / f"{next(iter(written))}.md" if len(written) == 1 else args.out
    progress.say(f"report: done in {seconds:.2f} s: {place}")
    if args.json:
        verdicts = {name: verdict.model_dump(mode="json") for name, verdict in written.items()}
        answer = {
            "stage": "report",
            "folder": str(args.out),
            "seconds": round(seconds, 3),
            "reports": verdicts,
        }
        print(orjson.dumps(answer).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
