"""Replies from a file, scored with no model: of another program, or of another machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.core.errors import StageError
from stages.core.records import RawReply, read_lines
from stages.core.words import plural
from stages.eval.engines import Costs, EngineName, Keep, Question, Sampling


class RecordedReply(RawReply):
    """A line of such a file: `id` and `text` will do, and a `replies.jsonl` of ours has more."""

    finish: Literal["stop", "length", "call"] | None = Field(None, description="unknown unless it is said")


WANTED = "--replies takes JSON lines with id and text"


@dataclass
class Recorded:
    """The replies of a JSONL file."""

    file: Path

    @property
    def name(self) -> EngineName:
        """What summaries call it."""
        return "recorded"

    def fingerprint(self) -> str:
        """SHA-256 of the file. Raises StageError when there is no such file."""
        if not self.file.is_file():
            raise StageError(f"no file {self.file}: {WANTED}")
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """The file's name."""
        return {"engine": self.name, "file": self.file.name}

    def served_as(self) -> dict[str, Any]:
        """Nothing: the fingerprint tells all."""
        return {}

    def load(self) -> None:
        """Nothing to load."""

    def answer(self, questions: Sequence[Question], sampling: Sampling, keep: Keep, label: str) -> None:
        """Hand over the recorded reply to each question.

        Raises StageError when the file does not answer these questions, each once and no others.
        """
        lines = self._read_lines()
        if not lines:
            raise StageError(f"{self.file} is empty: {WANTED}")
        replies = {line.id: line for line in lines}
        asked = {question.id for question in questions}
        if len(replies) < len(lines):
            twice = next(line.id for line in lines if sum(other.id == line.id for other in lines) > 1)
            raise StageError(f"{self.file} has two replies to {twice!r}: leave one")
        if missing := sorted(asked - replies.keys()):
            raise StageError(
                f"{self.file} has no reply to {plural(len(missing), 'query')} of {label}, "
                f"such as {missing[0]!r}: "
                "add them, or name the suite that it answers with --suites"
            )
        if foreign := sorted(replies.keys() - asked):
            raise StageError(
                f"{self.file} has a reply to {foreign[0]!r}, which is no query of {label}: "
                "name the suite that it answers with --suites"
            )
        for question in questions:
            keep(question, RawReply.model_validate(replies[question.id].model_dump()))

    def _read_lines(self) -> list[RecordedReply]:
        try:
            return read_lines(self.file, RecordedReply)
        except StageError as error:
            raise StageError(f"{error}: {WANTED}") from None

    def costs(self) -> Costs:
        """Nobody knows."""
        return Costs()
