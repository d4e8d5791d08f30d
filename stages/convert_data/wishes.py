"""What a user may ask of a conversion beside the common options, and the settling of the tools."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.convert_data.card import describe_tools
from stages.convert_data.definitions import read_tools_file
from stages.convert_data.inference import Census, infer_tools, write_review, write_tools
from stages.convert_data.rows import ConvertContext
from stages.core.fixes import FixSet
from stages.core.preset import ModelSetup
from stages.core.tools import EXECUTE_CODE

TOOLS_FILE = "tools.json"
REVIEW_FILE = "tools_review.md"


@dataclass(frozen=True)
class Wishes:
    """The options that decide what the rows become."""

    tools: Path | None = None
    """A file with the tools of all rows."""
    render: str | None = None
    """A preset or model folder: its chat template's text is written too."""
    dedup: bool = False
    """Leave duplicates and leaking rows out."""


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """The flags of `Wishes`."""
    group = parser.add_argument_group("the rows")
    group.add_argument(
        "--tools",
        type=Path,
        metavar="FILE",
        help="the tools of all rows, a JSON list (default: a row's own, Code Mode's, or inferred)",
    )
    group.add_argument(
        "--render", metavar="MODEL", help="also write the text that this preset's or folder's template gives"
    )
    group.add_argument(
        "--dedup",
        action="store_true",
        help="leave out repeated rows, and training rows that another split has",
    )


def read_wishes(args: argparse.Namespace) -> Wishes:
    """The parsed flags."""
    return Wishes(args.tools, args.render, args.dedup)


def start_context(setup: ModelSetup, fixes: FixSet, wishes: Wishes) -> ConvertContext:
    """The context to begin with: the given tools, or Code Mode's until a row contradicts.

    Raises StageError when the file of tools is unusable.
    """
    if wishes.tools is None:
        return ConvertContext(setup, fixes)
    return ConvertContext(setup, fixes, read_tools_file(wishes.tools), given=True)


def settle_tools(context: ConvertContext, rows: Iterable[Any]) -> tuple[ConvertContext, Census]:
    """The context for data that ToolsUnclear was raised about, after a look at all of its rows."""
    census = infer_tools(rows)
    return apply_census(context, census), census


def apply_census(context: ConvertContext, census: Census) -> ConvertContext:
    """The context with the tools that the census of all rows found."""
    untyped = census.untyped() if census.inferred else frozenset[str]()
    return replace(context, tools=census.tools(), untyped=untyped)


def write_tool_files(context: ConvertContext, census: Census | None, folder: Path) -> str:
    """Write the tools that hold for many rows, with a review where they are inferred.

    Returns the card's line about the tools. Code Mode's one tool and a row's own need no file.
    """
    names = [tool.name for tool in context.tools or ()]
    if context.tools and context.tools != (EXECUTE_CODE,):
        write_tools(context.tools, folder / TOOLS_FILE)
    if context.given:
        return describe_tools(names, "given for all rows, see tools.json")
    own = f"{census.defining} rows have their own; the others: " if census and census.defining else ""
    if census is not None and census.inferred:
        write_review(census, folder / REVIEW_FILE)
        return describe_tools(names, f"{own}inferred from the calls, see tools.json and tools_review.md")
    if context.tools == ():
        return describe_tools([], f"{own}none")
    return describe_tools([EXECUTE_CODE.name], f"{own}Code Mode's")
