"""One row of any understood shape to one neutral row, or the reason why not."""

from __future__ import annotations

from typing import Any

from stages.convert_data.converted import Converted
from stages.convert_data.draft import Draft, is_text
from stages.convert_data.instructions import find_definitions
from stages.convert_data.legacy import keep_legacy
from stages.convert_data.messages import SourceTurn
from stages.convert_data.offers import ConvertContext
from stages.convert_data.plain import convert_plain
from stages.convert_data.results import holds_results
from stages.convert_data.shapes import SourceRow, read_row
from stages.core.definitions import NONE, Definitions, read_definitions


def convert_row(raw: Any, context: ConvertContext) -> Converted:
    """Convert one row, whose integers are as they were written.

    Raises ValueError with the reason when it cannot be done without a loss, and ToolsUnclear when the whole
    data set has to be looked at first.
    """
    if (plain := convert_plain(raw, context)) is not None:
        return plain
    return convert_fully(raw, context)


def convert_fully(raw: Any, context: ConvertContext) -> Converted:
    """The same for a row of any form."""
    source = read_row(raw)
    turns, own, changes = _take_own_tools(source)
    offer = context.choose(own) if "json" in context.fixes or "tools" in context.fixes else context.default
    if own.tools and offer.shown is not own and not own.is_code_mode:
        changes.append("tools of the row replaced by the given ones")
    if "json" not in context.fixes:
        # What the fair arm rejects is no row of the others either: they would not learn from the same.
        return keep_legacy(raw, source, turns, offer, context, convert_row(raw, context.fair))
    draft = Draft(context, offer, changes, from_text=is_text(raw, source))
    _add_turns(draft, turns)
    return draft.finish(raw, source)


def _add_turns(draft: Draft, turns: list[SourceTurn]) -> None:
    for turn in turns:
        role, text = turn[0], turn[1]
        if role == "assistant":
            draft.add_answer(turn)
        elif holds_results(role, text, draft.from_text):
            draft.add_results(turn)
        elif role == "user":
            draft.questions.append(text)
            draft.turns.append({"role": "user", "content": text})
        else:
            draft.add_system(text)
    if not draft.answered:
        raise ValueError("no assistant turn")


def _take_own_tools(source: SourceRow) -> tuple[list[SourceTurn], Definitions, list[str]]:
    """The turns, the tools that the row defines in a column or a system text, and what changed."""
    changes = list(source.changes)
    own = read_definitions(source.tools) if source.tools is not None else NONE
    turns = source.turns
    if (found := find_definitions(turns)) is not None:
        place, taken = found
        turns = [*turns[:place], turns[place]._replace(text=taken.text), *turns[place + 1 :]]
        if own.tools and own.tools != taken.own.tools:
            changes.append("tools of a turn's text left out for those of the column")
        own = own if own.tools else taken.own
        changes += taken.changes
    if own.changes:
        changes += own.changes
    return turns, own, changes
