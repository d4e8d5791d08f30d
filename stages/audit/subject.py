"""What is audited: the rows, the base model's files, and the plan of one arm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.audit.rows import Rejected, Row, read_rejected, read_rows
from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.fixes import FixSet
from stages.core.preset import ModelSetup, Preset
from stages.core.query import Query
from stages.core.render import Turns, encode_text, find_turns
from stages.core.stops import choose_stop_ids, own_stop_ids, turn_end_ids
from stages.core.suite import load_suites
from stages.core.tokenizer import Tokenizer, choose_template, load_tokenizer
from stages.core.weights import Weights, weigh_model

JINJA = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"  # a folder, each file named after its template
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Base:
    """The base model's files; of the weights their size alone."""

    folder: Path
    config: dict[str, Any]
    generation: dict[str, Any] | None
    templates: dict[str, str]
    """The model's own chat template by the file that holds it."""
    weights: Weights | None = None
    """How large it is; None for a folder without weights."""

    @property
    def own_template(self) -> str | None:
        """The template that loading the tokenizer takes: the .jinja file goes before the config."""
        return self.templates.get(JINJA) or self.templates.get(TOKENIZER_CONFIG)

    @property
    def stops(self) -> list[int]:
        """The stop ids that mlx-lm takes: those of generation_config.json go before config.json's."""
        return own_stop_ids(self.config, self.generation)


@dataclass(frozen=True)
class Plan:
    """What the later stages of this arm will do."""

    parser: str
    """The dialect in which replies are read strictly."""
    bits: int
    stops: list[int]
    """The ids at which the fused model will stop."""
    queries: tuple[Query, ...]
    """The queries of all suites."""


@dataclass(frozen=True)
class Subject:
    """Everything that the checks look at."""

    preset: Preset
    fixes: FixSet
    rows: tuple[Row, ...]
    rejected: Rejected
    tokenizer: Tokenizer
    turns: Turns
    base: Base
    plan: Plan

    @property
    def setup(self) -> ModelSetup:
        """How the model speaks."""
        return self.preset.model

    @cached_property
    def train(self) -> tuple[Row, ...]:
        """The rows that are trained on."""
        return tuple(row for row in self.rows if row.split == "train")

    @cached_property
    def called(self) -> frozenset[str]:
        """The names of the tools that the data calls."""
        return frozenset(call.name for row in self.rows for reply in row.replies for call in reply.calls)

    @cached_property
    def turn_ends(self) -> list[int]:
        """The ids that end an assistant's turn in training."""
        return turn_end_ids(self.tokenizer, self.turns)

    def pieces(self, text: str) -> int:
        """How many tokens the target's tokenizer makes of a text."""
        return len(encode_text(text, self.tokenizer))

    def show(self, ids: list[int]) -> str:
        """`151643 <|endoftext|>, 151645 <|im_end|>`, or `none`."""
        return ", ".join(f"{i} {self.tokenizer.convert_ids_to_tokens(i)}" for i in ids) or "none"


def load_subject(options: Options, data: Path, folder: Path) -> Subject:
    """Read what one arm's audit looks at. Raises StageError in one line for an unusable file."""
    preset = options.preset
    tokenizer = load_tokenizer(folder, preset.model)
    turns = find_turns(tokenizer)
    base = read_base(folder)
    fixed = "eos" in options.fixes
    plan = Plan(
        parser=options.parser,
        bits=options.bits,
        stops=choose_stop_ids(base.stops, turn_end_ids(tokenizer, turns), fixed=fixed),
        queries=tuple(query for suite in load_suites(preset.eval.suites) for query in suite.queries),
    )
    rows = read_rows(data, tokenizer, turns)
    return Subject(preset, options.fixes, rows, read_rejected(data), tokenizer, turns, base, plan)


def read_base(folder: Path) -> Base:
    """The config files and chat templates of a model folder."""
    generation = folder / "generation_config.json"
    settings = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    templates = {TOKENIZER_CONFIG: _config_template(settings.get("chat_template"))}
    if (folder / JINJA).is_file():
        more = {path.stem: path.read_text("utf-8") for path in (folder / MORE_TEMPLATES).glob("*.jinja")}
        templates[JINJA] = choose_template({"default": (folder / JINJA).read_text("utf-8"), **more})
    return Base(
        folder=folder,
        config=read_json(folder / "config.json"),
        generation=read_json(generation) if generation.is_file() else None,
        templates={name: text for name, text in templates.items() if text},
        weights=weigh_model(folder),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises StageError when the file holds none."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(f"{path} is not valid JSON ({error}): fetch the model again") from None
    if not isinstance(data, dict):
        raise StageError(f"{path} is not a JSON object: fetch the model again")
    return data


def _config_template(value: Any) -> str:
    """The template of a tokenizer config, where it may be a text or a list of named ones."""
    if isinstance(value, list):
        return choose_template({str(v.get("name")): str(v.get("template")) for v in value})
    return value if isinstance(value, str) else ""
