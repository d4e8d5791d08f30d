"""Published results as data: figures that others measured and this project did not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.core.errors import StageError
from stages.core.records import SCHEMA_VERSION, EvalSummary, Record, SchemaVersion, read_record

RECORDED = Path(__file__).resolve().parents[2] / "reports" / "recorded"
FIRST_EXPERIMENT = "first-experiment"


class RecordedFlaw(Record):
    """One flaw of the recorded set-up."""

    number: int | None = Field(description="the published number, None for what was left unproven")
    severity: Literal["critical", "moderate", "minor", "unproven"] = Field(description="as published")
    title: str
    count: int | None = Field(description="rows concerned, where rows were counted")
    total: int | None = Field(description="of how many")
    detail: str
    repaired_by: str = Field(description="the fix of stages/core/fixes.py")


class RecordedTraining(Record):
    """The recorded fine-tuning of the candidate."""

    rows: int
    iterations: int
    batch_size: int
    lora_layers: int
    layers: int
    learning_rate: float
    first_valid_loss: float
    last_valid_loss: float
    last_train_loss: float
    seconds: float
    iterations_per_second: float
    peak_memory_gb: float


class Recorded(Record):
    """A published experiment: two results, and how the candidate was made."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    name: str
    title: str
    source: Literal["recorded, not measured here"]
    origin: str = Field(description="where it was published")
    machine: str = Field(description="what is known of it")
    notes: list[str] = Field(description="what a reader must know before comparing")
    candidate: EvalSummary
    reference: EvalSummary
    training: RecordedTraining
    flaws: list[RecordedFlaw]


def load_recorded(name: str = FIRST_EXPERIMENT) -> Recorded:
    """A recorded experiment. Raises StageError when it claims to be measured or is not well formed."""
    path = RECORDED / f"{name}.json"
    recorded = read_record(path, Recorded)
    if {recorded.candidate.source, recorded.reference.source} != {"recorded"}:
        raise StageError(f"{path}: the results of a recorded experiment must have the source recorded")
    return recorded
