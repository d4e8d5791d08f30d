"""What went wrong first: replies labelled by reading them, before the attribution was run on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest

from stages.core.dialects import DIALECTS
from stages.core.records import Cause, RawReply, Score
from stages.core.suite import load_suite
from stages.eval.score import score_reply

DATA = Path(__file__).resolve().parents[1] / "data"
QUERIES = {query.id: query for query in load_suite(str(DATA / "labelled_queries.jsonl")).queries}
REPLIES: list[dict[str, Any]] = [
    orjson.loads(line) for line in (DATA / "labelled_replies.jsonl").read_bytes().splitlines()
]


def score(reply: dict[str, Any]) -> Score:
    raw = RawReply(id=reply["query"], text=reply["text"], tokens=9, finish=reply["finish"], seconds=0.1)
    return score_reply(QUERIES[reply["query"]], raw, reply["dialect"])


def test_all_causes_and_dialects_are_labelled() -> None:
    counts = Counter(reply["cause"] for reply in REPLIES)
    assert counts.keys() == {None, *get_args(Cause)}
    assert len(REPLIES) >= 150
    assert min(counts.values()) >= 5
    assert {reply["dialect"] for reply in REPLIES} == set(DIALECTS)
    assert {reply["query"] for reply in REPLIES} == QUERIES.keys()


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: f"{reply['id']} {reply['cause']}")
def test_the_cause_is_the_labelled_one(reply: dict[str, Any]) -> None:
    given_score = score(reply)
    assert given_score.cause == reply["cause"], reply["text"]
    assert given_score.strict.whole == (reply["cause"] is None)
