"""Batches of a run: every row once an epoch, and the numbers of a batch against a plain reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.render import Encoded
from stages.train.prefixes import shared_prefix
from stages.train.rows import BUCKET, Batch, BatchPlan, make_batch, spread

LENGTHS = st.lists(st.integers(2, 400), min_size=1, max_size=120).map(tuple)
PLANS = st.builds(BatchPlan, LENGTHS, st.integers(1, 9), st.integers(0, 2**40))


def row(tokens: list[int], marks: str) -> Encoded:
    """A row; `marks` has a character per token: `x` for a supervised one, a digit for that call's."""
    assert len(tokens) == len(marks)
    calls = [int(mark) if mark.isdigit() else -1 for mark in marks]
    return Encoded(tokens, [mark == "x" or mark.isdigit() for mark in marks], calls)


@st.composite
def encoded_rows(draw: st.DrawFn) -> list[Encoded]:
    """Rows that begin alike; each has something supervised behind its first token, as in a run."""
    start = draw(st.lists(st.integers(1, 9), max_size=20))
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        tokens = start + draw(st.lists(st.integers(1, 9), min_size=2, max_size=40))
        supervised = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
        supervised[draw(st.integers(1, len(tokens) - 1))] = True
        rows.append(Encoded(tokens, supervised, [-1] * len(tokens)))
    return rows


def epoch(plan: BatchPlan, number: int) -> list[list[int]]:
    first = number * plan.steps_per_epoch
    return [plan.rows_of(step) for step in range(first, first + plan.steps_per_epoch)]


@given(PLANS, st.integers(0, 3))
def test_every_row_is_seen_once_an_epoch(plan: BatchPlan, number: int) -> None:
    batches = epoch(plan, number)
    assert sorted(index for batch in batches for index in batch) == list(range(len(plan.lengths)))
    assert plan.steps_per_epoch == -(-len(plan.lengths) // plan.batch_size)
    sizes = Counter(len(batch) for batch in batches)
    left = len(plan.lengths) % plan.batch_size
    assert sizes == Counter(
        {plan.batch_size: len(plan.lengths) // plan.batch_size} | ({left: 1} if left else {})
    )


@given(PLANS, st.lists(st.integers(0, 400), max_size=8))
def test_a_step_depends_on_the_seed_and_its_number_alone(plan: BatchPlan, steps: list[int]) -> None:
    again = BatchPlan(plan.lengths, plan.batch_size, plan.seed)
    in_order = {step: plan.rows_of(step) for step in sorted(steps)}
    for step in steps:
        assert again.rows_of(step) == in_order[step]


def test_seeds_and_epochs_differ() -> None:
    lengths = tuple(range(10, 210))
    plan = BatchPlan(lengths, 4, 0)
    assert epoch(plan, 0) != epoch(plan, 1)
    assert epoch(plan, 0) != epoch(BatchPlan(lengths, 4, 1), 0)


def test_rows_of_a_batch_are_of_like_length() -> None:
    """Against batches without buckets: far less padding, and yet no epoch goes from short to long."""
    lengths = tuple(np.random.default_rng(0).integers(20, 400, 640).tolist())
    batches = epoch(BatchPlan(lengths, 4, 3), 0)

    def padding(groups: list[list[int]]) -> int:
        return sum(
            max(lengths[i] for i in group) * len(group) - sum(lengths[i] for i in group) for group in groups
        )

    plain = [list(range(i, i + 4)) for i in range(0, len(lengths), 4)]
    assert padding(batches) < 0.2 * padding(plain)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 0.35 * len(batches) < rises < 0.65 * len(batches)
    assert len(batches) > BUCKET


def read_back(batch: Batch, prefix: list[int]) -> list[tuple[int, int, int]]:
    """What is predicted in a batch: row, position in the whole row, and the token."""
    width = batch.inputs.shape[1]
    return [
        (int(where) // width, int(where) % width + 1 + len(prefix), int(target))
        for where, target in zip(batch.where, batch.targets, strict=True)
    ]


@given(encoded_rows())
def test_a_batch_predicts_exactly_what_is_supervised(rows: list[Encoded]) -> None:
    prefix = shared_prefix(rows)
    batch = make_batch(rows, len(prefix))
    assert read_back(batch, prefix) == [
        (index, position, token)
        for index, one in enumerate(rows)
        for position, token in enumerate(one.tokens)
        if position and one.supervised[position]
    ]
    for index, one in enumerate(rows):
        behind = one.tokens[len(prefix) :]
        assert batch.inputs[index, : len(behind)].tolist() == behind
        assert not batch.inputs[index, len(behind) :].any()
    assert batch.tokens == sum(len(one.tokens) for one in rows)
    assert batch.inputs.shape[1] == max(len(one.tokens) for one in rows) - len(prefix)
    assert {a.dtype.name for a in (batch.inputs, batch.where, batch.targets, batch.calls)} == {"int32"}
    assert batch.where.max() < batch.inputs.size


def test_a_known_batch() -> None:
    batch = make_batch([row([7, 1, 2, 3], "..xx"), row([7, 4, 5], "..x")], 1)
    assert batch.inputs.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.where.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [2, 3, 5]
    assert batch.tokens == 7


@pytest.mark.parametrize(
    ("rows", "count", "picked"),
    [
        (7, 0, range(7)),
        (7, 7, range(7)),
        (7, 9, range(7)),
        (8, 4, [0, 2, 4, 6]),
        (7, 3, [0, 2, 4]),
        (85, 1, [0]),
    ],
)
def test_a_validation_has_rows_from_all_over(rows: int, count: int, picked: Sequence[int]) -> None:
    every = [row([number, 1], ".x") for number in range(rows)]
    assert [one.tokens[0] for one in spread(every, count)] == list(picked)
