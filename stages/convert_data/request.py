"""What a user may ask of a conversion beside the common options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.core.errors import StageError
from stages.core.flags import add_row_flags, count


@dataclass(frozen=True)
class Request:
    """How the data are read and what the rows become; `workers` and `engine` do not show in the output."""

    valid_share: float | None = None
    """Share of the train rows that become `valid`; 0 does without that split."""
    tools: Path | None = None
    """A file with the tools of all rows."""
    render: str | None = None
    """A preset or model folder: its chat template's text is written too."""
    dedup: bool = False
    """Leave duplicates and leaking rows out."""
    shard_mb: int = 512
    """A split with more than so many megabytes (1e6 bytes) is written in shards of about that size: what
    becomes of one piece of the input is never cut."""
    workers: int | None = None
    """Processes; None: one for every core."""
    engine: Literal["local", "ray"] = "local"

    @property
    def flags(self) -> dict[str, Any]:
        """What was given of the flags that no other stage has and the output shows."""
        own = {"render": self.render, "shard_mb": self.shard_mb}
        return {name: value for name, value in own.items() if value != getattr(Request, name)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Request`."""
    add_row_flags(parser)
    parser.add_argument(
        "--render", metavar="MODEL", help="also write the text that this preset's or folder's template gives"
    )
    group = parser.add_argument_group("the work")
    group.add_argument(
        "--shard-mb",
        type=count,
        default=Request.shard_mb,
        metavar="MB",
        help="a split that is longer when written goes into shards of this size; what becomes of 16 MiB of "
        f"input or more is never cut, so a shard may be larger (default: {Request.shard_mb})",
    )
    group.add_argument("--workers", type=count, metavar="N", help="processes (default: one for every core)")
    group.add_argument(
        "--engine",
        choices=["local", "ray"],
        default=Request.engine,
        help="where the work is done: on this machine, or on a Ray cluster (default: local)",
    )


def read_request(args: argparse.Namespace) -> Request:
    """The parsed flags. Raises StageError for a number out of range."""
    if args.valid_share is not None and not 0 <= args.valid_share < 1:
        raise StageError(f"--valid-share {args.valid_share}: use a share from 0 up to 1, such as 0.1")
    for flag, number in (("--shard-mb", args.shard_mb), ("--workers", args.workers)):
        if number is not None and number < 1:
            raise StageError(f"{flag} {number}: use 1 or more")
    return Request(
        valid_share=args.valid_share,
        tools=None if args.tools is None else Path(args.tools),
        render=args.render,
        dedup=args.dedup,
        shard_mb=args.shard_mb,
        workers=args.workers,
        engine=args.engine,
    )
