"""What the reader of a report asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """None means all models, the default arm, any seed, the preset's reference."""

    model: str | None = None
    fixes: str | None = None
    seed: int | None = None
    reference: str | None = None
    out: Path = Path("reports")
    force: bool = False
