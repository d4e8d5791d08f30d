"""Command line of quantize."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import quantize as package
from stages.core.cli import Options, Outcome, run_stage
from stages.core.fixes import require_taken
from stages.quantize.recipe import make_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and quantize."""
    return run_stage(
        "quantize",
        package.__doc__,
        _work,
        argv,
        make_recipe=make_recipe,
        sections=("quantize",),
        computes=True,
        refuse=lambda options: require_taken(options.overrides, [options.fixes]),
    )


def _work(options: Options) -> Outcome:
    from stages.quantize.stage import quantize  # with MLX, which comes after the choice of a BLAS

    return quantize(options)


if __name__ == "__main__":
    sys.exit(main())
