"""What the training benchmark is built of: long rows, and the judgement of the losses."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from stages.core.render import Encoded
from tests.bench.task import Figures, as_row, join_rows
from tests.bench.training import judge_losses

ROWS = [
    Encoded([1, 2, 10, 11, 12], [False, False, False, True, True], [-1, -1, -1, 0, 0]),
    Encoded([1, 2, 20, 21, 22, 23], [False, False, True, True, False, True], [-1, -1, 0, 0, -1, 1]),
]


@pytest.mark.parametrize("length", [6, 9, 16])
def test_rows_are_joined_behind_their_prefix(length: int) -> None:
    row = join_rows(ROWS, 2, length)
    bodies = [10, 11, 12, 20, 21, 22, 23]
    assert row.tokens == ([1, 2] + bodies * 3)[:length]
    assert row.supervised == [token in (11, 12, 20, 21, 23) for token in row.tokens]
    calls = [call for call in row.calls if call >= 0]
    assert all(after - before in (0, 1) for before, after in pairwise(calls)), "numbered on through the row"
    assert [call >= 0 for call in row.calls] == row.supervised
    assert Encoded(**as_row(row).model_dump()) == row


def figures(*losses: float) -> Figures:
    return Figures(losses=list(losses), tokens=100, seconds=4.0, peak_gb=1.0)


def test_other_losses_than_the_plain_ones_fail_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    plain = figures(2.0, 1.0)
    assert (plain.step_seconds, plain.speed) == (2.0, 25.0)
    sides = {"ours": figures(2.00005, 1.0), "mlx_lm lora, same BLAS": figures(2.0, 1.001)}
    assert judge_losses(sides) == 0, "mlx-lm's own rounding grows with the steps"
    assert "of 1 step are the same as the plain computation, mlx_lm lora, same BLAS: 5.0e-05 apart" in (
        capsys.readouterr().out
    )
    assert judge_losses(sides | {"ours": figures(2.0002, 1.0)}) == 1
    sides |= {"torch + peft": plain}
    assert judge_losses(sides) == 0
    assert (
        "of 2 steps are the same as the plain computation, torch + peft: 5.0e-05" in capsys.readouterr().out
    )
    assert judge_losses(sides | {"ours": figures(2.0, math.nan)}) == 1
    assert judge_losses(sides | {"ours, 2 ranks": figures(2.0, 1.0002)}) == 1
    assert "NOT those of the plain computation" in capsys.readouterr().out
