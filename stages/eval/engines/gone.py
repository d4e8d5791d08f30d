"""A model that is not there any more. What it said is kept, and can be scored again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.artifact import read_manifest, require_artifact
from stages.core.cli import Options
from stages.core.suite import load_suites
from stages.eval.engines import Costs, EngineName, Keep, Question, Sampling


@dataclass(frozen=True)
class GoneModel:
    """A model of which the fingerprint is known, the folder where it was, and the command that makes it."""

    content: str
    folder: Path
    command: str

    @property
    def name(self) -> EngineName:
        """That of the engine that asked it: the replies are the same."""
        return "local"

    def fingerprint(self) -> str:
        """What the output says of the model that it was made with."""
        return self.content

    def facts(self) -> dict[str, Any]:
        """Those of the engine that asked it."""
        return {"engine": self.name}

    def served_as(self) -> dict[str, Any]:
        """Nothing: the fingerprint tells all."""
        return {}

    def load(self) -> None:
        """Raise StageError: something has to be asked that was not asked while it was there."""
        require_artifact(self.folder, "quantize", self.command)

    def answer(self, questions: Sequence[Question], sampling: Sampling, keep: Keep, label: str) -> None:
        """Raise StageError, as loading does."""
        self.load()

    def costs(self) -> Costs:
        """What it cost is kept with its replies."""
        return Costs()


def find_scored_model(options: Options) -> str | None:
    """The fingerprint of the model whose output lies in the place of this evaluation; None without one."""
    if options.preset.eval.is_sweep:
        return None
    place = options.output("eval")
    made = [read_manifest(place / suite.name) for suite in load_suites(options.preset.eval.suites)]
    models = {
        one.recipe.inputs.get("model")
        for one in made
        # The same command made it: a folder that was never there is a mistake.
        if one and one.facts.get("engine") == "local" and one.given and one.given.data == options.given.data
    }
    return models.pop() if len(models) == 1 else None
