"""Presets: the shipped ones, a user's own, and every way to get one wrong, each in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.core.dialects import DIALECTS
from stages.core.errors import StageError
from stages.core.preset import (
    PRESETS,
    SECTIONS,
    Preset,
    load_preset,
    option_type,
    preset_names,
    refuse_contradictions,
    section_of,
)

BASE = (PRESETS / "7b.toml").read_text("utf-8")
KEYS = [(section, key) for section, setup in SECTIONS.items() for key in setup.model_fields]


def write_preset(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return str(path)


def write_data(folder: Path, data: dict[str, Any]) -> str:
    """A preset as TOML; JSON values are TOML values, tables aside."""
    lines = [
        f"{key} = {orjson.dumps(value).decode()}"
        for key, value in data.items()
        if not isinstance(value, dict)
    ]
    for section, values in data.items():
        if isinstance(values, dict):
            lines += [f"[{section}]", *(f"{key} = {orjson.dumps(v).decode()}" for key, v in values.items())]
    return write_preset(folder, "\n".join(lines))


def complaint(model: str, **overrides: Any) -> str:
    with pytest.raises(StageError) as error:
        load_preset(model, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_shipped_presets() -> None:
    assert preset_names() == ["14b", "30b", "7b", "8b", "coder-30b", "smol"]
    for name in preset_names():
        preset = load_preset(name)
        assert preset.name == name
        assert preset.model.reference in preset_names()
        refuse_contradictions(preset.train)


@pytest.mark.parametrize(
    ("name", "source", "train", "dialect"),
    [
        ("7b", "mlx-community/Qwen2.5-Coder-7B-Instruct-4bit", (600, 2, 16, 1e-4, 100), "hermes"),
        ("30b", "mlx-community/Qwen3-30B-A3B-Instruct-2507-4bit", (500, 1, 8, 1e-4, 100), "hermes"),
        (
            "coder-30b",
            "mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit",
            (500, 1, 8, 1e-4, 100),
            "qwen3_coder",
        ),
    ],
)
def test_published_settings(name: str, source: str, train: tuple[float, ...], dialect: str) -> None:
    preset = load_preset(name)
    assert preset.model.source == source
    assert preset.model.dialect == dialect
    setup = preset.train
    assert (setup.iters, setup.batch_size, setup.num_layers, setup.learning_rate, setup.save_every) == train
    assert (preset.quantize.bits, preset.quantize.legacy_bits) == (6, 5)


def test_option_names_are_unique_over_the_sections() -> None:
    names = [key for _, key in KEYS]
    assert len(names) == len(set(names)) >= 25
    assert all(section_of(key) == section for section, key in KEYS)


def test_presets_cannot_be_changed_in_place() -> None:
    preset = load_preset("smol")
    with pytest.raises(ValidationError):
        preset.train.iters = 1  # type: ignore[misc]


@given(iters=st.integers(1, 10**6), scale=st.floats(1e-6, 1e6), grad=st.booleans())
def test_overrides_change_what_they_name_and_nothing_else(iters: int, scale: float, grad: bool) -> None:
    plain = load_preset("smol")
    changed = load_preset("smol", {"iters": iters, "scale": scale, "grad_checkpoint": grad})
    wanted = {"iters": iters, "scale": scale, "grad_checkpoint": grad}
    assert changed == plain.model_copy(update={"train": plain.train.model_copy(update=wanted)})


def test_own_toml_is_named_after_its_file(tmp_path: Path) -> None:
    preset = load_preset(write_preset(tmp_path, BASE.replace("iters = 600", "iters = 7"), "tuned"))
    assert (preset.name, preset.train.iters) == ("tuned", 7)
    assert preset.model == load_preset("7b").model


def test_model_folder_is_a_preset_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    preset = load_preset("my-model")
    assert (preset.name, preset.title, preset.model.source) == ("my-model", "my-model", str(folder))
    assert preset.train == load_preset("7b").train
    assert load_preset("my-model", {"dialect": "qwen3_coder"}).model.dialect == "qwen3_coder"


def test_a_preset_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smol").mkdir()
    (tmp_path / "smol" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert load_preset("smol").model.source == "bundled:smollm2-135m"
    assert load_preset("smol").name == "smol"
    # A path means the folder, and its outputs would lie where those of the preset do.
    assert complaint("./smol").startswith(
        "./smol has the name of a preset of ours, and its outputs would mix: "
    )
    assert "--model PRESET --source ./smol" in complaint("./smol")
    given = load_preset("smol", {"source": "./smol"})
    assert (given.name, given.model.source) == ("smol", "./smol")


@pytest.mark.parametrize("name", ["30B", "logs", "models", "blas", "reports", "first-experiment", "Logs"])
def test_a_model_has_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    assert "and its outputs would mix: rename it" in complaint(str(tmp_path / name))
    assert "and its outputs would mix: rename it" in complaint(write_preset(tmp_path, BASE, name))


def test_unknown_models(tmp_path: Path) -> None:
    text = complaint("9b")
    assert "'9b'" in text
    assert all(name in text for name in preset_names())
    assert "no preset file" in complaint(str(tmp_path / "none.toml"))
    assert "no config.json" in complaint(str(tmp_path))
    assert "unknown model" in complaint("folder"), "the preset of bare folders is no model"


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_missing_key_is_named(section: str, key: str, tmp_path: Path) -> None:
    data = tomllib.loads(BASE)
    del data[section][key]
    assert f"lacks the key {section}.{key};" in complaint(write_data(tmp_path, data))


@pytest.mark.parametrize("key", ["title", "arms", "model", "train", "quantize", "eval"])
def test_a_missing_top_key_or_section_is_named(key: str, tmp_path: Path) -> None:
    data = tomllib.loads(BASE)
    del data[key]
    assert f"lacks the key {key};" in complaint(write_data(tmp_path, data))


def test_all_missing_keys_are_named_at_once(tmp_path: Path) -> None:
    data = tomllib.loads(BASE)
    del data["train"]["iters"], data["eval"]["suites"], data["title"]
    assert "lacks the keys title, train.iters, eval.suites; " in complaint(write_data(tmp_path, data))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("[train]", "[train]\nbatchsize = 4", "train.batchsize: no such key, use one of fine_tune_type, "),
        ("batch_size = 2", "batchsize = 2", "train.batchsize: no such key"),
        ("[eval]", "[evals]\nx = 1\n[eval]", "evals: no such key, use one of title, arms, model, "),
        ("[train]", "[trian]", "trian: no such key"),
        ('title = "', 'name = "other"\ntitle = "', "name: no such key"),
        ("iters = 600", "iters = many", "is not valid TOML"),
        ("iters = 600", 'iters = "many"', "train.iters = 'many': use a whole number"),
        ("iters = 600", "iters = 2.5", "train.iters = 2.5: use a whole number"),
        ("iters = 600", "iters = 0", "train.iters = 0: use 1 or more"),
        ("iters = 600", "iters = [1, 2]", "train.iters: use a whole number"),
        ("dropout = 0.0", "dropout = 1.5", "train.dropout = 1.5: use a number below 1"),
        ("dropout = 0.0", "dropout = inf", "train.dropout = inf: use a finite number"),
        ("dropout = 0.0", 'dropout = "some"', "train.dropout = 'some': use a number"),
        ("lora_keys = []", 'lora_keys = "q"', "train.lora_keys = 'q': use a list"),
        ("lora_keys = []", "lora_keys = [1]", "train.lora_keys.0 = 1: use a text"),
        ("grad_checkpoint = false", "grad_checkpoint = 3", "train.grad_checkpoint = 3: use true or false"),
        ("\nbits = 6", "\nbits = 7", "quantize.bits = 7: use 3, 4, 5, 6 or 8"),
        ('dialect = "hermes"', 'dialect = "klingon"', "model.dialect = 'klingon': use one of hermes, "),
        ('arms = ["fair"]', 'arms = ["foul"]', "arms: unknown fix foul: use fair, flawed, or any of "),
        ('arms = ["fair"]', 'arms = ["fair", "fair"]', "arms: the arm fair is named twice"),
        ('arms = ["fair"]', "arms = []", "arms: name at least 1"),
        ('title = "', 'train = 1\ntitle = "', "is not valid TOML"),
        ("iters = 600", "iters = 600\niters = 3", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_explained(before: str, after: str, reason: str, tmp_path: Path) -> None:
    assert before in BASE
    text = complaint(write_preset(tmp_path, BASE.replace(before, after)))
    assert "mine.toml" in text
    assert reason in text


def test_a_section_that_is_no_table(tmp_path: Path) -> None:
    text = BASE[: BASE.index("[model]")] + "model = 1\ntrain = 2\nquantize = 3\neval = 4\n"
    assert complaint(write_preset(tmp_path, text)).endswith("model = 1: use a table of keys and values")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"title = \xff")
    assert "is not valid TOML" in complaint(str(path))


def test_an_override_without_its_section(tmp_path: Path) -> None:
    text = BASE[: BASE.index("[train]")]
    assert "has no section [train]" in complaint(write_preset(tmp_path, text), iters=3)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("iters", 0, "0: use 1 or more"), ("batch_size", -1, "-1: use 1 or more"),
        ("learning_rate", 0.0, "0.0: use a number above 0"), ("learning_rate", float("inf"), "inf: use"),
        ("learning_rate", float("nan"), "nan: use a finite number"), ("warmup", -1, "-1: use 0 or more"),
        ("dropout", 1.0, "1.0: use a number below 1"), ("dropout", -0.1, "-0.1: use 0 or more"),
        ("scale", float("inf"), "inf: use a finite number"),
        ("schedule", "wavy", "wavy: use 'constant', 'cosine' or 'linear'"),
        ("bits", 7, "7: use 3, 4, 5, 6 or 8"), ("group_size", 48, "48: use 32, 64 or 128"),
        ("max_seq_length", 15, "15: use 16 or more"), ("suites", (), "'': name at least 1"),
        ("suites", ("core20", "core20"), "core20,core20: name each suite once"),
        ("billions", 0, "0: use a number above 0"),
        ("tool_response", "none", "none: use 'template' or 'user'"),
        ("dialect", "klingon", "klingon: use one of hermes, "),
        ("legacy_dialect", "", "'': use one of hermes"),
        ("source", "", "'': it must not be empty"), ("reference", "", "'': it must not be empty"),
        ("grad_checkpoint", "perhaps", "perhaps: use true or false"),
    ],
)  # fmt: skip
def test_an_unusable_value_is_named_with_its_option(option: str, value: Any, reason: str) -> None:
    assert complaint("smol", **{option: value}).startswith(f"--{option.replace('_', '-')} {reason}")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"patience": 2},
            "--patience 2 ends a run .* no better, .* last would keep a worse .* --choose-by loss or calls",
        ),
        (
            {"ranks": 3, "batch_size": 2},
            "--ranks 3: a batch of 2 rows has none for each: lower it or raise --batch-size",
        ),
        ({"dropout": 0.1, "grad_checkpoint": True}, "--grad-checkpoint would draw .*: set --dropout 0"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(StageError, match=f"^{reason}$"):
        refuse_contradictions(load_preset("smol", options).train)
    mended = options | {"choose_by": "loss", "grad_checkpoint": False, "batch_size": 3}
    refuse_contradictions(load_preset("smol", mended).train)


def test_a_mistake_in_the_file_is_not_blamed_on_another_option(tmp_path: Path) -> None:
    preset = write_preset(tmp_path, BASE.replace("iters = 600", "iters = 0"))
    assert "preset mine.toml: train.iters = 0: " in complaint(preset, batch_size=4)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_can_be_chosen(dialect: str) -> None:
    assert load_preset("smol", {"dialect": dialect}).model.dialect == dialect


def test_an_unknown_option_is_named() -> None:
    assert "'speed'" in complaint("smol", speed=3)


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (int, int),
        (float, float),
        (bool, bool),
        (str, str),
        (tuple[str, ...], tuple),
        (Literal[3, 4], int),
        (Literal["a"], str),
    ],
)
def test_option_types(annotation: Any, kind: type) -> None:
    assert option_type(annotation) is kind


def test_every_option_says_what_it_means() -> None:
    for setup in SECTIONS.values():
        for name, field in setup.model_fields.items():
            assert field.description, name
    assert set(Preset.model_fields) == {"name", "title", "arms", *SECTIONS}
