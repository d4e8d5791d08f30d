"""The tools that hold for all rows: given, Code Mode's, or inferred - and the files that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from stages.convert_data.counts import COMMON_TOOLS, OWN_TOOLS
from stages.convert_data.inference import Census
from stages.convert_data.offers import ConvertContext
from stages.convert_data.review import write_review
from stages.core.chat import Tool
from stages.core.definitions import read_tools_file
from stages.core.fixes import FixSet
from stages.core.preset import ModelSetup
from stages.core.tools import EXECUTE_CODE
from stages.core.words import name_some, plural

TOOLS_FILE = "tools.json"
REVIEW_FILE = "tools_review.md"


def start_context(setup: ModelSetup, fixes: FixSet, given: Path | None) -> ConvertContext:
    """The context to begin with: the given tools, or Code Mode's until a row contradicts.

    An empty list says that rows without tools of their own have none; it takes no row's own away.
    Raises StageError when the file of tools is unusable.
    """
    if given is None:
        return ConvertContext(setup, fixes)
    tools = read_tools_file(given)
    return ConvertContext(setup, fixes, tools, given=bool(tools))


def apply_census(context: ConvertContext, census: Census) -> ConvertContext:
    """The context for data that ToolsUnclear was raised about, after a look at all of its rows."""
    untyped = census.untyped() if census.inferred else frozenset[str]()
    return replace(context, tools=census.tools(), untyped=untyped)


def write_tool_files(
    context: ConvertContext, census: Census | None, rows: Mapping[str, int], folder: Path
) -> str:
    """Write the tools that hold for many rows, with a review where they are inferred.

    `rows` counts those with OWN_TOOLS and COMMON_TOOLS. Returns the card's line about the tools. Code Mode's
    one tool and a row's own need no file.
    """
    names = [tool.name for tool in context.tools or ()]
    if context.tools and context.tools != (EXECUTE_CODE,):
        write_tools(context.tools, folder / TOOLS_FILE)
    if context.given:
        return _describe(names, "given for all rows, see tools.json")
    defining = rows.get(OWN_TOOLS, 0)
    if defining and not rows.get(COMMON_TOOLS):
        return "Every row has its own."
    own = f"{plural(defining, 'row')} with tools of their own; the others: " if defining else ""
    if census is not None and census.inferred:
        write_review(census, folder / REVIEW_FILE)
        return _describe(names, f"{own}inferred from the calls, see tools.json and tools_review.md")
    if context.tools == ():
        return _describe([], f"{own}none")
    return _describe([EXECUTE_CODE.name], f"{own}Code Mode's")


def write_tools(tools: Sequence[Tool], path: Path) -> None:
    """Write `tools.json`: a list in OpenAI shape, as `--tools` reads it."""
    data = [tool.to_json() for tool in tools]
    path.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")


def _describe(names: Sequence[str], origin: str) -> str:
    text = f"{origin}: {name_some(names, 12)}." if names else f"{origin}."
    return text[0].upper() + text[1:]
