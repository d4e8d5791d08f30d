"""Command line of audit."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stages import audit as package
from stages.audit.recipe import asks_anew, make_recipe
from stages.audit.stage import audit, recall_audit
from stages.core.cli import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and audit."""
    return run_stage(
        "audit",
        package.__doc__,
        audit,
        argv,
        make_recipe=make_recipe,
        recall=recall_audit,
        renews=asks_anew,
        sections=("train", "quantize", "eval"),
    )


if __name__ == "__main__":
    sys.exit(main())
