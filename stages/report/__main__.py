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
from stages.core.cli import artifacts_root, guard
from stages.report.stage import Request, write_reports


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and write the reports."""
    args = _build_parser().parse_args(argv)
    return guard("report", lambda: _run(args))


def _build_parser() -> argparse.ArgumentParser:
    """Own options: without a model the report has no arm and no seed to default to."""
    parser = argparse.ArgumentParser(
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
        "--out", type=Path, default=Path("reports"), help="folder of the reports (default: reports)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the outcome as JSON on stdout, all else on stderr"
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    progress.talk_on_stderr(args.json)
    started = time.perf_counter()
    request = Request(args.model, args.fixes, args.seed, args.reference, args.out)
    with progress.run_log("report", artifacts_root() / "logs", model=args.model):
        written = write_reports(request)
    seconds = time.perf_counter() - started
    progress.say(f"report: done in {seconds:.2f} s: {args.out}")
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
