"""Presets: one TOML file is one model's whole set-up.

Option names are unique over the sections, so a flag such as `--iters` means the same in every
command. An unknown or missing key in a file is an error: there are no defaults to forget.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stages.core.dialects import DIALECTS
from stages.core.errors import StageError
from stages.core.fixes import distinct_arms
from stages.core.problems import first_problem
from stages.core.words import plural

PRESETS = Path(__file__).parent / "presets"
TEMPLATES = Path(__file__).parent / "templates"
_DIALECTS, _OWN_TEMPLATES = ", ".join(DIALECTS), ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
OWN_FOLDER = "folder"  # the preset that a bare model folder is run with
NOT_MODELS = {  # names that no model's folder of artifacts, or report, can have
    **dict.fromkeys(("logs", "models", "blas", "reports"), "a folder beside the models' outputs"),
    "first-experiment": "the report on the published figures",
}


COUNT_LIMIT = 2**31  # MLX's shapes are below it
NUMBER_LIMIT = 1e38  # and its 32-bit floats about there
Count = Annotated[int, Field(lt=COUNT_LIMIT)]
Number = Annotated[float, Field(lt=NUMBER_LIMIT)]
Temperature = Annotated[Number, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSetup(_Section):
    """Which model, and how it speaks."""

    source: str = Field(min_length=1, description="hub id, folder, or bundled:NAME for the embedded model")
    dialect: str = Field(description=f"tool-call dialect of the model's own chat template: {_DIALECTS}")
    legacy_dialect: str = Field(description="dialect that the flawed arm's parser expects, one of the same")
    chat_template: str = Field(
        min_length=1,
        description=f"own, or for a model whose own lacks tools {_OWN_TEMPLATES} or a .jinja file",
    )
    tool_response: Literal["template", "user"] = Field(
        description="tool results as the template writes them, or as a user turn with a text prefix"
    )
    system: str = Field(description="the system prompt, without the tools")
    billions: Number = Field(
        gt=0,
        description="parameters in billions, for the disk that a model of the hub will need; "
        "those of a folder are counted",
    )
    reference: str = Field(min_length=1, description="the preset of the large model to compare with")

    @field_validator("dialect", "legacy_dialect")
    @classmethod
    def _known_dialect(cls, dialect: str) -> str:
        if dialect not in DIALECTS:
            raise ValueError(f"use one of {_DIALECTS}")
        return dialect


class TrainSetup(_Section):
    """Fine-tuning."""

    fine_tune_type: Literal["lora", "dora", "full"] = Field(
        description="LoRA, DoRA, or all weights of the trained layers; of a quantized base stock mlx-lm does "
        "not load the last, fuse does"
    )
    iters: Count = Field(ge=1, description="optimizer steps")
    batch_size: Count = Field(ge=1, description="rows per batch")
    grad_accumulation: Count = Field(ge=1, description="batches per step")
    num_layers: Count = Field(ge=1, description="layers that are trained, counted from the last")
    learning_rate: Number = Field(gt=0, description="peak learning rate")
    warmup: Count = Field(ge=0, description="steps of linear warm-up")
    schedule: Literal["constant", "cosine", "linear"] = Field(description="learning rate after the warm-up")
    weight_decay: Number = Field(ge=0, description="weight decay of AdamW")
    clip_norm: Number = Field(ge=0, description="largest norm of a step's gradient; 0: any")
    call_weight: Number = Field(
        ge=1e-6, le=1e6, description="weight of a call's tokens in the loss; others have 1"
    )
    rank: Count = Field(ge=1, description="LoRA rank")
    scale: Number = Field(gt=0, le=1e6, description="LoRA scale")
    dropout: float = Field(
        ge=0, lt=1, description="LoRA dropout; rows draw one mask together for what they begin with"
    )
    lora_keys: tuple[str, ...] = Field(
        description="modules of a layer that get LoRA; empty: every linear one"
    )
    max_seq_length: Count = Field(
        ge=16, description="tokens; train rejects a longer row, never cuts it; convert_data counts it"
    )
    save_every: Count = Field(ge=1, description="steps between checkpoints")
    eval_every: Count = Field(ge=1, description="steps between validations")
    val_batches: Count = Field(
        ge=0, description="batches of a validation, from all over its rows; 0: all rows"
    )
    keep_checkpoints: Count = Field(ge=1, description="checkpoints that stay on disk")
    choose_by: Literal["last", "loss", "calls"] = Field(
        description="which adapter counts: the last, or the best validation's by loss or by exact calls, of "
        "equally many by loss"
    )
    patience: Count = Field(ge=0, description="validations without a better one that end the run; 0: never")
    grad_checkpoint: bool = Field(description="trade compute for memory in the backward pass")
    ranks: Count = Field(
        ge=1, description="processes that share each batch; a preset's are for CPUs, a GPU gets one"
    )
    report_to: tuple[str, ...] = Field(description="trackers that get the log too: wandb, swanlab, trackio")


class QuantizeSetup(_Section):
    """Quantization of the fused model."""

    bits: Literal[3, 4, 5, 6, 8] = Field(description="bits of the fix six_bit")
    legacy_bits: Literal[3, 4, 5, 6, 8] = Field(description="bits without the fix six_bit")
    group_size: Literal[32, 64, 128] = Field(description="weights that share a scale")


class EvalSetup(_Section):
    """Evaluation."""

    suites: tuple[str, ...] = Field(
        min_length=1, description="names under datasets/suites, bfcl_… sets, or .json and .jsonl paths"
    )
    max_tokens: Count = Field(ge=1, description="limit of a reply; reaching it counts as runaway")
    completion_batch: Count = Field(ge=1, description="queries answered at the same time")
    stop_at_call: bool = Field(
        description="cut a reply off behind its first complete call: how it would end is then not known"
    )
    temperature: tuple[Temperature, ...] = Field(
        min_length=1, description="0 takes the likeliest token; any other, or several, make a sweep"
    )
    samples: Count = Field(ge=1, description="replies a query at each temperature above 0")
    prompts: tuple[str, ...] = Field(
        description="text files, each a system line to try in a sweep instead of the model's; empty: its own"
    )

    @property
    def is_sweep(self) -> bool:
        """Whether anything but one greedy reply to every query is asked for."""
        return self.temperature != (0.0,) or self.samples > 1 or bool(self.prompts)

    @field_validator("suites")
    @classmethod
    def _distinct(cls, suites: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(suites)) != len(suites):
            raise ValueError("name each suite once")
        return suites

    @field_validator("temperature", "prompts")
    @classmethod
    def _distinct_values(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError("name each one once")
        return values


class Preset(_Section):
    """One model's whole set-up; `name` is the file's name and the folder of its artifacts."""

    name: str
    title: str = Field(description="how reports call the model")
    arms: tuple[str, ...] = Field(
        min_length=1, description="arms that retest_fair runs unless --arms says otherwise"
    )
    model: ModelSetup
    train: TrainSetup
    quantize: QuantizeSetup
    eval: EvalSetup

    @field_validator("arms")
    @classmethod
    def _distinct_arms(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        try:
            distinct_arms(arms)
        except StageError as error:
            raise ValueError(str(error)) from None
        return arms


SECTIONS: dict[str, type[_Section]] = {
    "model": ModelSetup,
    "train": TrainSetup,
    "quantize": QuantizeSetup,
    "eval": EvalSetup,
}


def preset_names() -> list[str]:
    """The presets that come with the project."""
    return sorted(p.stem for p in PRESETS.glob("*.toml") if p.stem != OWN_FOLDER)


def load_preset(model: str, overrides: Mapping[str, Any] | None = None) -> Preset:
    """The set-up for `--model`: a preset's name, a TOML file, or a model folder.

    `overrides` maps option names to values and wins over the file. Raises StageError in one line
    for an unknown preset and for an unknown, missing or unusable key.
    """
    path, extra = _find_preset(model)
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StageError(f"preset {path} is not valid TOML: {error}") from None
    if "name" in data:
        raise StageError(f"preset {path.name}: name: no such key, the file's name is the preset's name")
    data["name"] = path.stem
    data.update({k: v for k, v in extra.items() if k != "model"})
    if isinstance(data.get("model"), dict):
        data["model"] |= extra.get("model", {})
    for option, value in (overrides or {}).items():
        section = section_of(option)
        if not isinstance(data.get(section), dict):
            raise StageError(f"preset {path} has no section [{section}]")
        data[section][option] = value
    try:
        return Preset.model_validate(data)
    except ValidationError as error:
        raise StageError(_explain(error, path, overrides or {})) from None


def refuse_contradictions(setup: TrainSetup) -> None:
    """Raise StageError for options of a training that do not go together.

    For commands that train, before they work: the others have nothing to do with a preset's training.
    """
    if setup.grad_checkpoint and setup.dropout:
        raise StageError("--grad-checkpoint would draw dropout anew in the backward pass: set --dropout 0")
    if setup.patience and setup.choose_by == "last":
        raise StageError(
            f"--patience {setup.patience} ends a run when validations get no better, and --choose-by last "
            "would keep a worse adapter than the best: add --choose-by loss or calls"
        )
    if setup.ranks > setup.batch_size:
        raise StageError(
            f"--ranks {setup.ranks}: {describe_lack(setup.batch_size)}: lower it or raise --batch-size"
        )


def describe_lack(batch_size: int) -> str:
    """What is wrong with more processes than a batch has rows."""
    return f"a batch of {plural(batch_size, 'row')} has none for each"


def section_of(option: str) -> str:
    """The section in which an option lives. Raises StageError for an unknown one."""
    for section, setup in SECTIONS.items():
        if option in setup.model_fields:
            return section
    raise StageError(f"no option {option!r} in any section of a preset")


def flag_of(option: str) -> str:
    """`--batch-size` for `batch_size`."""
    return f"--{option.replace('_', '-')}"


def option_choices(annotation: Any) -> tuple[Any, ...] | None:
    """The values that a field allows, None where there is no list of them."""
    return get_args(annotation) if get_origin(annotation) is Literal else None


def option_type(annotation: Any) -> type:
    """The Python type that a flag for this field parses: int, float, bool or str."""
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return tuple
    return annotation if isinstance(annotation, type) else str


def item_type(annotation: Any) -> type:
    """The type of the items of a list that a flag takes: str or float."""
    item = get_args(annotation)[0]
    kind: type = get_args(item)[0] if get_origin(item) is Annotated else item
    return kind


def _find_preset(model: str) -> tuple[Path, dict[str, Any]]:
    """The TOML file for `--model`, and what a bare model folder adds to it."""
    if model in preset_names():
        return PRESETS / f"{model}.toml", {}
    path = Path(model or "no model").expanduser()  # an empty path would be the current folder
    if path.suffix == ".toml":
        if path.is_file():
            if path.resolve().parent != PRESETS.resolve():
                _require_own_name(model, path.stem, "rename it")
            return path, {}
        raise StageError(f"no preset file {model}: check the path")
    if (path / "config.json").is_file():
        name = path.resolve().name
        _require_own_name(model, name, f"rename it, or say --model PRESET --source {shlex.quote(model)}")
        own = {"name": name, "title": name, "model": {"source": str(path.resolve())}}
        return PRESETS / f"{OWN_FOLDER}.toml", own
    if path.is_dir():
        raise StageError(
            f"{model} has no config.json, so it is no model folder: give one, a .toml file or a preset"
        )
    raise StageError(
        f"unknown model {model!r}: use one of {', '.join(preset_names())}, a .toml file or a model folder"
    )


def _require_own_name(model: str, name: str, remedy: str) -> None:
    """Raise StageError for a file or folder whose outputs would lie where another's do.

    Not every disk tells capital letters from small ones.
    """
    folded = name.casefold()
    taken = "a preset of ours" if folded in preset_names() else NOT_MODELS.get(folded)
    if taken:
        raise StageError(f"{model} has the name of {taken}, and its outputs would mix: {remedy}")


def _explain(error: ValidationError, path: Path, overrides: Mapping[str, Any]) -> str:
    """The mistake with its option, where it was given as one, else with the preset's file and key."""
    problem = first_problem(error)
    if problem.kind == "missing":  # all at once: a preset of one's own may be just begun
        lacking = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "missing"]
        keys = "the key" if len(lacking) == 1 else "the keys"
        return f"preset {path.name} lacks {keys} {', '.join(lacking)}; {PRESETS / 'smol.toml'} shows them all"
    section, option = (*map(str, problem.where), "")[:2]
    if option in overrides and section == section_of(option):
        value = overrides[option]
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        return f"{flag_of(option)} {str(shown) or repr('')}: {problem.reason}"
    if problem.kind != "extra_forbidden":
        return f"preset {path.name}: {problem}"
    known = SECTIONS[section].model_fields if option else [k for k in Preset.model_fields if k != "name"]
    return f"preset {path.name}: {problem}, use one of {', '.join(known)}"
