"""Command line of eval."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import orjson

from stages import eval as package
from stages.core import progress
from stages.core.blas import ensure_fast_blas
from stages.core.cli import (
    Outcome,
    answer_to_make,
    blas_folder,
    build_parser,
    guard,
    read_options,
    run_work,
)
from stages.core.interrupts import catch_interrupts
from stages.eval.parity import compare_outputs
from stages.eval.request import Request, add_flags, read_request
from stages.eval.stage import evaluate, find_current, find_place, needs_nothing


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and evaluate."""
    parser = build_parser("eval", package.__doc__ or "", sections=("eval",))
    add_flags(parser)

    def body() -> int:
        catch_interrupts()
        return _run(parser.parse_args(argv), typed=argv is None)

    return guard("eval", body)


def _run(args: argparse.Namespace, *, typed: bool) -> int:
    progress.talk_on_stderr(args.json)
    options = read_options(args)
    request = read_request(args, options)
    if request.compare:
        return _compare(request, json=options.json)
    if options.check:
        if not needs_nothing(options, request):
            return answer_to_make("eval", find_place(options), json=options.json)
        return run_work("eval", lambda options: Outcome(find_place(options), up_to_date=True), options)
    current = find_current(options, request) if request.local else None
    computes = request.local and current is None
    if computes and typed:
        ensure_fast_blas(blas_folder())  # starts this command once more
    return run_work("eval", lambda options: evaluate(options, request, current), options, computes=computes)


def _compare(request: Request, *, json: bool) -> int:
    comparison = compare_outputs(request.compare)
    for line in comparison.lines:
        progress.say(line)
    if json:
        print(orjson.dumps({"differences": comparison.differences}).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
