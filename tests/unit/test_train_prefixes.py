"""Which rows are computed behind a common beginning, and how long it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.render import Encoded
from stages.train.prefixes import PART, group_rows, shared_prefix
from tests.unit.test_train_rows import encoded_rows, row


@given(encoded_rows())
def test_the_prefix_is_the_longest_that_all_rows_may_share(rows: list[Encoded]) -> None:
    prefix = shared_prefix(rows)
    assert all(one.tokens[: len(prefix)] == prefix for one in rows)
    first = min(one.supervised.index(True) for one in rows)
    if prefix:
        assert len(prefix) < first, "the last token of the prefix would predict something supervised"
    longer = len(prefix) + 1
    assert longer >= first or len({tuple(one.tokens[:longer]) for one in rows}) > 1


@pytest.mark.parametrize(
    ("rows", "prefix"),
    [
        ([row([1, 2, 3, 4], "...x"), row([1, 2, 3, 5], "...x")], [1, 2]),
        ([row([1, 2, 3, 4], "...x"), row([1, 9, 3, 5], "...x")], [1]),
        ([row([1, 2, 3, 4], "...x"), row([9, 2, 3, 4], "...x")], []),
        ([row([1, 2, 3, 4], ".x.x"), row([1, 2, 3, 4], "...x")], []),
        ([row([1, 2], "xx")], []),
        ([row([1, 2, 3, 4, 5], "....x")], [1, 2, 3]),
    ],
)
def test_known_prefixes(rows: list[Encoded], prefix: list[int]) -> None:
    assert shared_prefix(rows) == prefix


def begin(*head: tuple[int, int]) -> Encoded:
    """A row that begins with so many of each token, before a question and an answer of its own."""
    tokens = [token for token, count in head for _ in range(count)]
    return Encoded([*tokens, 1, 2], [False] * (len(tokens) + 1) + [True], [-1] * (len(tokens) + 2))


def count_positions(groups: Sequence[Sequence[Encoded]], batch_size: int) -> float:
    """What a batch of rows drawn at random costs on average, beside the tokens of its rows."""
    total = sum(map(len, groups))
    size = min(batch_size, total)
    absent = [math.comb(total - len(group), size) / math.comb(total, size) for group in groups]
    lengths = [len(shared_prefix(group)) for group in groups]
    return sum(
        (1 - none) * (length + PART) - size * len(group) / total * length
        for group, length, none in zip(groups, lengths, absent, strict=True)
    )


HEADS = st.lists(st.tuples(st.integers(3, 6), st.integers(1, 400)), max_size=3).map(tuple)
MIXED = st.lists(st.tuples(HEADS, st.integers(1, 30)), min_size=1, max_size=6)


@given(MIXED, st.integers(1, 16), st.randoms())
def test_every_row_is_in_one_group_and_groups_cost_no_more_than_none(
    kinds: list[tuple[tuple[tuple[int, int], ...], int]], batch_size: int, random: Random
) -> None:
    rows = [begin(*head) for head, count in kinds for _ in range(count)]
    random.shuffle(rows)
    groups = group_rows(rows, batch_size)
    places = {id(one): index for index, one in enumerate(rows)}
    numbers = [[places[id(one)] for one in group] for group in groups]
    assert sorted(number for group in numbers for number in group) == list(range(len(rows)))
    assert all(group == sorted(group) for group in numbers), "as they came, which decides on their company"
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
    assert count_positions(groups, batch_size) <= count_positions([rows], batch_size) + 1e-6


@pytest.mark.parametrize(
    ("kinds", "batch_size", "sizes", "prefixes"),
    [
        ([([(3, 300)], 100)], 8, [100], [300]),
        ([([(3, 300)], 99), ([(4, 250)], 1)], 8, [99, 1], [300, 250]),
        ([([(3, 300)], 50), ([(4, 200)], 50)], 8, [50, 50], [300, 200]),
        ([([(3, 20), (token, 300)], 1) for token in range(4, 104)], 8, [100], [20]),
        ([([(3, 300), (token, 20)], 10) for token in range(4, 14)], 8, [100], [300]),
        ([([(3, 300)], 50), ([(4, 300)], 50)], 1, [100], [0]),
        ([([(3, 800), (4, 400)], 50), ([(3, 800), (5, 400)], 50)], 8, [50, 50], [1200, 1200]),
        ([([(3, 800), (4, 40)], 50), ([(3, 800), (5, 40)], 50)], 8, [100], [800]),
        ([([(token, 300)], 10) for token in range(3, 9)], 8, [10] * 6, [300] * 6),
        ([([(token, 300)], 10) for token in range(3, 43)], 8, [400], [0]),
        ([([(3, 300), (4, 200)], 60), ([(3, 300)], 30), ([(5, 90)], 2)], 8, [60, 30, 2], [500, 300, 90]),
    ],
    ids=[
        "one way to begin",
        "a single row has its own",
        "two ways",
        "each row has tools of its own",
        "questions differ",
        "a batch of one shares nothing",
        "long tools behind one text",
        "short tools behind one text",
        "several ways",
        "too many ways",
        "one way goes on in most rows",
    ],
)
def test_rows_are_grouped_where_it_pays(
    kinds: list[tuple[list[tuple[int, int]], int]], batch_size: int, sizes: list[int], prefixes: list[int]
) -> None:
    groups = group_rows([begin(*head) for head, count in kinds for _ in range(count)], batch_size)
    assert [len(group) for group in groups] == sizes
    assert [len(shared_prefix(group)) for group in groups] == prefixes
