"""Replies that look as if nothing had answered: a rate over them says nothing about a model.

A server that sends empty texts, or one text for every question, still decides every direct query right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten

from stages.core.records import RawReply, Score
from stages.core.words import show_controls

MOST_EMPTY = 0.5  # share of a suite; a model that works hardly ever says nothing
REMEDY = (
    "look at replies.jsonl and at what made them (server, template, stop tokens) before you believe a rate"
)
THOUGHT = "</think>"  # behind it a model answers


def find_silence(replies: Sequence[RawReply], scores: Sequence[Score]) -> str:
    """What is odd about the replies to a suite as a whole, with what to do; empty where nothing is."""
    return find_emptiness(replies) or find_sameness(replies, scores)


def find_emptiness(replies: Sequence[RawReply]) -> str:
    """That most of the replies say nothing: no model that is set up right does that."""
    empty = sum(said == "" for said in map(_read_said, replies))
    return (
        f"{empty} of {len(replies)} replies are empty: {REMEDY}" if empty > MOST_EMPTY * len(replies) else ""
    )


def find_sameness(replies: Sequence[RawReply], scores: Sequence[Score]) -> str:
    """That all replies say the same, as a ruined model may do too.

    A suite may want one call for all of its queries, so equal replies that are all right calls are none.
    """
    texts = [said for reply in replies if (said := _read_said(reply)) is not None]
    if len(texts) < 2 or len(set(texts)) > 1 or all(s.kind == "tool" and s.strict.whole for s in scores):
        return ""
    shown = shorten(show_controls(texts[0]), 40, placeholder=" …")
    return f"all {len(texts)} replies are the same text ({shown}): {REMEDY}"


def _read_said(reply: RawReply) -> str | None:
    """What a reply says behind its thoughts; None of one that a server could not read, which has no text."""
    served: Mapping[str, object] = reply.served or {}
    return None if "error" in served else reply.text.rpartition(THOUGHT)[2].strip()
