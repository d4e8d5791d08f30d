"""Where replies come from: a model in this process, a server, or a file, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from stages.core.artifact import fingerprint_json
from stages.core.records import RawReply, Record

GENERATOR_VERSION = 3  # raised by every change that can change what is kept of a reply

EngineName = Literal["local", "endpoint", "recorded"]
Keep = Callable[["Question", RawReply], None]


@dataclass(frozen=True)
class Question:
    """A prompt as a neutral row, and the id of its query."""

    id: str
    row: Mapping[str, Any]
    whole: bool = False
    """Its reply is not cut off behind a call, whatever the sampling says: several may be right."""

    @property
    def key(self) -> str:
        """SHA-256 of the prompt: its messages and tools."""
        return fingerprint_json({"row": self.row, "whole": True} if self.whole else self.row)


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn; `sample` numbers the draws of one prompt, and is their seed.

    `stop_at_call` ends a reply behind its first call, where the question wants no more.
    """

    max_tokens: int
    temperature: float = 0.0
    sample: int = 0
    stop_at_call: bool = False


class Costs(Record):
    """What an engine costs beside its replies; None where it cannot be measured."""

    load_seconds: float | None = None
    first_token_seconds: float | None = None
    peak_memory_gb: float | None = None
    disk_gb: float | None = None


class Engine(Protocol):
    """Something that answers questions."""

    @property
    def name(self) -> EngineName:
        """What summaries call it."""

    def fingerprint(self) -> str:
        """Of what answers: a model's content, a server's model, a file. Known before anything is loaded."""

    def facts(self) -> dict[str, Any]:
        """What a manifest tells of it; never a key or a password."""

    def served_as(self) -> dict[str, Any]:
        """What tells its model apart from another one of the same fingerprint, as far as anybody tells."""

    def load(self) -> None:
        """Get ready; called before the first question. Raises StageError when that fails."""

    def answer(self, questions: Sequence[Question], sampling: Sampling, keep: Keep, label: str) -> None:
        """Answer every question, handing each reply to `keep` as soon as it is whole.

        Raises StageError when it cannot go on; what was handed over by then is kept.
        """

    def costs(self) -> Costs:
        """The costs of this session so far."""
