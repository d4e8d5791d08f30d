"""One training as all sides of the benchmark do it, and what a side found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from stages.core.preset import TrainSetup
from stages.core.records import Record
from stages.core.render import Encoded


class Row(Record):
    """An encoded row; the fields are those of `Encoded`."""

    tokens: list[int]
    supervised: list[bool]
    calls: list[int]


class Task(Record):
    """Everything that decides the losses of a run."""

    model: Path = Field(description="folder of a model in float32")
    adapter: Path = Field(description="the LoRA weights that every side starts from, in mlx-lm's format")
    setup: TrainSetup
    rows: list[Row]
    order: list[list[int]] = Field(description="the numbers of the rows of each step")
    rates: list[float] = Field(description="the learning rate of each step")

    @property
    def encoded(self) -> list[Encoded]:
        """The rows as the training has them."""
        return [Encoded(row.tokens, row.supervised, row.calls) for row in self.rows]

    def shortened(self, steps: int) -> Task:
        """The first steps alone."""
        return self.model_copy(update={"order": self.order[:steps], "rates": self.rates[:steps]})


class Figures(Record):
    """What one side took, and the mean loss of each step in nats per supervised token."""

    losses: list[float]
    tokens: int = Field(description="of the rows of all steps, padding left out")
    seconds: float = Field(description="from the loaded model to the last update")
    peak_gb: float = Field(description="highest resident or device memory, summed over processes")
    above_gb: float | None = Field(None, description="the part of it that came on top of the loaded model")
    estimate_gb: float | None = Field(
        None, description="what the stage says before the start about that part"
    )

    @property
    def step_seconds(self) -> float:
        """Mean time of a step."""
        return self.seconds / len(self.losses)

    @property
    def speed(self) -> float:
        """Tokens of the rows a second."""
        return self.tokens / self.seconds

    def differences(self, plain: Figures) -> float:
        """The largest difference from another side's loss in any step that both did; infinite by a NaN."""
        found = [abs(a - b) for a, b in zip(self.losses, plain.losses, strict=False)]
        return math.inf if any(map(math.isnan, found)) else max(found)


def as_row(row: Encoded) -> Row:
    """An encoded row as a record."""
    return Row(tokens=row.tokens, supervised=row.supervised, calls=row.calls)


def join_rows(rows: Sequence[Encoded], prefix: int, length: int) -> Encoded:
    """A row of exactly `length` tokens: the shared prefix, then what follows it in row after row."""
    first = rows[0]
    joined = Encoded(first.tokens[:prefix], first.supervised[:prefix], first.calls[:prefix])
    for row in [*rows, *rows, *rows]:
        turns = max(joined.calls) + 1
        joined.tokens.extend(row.tokens[prefix:])
        joined.supervised.extend(row.supervised[prefix:])
        joined.calls.extend(call + turns if call >= 0 else -1 for call in row.calls[prefix:])
    return Encoded(joined.tokens[:length], joined.supervised[:length], joined.calls[:length])
