"""Command line of report."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from stages import report as package
from stages.core import progress
from stages.core.cli import Parser, add_common_flags, artifacts_root, guard, require_seed
from stages.core.errors import StageError
from stages.core.fixes import parse_fixes
from stages.core.interrupts import catch_interrupts
from stages.report.request import Request
from stages.report.results import evaluated_models, load_model_preset
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
    add_common_flags(
        parser,
        model="preset, .toml file or model folder (default: every report there is)",
        fixes="the arm that the verdict is about (default: fair, else the most repaired)",
        seed="the seed that the verdict is about (default: the lowest measured)",
        data="root of all outputs that are reported on, as retest_fair --out has it (default: artifacts)",
        out="folder of the reports (default: reports, with --data FOLDER its reports)",
        force="replace files of the same names that are no earlier reports",
    )
    parser.add_argument(
        "--reference", help="preset of the large model (default: the one that the preset names)"
    )
    return parser


def _read_request(args: argparse.Namespace) -> Request:
    """The parsed options. Raises StageError for any that is wrong, before a log is opened."""
    require_seed(args.seed or 0)
    for flag in ("fixes", "seed", "reference"):
        if args.model is None and getattr(args, flag) is not None:
            raise StageError(f"--{flag} is about one model's report: name the model with --model")
    if args.model is not None:
        preset = load_model_preset(args.model, args.reference)
        load_model_preset(preset.model.reference, None)
    if args.fixes is not None:
        parse_fixes(args.fixes)
    if args.data is not None:
        if not args.data.is_dir():
            raise StageError(
                f"no folder {args.data}: --data takes the root of all outputs, such as artifacts"
            )
        os.environ["FAIR_RETEST_ARTIFACTS"] = str(args.data)
        _require_evaluations(args.data)
    args.out = args.out or (args.data or Path()) / "reports"
    return Request(args.model, args.fixes, args.seed, args.reference, args.out, args.force)


def _require_evaluations(root: Path) -> None:
    """Raise StageError for a folder that someone named and that has nothing to report."""
    if evaluated_models():
        return
    if (root / "summary.json").is_file() or any(root.glob("*/summary.json")):
        raise StageError(
            f"{root} is an output of nox -s eval -- --out, which is for --compare and in no report: the same "
            "command without --out puts it where nox -s report finds it"
        )
    raise StageError(
        f"no evaluation in {root}: --data takes the root of all outputs, such as artifacts or what "
        "nox -s retest_fair -- --out FOLDER made"
    )


def _run(args: argparse.Namespace) -> int:
    progress.talk_on_stderr(args.json)
    request = _read_request(args)
    started = time.perf_counter()
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
