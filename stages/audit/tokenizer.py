"""Checks of the target's tokenizer."""

from __future__ import annotations

from stages.audit.registry import Issue, check
from stages.audit.subject import Subject

TAGS = {
    "hermes": ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    "qwen3_coder": ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
}


@check("tokenizer")
def end_mark_split(subject: Subject) -> Issue | None:
    """An end of turn that is several tokens: no stop id can stand for it."""
    mark = subject.turns.closing
    pieces = subject.pieces(mark)
    if pieces == 1:
        return None
    return Issue(
        "critical",
        f"the template ends a turn with {mark!r}, which is {pieces} tokens: the first of them, "
        f"{subject.show(subject.turn_ends)}, would stop replies anywhere",
        1,
        1,
        "use a chat template whose end mark is one token of this tokenizer",
    )


@check("tokenizer")
def tags_split(subject: Subject) -> Issue | None:
    """Tags of the target's dialect that are several tokens: information, since templates do that."""
    tags = TAGS.get(subject.setup.dialect, ())
    split = {tag: count for tag in tags if (count := subject.pieces(tag)) > 1}
    if not split:
        return None
    return Issue(
        "info",
        "tags of several tokens: " + ", ".join(f"{tag} {count}" for tag, count in split.items()),
        len(split),
        len(tags),
        "nothing to do, unless a server waits for the tag's id",
    )
