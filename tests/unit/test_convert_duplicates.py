"""Duplicates and leaks: what counts as the same, and which of two rows goes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.convert_data.digests import NO_DIGEST
from stages.convert_data.duplicates import PACKED, Digests, Duplicates, Pair, Repeats, find, pack
from stages.convert_data.offers import ConvertContext
from stages.convert_data.rows import convert_row
from stages.core.chat import ToolCall
from stages.core.chatml import Turn, join_chatml
from stages.core.dialects import DIALECTS, render_calls
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.tools import EXECUTE_CODE

SETUP = load_preset("smol").model


def row(question: str, answer: str, system: str = "") -> dict[str, Any]:
    head = [Turn("system", system)] if system else []
    return {"text": join_chatml([*head, Turn("user", question), Turn("assistant", answer)])}


def digest(raw: dict[str, Any], fixes: FixSet = FAIR) -> tuple[bytes, bytes]:
    return convert_row(raw, ConvertContext(SETUP, fixes)).digests


def split(*rows: tuple[str, str]) -> Digests:
    return pack(digest(row(*each)) for each in rows)


def search(splits: dict[str, Digests]) -> Duplicates:
    """The search in rows that are numbered from 1."""
    return find(splits, {name: np.arange(1, len(rows) + 1, dtype=np.uint64) for name, rows in splits.items()})


def drops(**splits: Digests) -> dict[str, list[int]]:
    return {name: twins.positions.tolist() for name, twins in search(splits).twins.items()}


def test_digests_are_of_the_meaning() -> None:
    call = ToolCall("execute_code", {"code": "print(1)"})
    same = {digest(row("Do it.", render_calls([call], dialect, [EXECUTE_CODE]))) for dialect in DIALECTS}
    same.add(digest(row("Do it.", render_calls([call], "hermes"), system="Another persona.")))
    assert len(same) == 1, "neither the dialect nor the replaced system text is the meaning"
    ((whole, questions),) = same
    assert (len(whole), len(questions)) == (16, 16)
    other, asked = digest(row("  do IT!", "No."))
    assert other != whole
    assert asked == questions
    assert digest(row("Do that.", "No."))[1] != questions


def test_without_the_fixes_the_text_counts() -> None:
    first, second = (digest(row("Hi", answer), FLAWED) for answer in ("a", "b"))
    assert first[0] != second[0]
    assert first[1] == second[1] == digest(row("hi.", "a"), FAIR)[1]


def test_results_are_no_questions() -> None:
    turns = [
        Turn("assistant", "<tool_call>\nprint(1)\n</tool_call>"),
        Turn("user", "<tool_response>\n1\n</tool_response>"),
        Turn("assistant", "One."),
    ]
    for fixes in (FAIR, FLAWED):
        assert digest({"text": join_chatml(turns)}, fixes)[1] == NO_DIGEST
    assert digest(row("?!", "What?"))[1] == NO_DIGEST


def test_the_later_row_of_a_split_goes() -> None:
    train = split(("a", "1"), ("b", "1"), ("a", "1"), ("a", "2"), ("a", "1"))
    found = search({"train": train})
    assert found.within["train"] == Repeats(
        2, 0, (Pair("train", 3, "train", 1), Pair("train", 5, "train", 1))
    )
    assert found.twins["train"].positions.tolist() == [2, 4], "the same question with another answer stays"
    assert found.any
    assert not search({"train": split(("a", "1"), ("a", "2")), "valid": split(("b", "1"))}).any


def test_leaks_go_from_training_and_then_from_validation() -> None:
    train = split(("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1"))
    valid = split(("b", "1"), ("c", "2"), ("x", "1"))
    test = split(("d", "9"), ("x", "1"))
    found = search({"train": train, "valid": valid, "test": test})
    assert {name: twins.positions.tolist() for name, twins in found.twins.items()} == {
        "train": [1, 2, 3],
        "valid": [2],
        "test": [],
    }
    assert found.leaks["train", "valid"] == Repeats(
        1, 1, (Pair("train", 2, "valid", 1), Pair("train", 3, "valid", 2))
    )
    assert found.leaks["train", "test"] == Repeats(0, 1, (Pair("train", 4, "test", 1),))
    assert found.leaks["valid", "test"] == Repeats(1, 0, (Pair("valid", 3, "test", 2),))


def test_rows_without_a_question_do_not_leak_into_each_other() -> None:
    blank = [(bytes([i]) * 16, NO_DIGEST) for i in range(1, 5)]
    assert drops(train=pack(blank[:2]), valid=pack(blank[2:])) == {"train": [], "valid": []}


def test_splits_may_be_empty() -> None:
    assert drops(train=pack([]), valid=split(("a", "1"))) == {"train": [], "valid": []}
    assert drops(train=split(("a", "1")), valid=pack([])) == {"train": [], "valid": []}


DIGEST = st.sampled_from(
    [bytes([i]) + bytes(15) for i in range(6)] + [bytes(15) + bytes([i]) for i in (0, 1, 128)]
)
ROWS = st.lists(st.tuples(DIGEST, DIGEST), max_size=12)


@given(ROWS, ROWS, ROWS)
def test_it_finds_what_a_plain_search_finds(train: list[Any], valid: list[Any], test: list[Any]) -> None:
    data = {"train": train, "valid": valid, "test": test}
    wanted: dict[str, list[int]] = {}
    for name, others in (("train", ("valid", "test")), ("valid", ("test",)), ("test", ())):
        wanted[name] = []
        for position, (whole, questions) in enumerate(data[name]):
            earlier = [w for w, _ in data[name][:position]]
            leaked = any(w == whole for other in others for w, _ in data[other]) or (
                questions != NO_DIGEST and any(q == questions for other in others for _, q in data[other])
            )
            if whole in earlier or leaked:
                wanted[name].append(position)
    assert drops(**{name: pack(rows) for name, rows in data.items()}) == wanted


def test_nothing_is_left_to_find_after_the_drop() -> None:
    random.seed(3)
    data = {
        name: pack([(random.randbytes(1) * 16, random.randbytes(1) * 16) for _ in range(200)])
        for name in ("train", "valid", "test")
    }
    found = search(data)
    kept = {name: np.delete(rows, found.twins[name].positions) for name, rows in data.items()}
    assert not search(kept).any
    assert all(len(rows) for rows in kept.values())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_digests_are_packed_in_32_bytes_a_row(count: int) -> None:
    packed = pack([(b"r" * 16, b"q" * 16)] * count)
    assert (packed.shape, packed.dtype, packed.nbytes) == ((count,), PACKED, 32 * count)
