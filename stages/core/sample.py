"""The sample project: its files, and what the tools really said about each of them.

`datasets/build` runs the tools once and writes the recording; nothing here runs anything. The code
that a model writes in Code Mode is later answered from it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from stages.core.records import Record, read_record
from stages.core.tools import TestOutcome, TypeFinding, Violation

RECORDING = Path(__file__).resolve().parents[2] / "datasets" / "sample" / "recording.json"


class SampleFile(Record):
    """A file of the sample project and what the tools found in it, run on this file alone."""

    path: str = Field(description="relative to the project")
    text: str
    errors: tuple[TypeFinding, ...] = Field((), description="of the type checker, by line")
    violations: tuple[Violation, ...] = Field((), description="of the linter, by line")
    tests: tuple[TestOutcome, ...] = Field((), description="in run order; none in a file without tests")
    printed: str | None = Field(None, description="what `python FILE` prints, None where it was not run")

    def moved(self, path: str) -> SampleFile:
        """The same file at another path: its findings name that path instead."""
        return SampleFile(
            path=path,
            text=self.text,
            errors=tuple(error.model_copy(update={"file": path}) for error in self.errors),
            violations=tuple(found.model_copy(update={"file": path}) for found in self.violations),
            tests=tuple(
                test.model_copy(update={"name": f"{path}::{test.name.partition('::')[2]}"})
                for test in self.tests
            ),
            printed=self.printed,
        )


class Sample(Record):
    """The recording: made by the corpus builder, read where code is run."""

    project: str = Field(description="folder of `datasets/projects` that was recorded")
    tools: dict[str, str] = Field(description="version of each tool that ran")
    files: tuple[SampleFile, ...] = Field(description="sorted by path")
    texts: dict[str, str] = Field(
        description="text of a file that is not Python by its suffix; that of `.md` stands for any other"
    )
    commands: dict[str, str] = Field(description="output of the git commands that were run, by the command")


@cache
def load_sample() -> Sample:
    """The shipped recording. Raises StageError when it is missing or damaged."""
    return read_record(RECORDING, Sample)
