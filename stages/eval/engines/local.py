"""A model in this process. Nothing of it is loaded before a question has to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.artifact import fingerprint_json
from stages.core.compute import device_peak_gb
from stages.core.platform import folder_size_gb, peak_memory_gb
from stages.core.preset import ModelSetup
from stages.core.tokenizer import require_template, template_source
from stages.eval.engines import Costs, EngineName, Keep, Question, Sampling

if TYPE_CHECKING:
    from stages.eval.engines.generation import Generator


@dataclass
class LocalEngine:
    """A model folder, loaded when the first question comes.

    `content` is the folder's fingerprint; `setup` names the chat template of one that fuse did not write,
    `template` is the hash of the one that it was trained with.
    """

    folder: Path
    content: str
    batch: int
    dialect: str
    setup: ModelSetup | None = None
    template: str | None = None
    generator: Generator | None = None

    @property
    def name(self) -> EngineName:
        """What summaries call it."""
        return "local"

    def fingerprint(self) -> str:
        """The model's content, with the chat template where another one takes the place of its own."""
        other = None if self.setup is None else template_source(self.setup)
        return self.content if other in (None, "own") else fingerprint_json([self.content, other])

    def facts(self) -> dict[str, Any]:
        """Nothing that the lineage of the model would not tell."""
        return {"engine": self.name}

    def served_as(self) -> dict[str, Any]:
        """Nothing: the fingerprint tells all."""
        return {}

    def load(self) -> None:
        """Load the model, once. Raises StageError when the folder names no stop token."""
        self._require_generator()

    def answer(self, questions: Sequence[Question], sampling: Sampling, keep: Keep, label: str) -> None:
        """Answer the questions, `batch` at the same time; one that ends makes room for the next."""
        self._require_generator().answer(questions, sampling, keep, label)

    def costs(self) -> Costs:
        """The costs of this session so far."""
        loaded = self.generator
        return Costs(
            load_seconds=loaded and loaded.load_seconds,
            first_token_seconds=loaded and loaded.first_token_seconds,
            peak_memory_gb=max(peak_memory_gb(), device_peak_gb()),
            disk_gb=folder_size_gb(self.folder),
        )

    def _require_generator(self) -> Generator:
        from stages.eval.engines.generation import Generator  # with MLX, which nothing else here needs

        if self.generator is None:
            loaded = Generator.load(self.folder, self.setup, self.batch, self.dialect)
            require_template(self.folder, loaded.tokenizer, self.template)
            self.generator = loaded
        return self.generator
