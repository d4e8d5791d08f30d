"""Fusing: the same logits as with the adapter, and the right stop tokens in every file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from stages.audit.subject import read_base
from stages.core.artifact import read_manifest
from stages.core.compute import list_arrays, load_arrays, load_model
from stages.core.errors import StageError
from stages.core.tokenizer import load_tokenizer, template_hash
from stages.fuse.__main__ import main
from stages.fuse.stage import DTYPES, fuse_adapter, require_weights, write_tokenizer
from stages.train.adapter import load_trainable
from tests.models import END_OF_TEXT, IM_END, BuiltOnce
from tests.pipeline import Pipeline, run_work, stock_functions

RUNS = ("qwen2_run", "qwen3_moe_run", "llama_run")
PROMPT = mx.array([[40, 2776, 264, 11, 1273, 13, 198, 77, 1023, 5]])
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"  # knows no tools


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Pipeline:
    value: Pipeline = request.getfixturevalue(request.param)
    return value


@pytest.fixture(scope="module")
def without_eos(qwen2_run: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same adapter fused without the fix `eos`."""
    qwen2_run.folder("train")
    fixes = tuple(fix for fix in qwen2_run.fixes if fix != "eos")
    out = tmp_path_factory.mktemp("flawed") / "fuse"
    run_work("fuse", replace(qwen2_run.options("fuse"), fixes=fixes, out=out))
    return out


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def stored_dtype(run: Pipeline) -> mx.Dtype:
    return DTYPES[require_weights(run.model).dtype]


def adapter_logits(run: Pipeline) -> mx.array:
    model = load_trainable(run.model, run.options("train").preset.train)
    model.load_weights(str(run.folder("train") / "adapters.safetensors"), strict=False)
    model.eval()
    logits: mx.array = model(PROMPT)
    return logits


def test_fused_in_memory_it_computes_what_the_adapter_computes(run: Pipeline) -> None:
    model = fuse_adapter(load_model(run.model)[0], run.folder("train"))
    names = dict(tree_flatten(model.parameters()))
    assert not [name for name in names if "lora" in name or "scales" in name]
    expected, base = adapter_logits(run), load_model(run.model)[0](PROMPT)
    changed = float(mx.abs(expected - base).max())
    assert changed > 1e-2
    assert float(mx.abs(model(PROMPT) - expected).max()) < 1e-3 * changed


def test_the_fused_folder_has_the_adapter_in_its_weights(run: Pipeline) -> None:
    """In stock mlx-lm; weights are rounded to the base's own 16 bits, and no further."""
    folder = run.folder("fuse")
    with stock_functions():
        model = mlx_lm.load(str(folder))[0]
        assert {a.dtype for a in dict(tree_flatten(model.parameters())).values()} == {stored_dtype(run)}
        model.set_dtype(mx.float32)
        logits = model(PROMPT)
        mx.eval(logits)
    expected, base = adapter_logits(run), load_model(run.model)[0](PROMPT)
    rounding = 1e-4 if stored_dtype(run) == mx.float32 else 0.2
    assert float(mx.abs(logits - expected).mean()) < rounding * float(mx.abs(expected - base).mean())


def test_a_base_is_weighed_by_its_headers_as_it_is_loaded(run: Pipeline) -> None:
    """Packed in 4 bits or not: as many parameters as the dequantized model has, in the type of its file."""
    weights = require_weights(run.model)
    model, _ = load_model(run.model, dequantize=True)
    assert weights.parameters == sum(array.size for array in list_arrays(model))
    stored = load_arrays(run.model / "model.safetensors").values()
    assert stored_dtype(run) in {array.dtype for array in stored}
    fused = sum(path.stat().st_size for path in run.folder("fuse").glob("*.safetensors"))
    assert fused / 1e9 == pytest.approx(weights.whole_gb, rel=0.001)


def test_a_fused_model_that_is_made_again_is_the_same(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """So who removed it to save disk has a quantized model that is still up to date."""
    quantized = qwen2_run.folder("quantize")
    again = run_work("fuse", replace(qwen2_run.options("fuse"), out=tmp_path / "again")).folder
    outcome = run_work("quantize", replace(qwen2_run.options("quantize"), data=again))
    assert (outcome.folder, outcome.up_to_date) == (quantized, True)


def test_the_delta_survives(qwen2_run: Pipeline) -> None:
    """On a packed 4-bit base it would be rounded away: fused minus base must be the adapter's product."""
    fused = load_arrays(qwen2_run.folder("fuse") / "model.safetensors")
    base = dict(tree_flatten(load_model(qwen2_run.model)[0].parameters()))
    adapter = load_arrays(qwen2_run.folder("train") / "adapters.safetensors")
    names = sorted(name.removesuffix(".lora_a") for name in adapter if name.endswith(".lora_a"))
    assert len(names) == 14
    for name in names:
        delta = np.array(4.0 * (adapter[f"{name}.lora_a"] @ adapter[f"{name}.lora_b"]).T)
        found = np.array(fused[f"{name}.weight"].astype(mx.float32) - base[f"{name}.weight"])
        assert (found * delta).sum() / (delta**2).sum() == pytest.approx(1, abs=0.05), name
    other = [name for name in base if name.rpartition(".")[0] not in names]
    assert len(other) == 7  # two embeddings, five norms; the biases of q, k and v are in the layers with LoRA
    for name in other:
        assert mx.allclose(fused[name].astype(mx.float32), base[name], rtol=2**-8, atol=0), name


def test_stop_tokens_of_a_base_model(qwen2_run: Pipeline, without_eos: Path) -> None:
    """Qwen2.5's base stops at <|endoftext|>, which no chat turn ever ends with."""
    assert read_json(qwen2_run.model / "config.json")["eos_token_id"] == END_OF_TEXT
    for folder, stops, name in (
        (qwen2_run.folder("fuse"), [IM_END, END_OF_TEXT], "<|im_end|>"),
        (without_eos, [END_OF_TEXT], "<|endoftext|>"),
    ):
        assert read_json(folder / "config.json")["eos_token_id"] == stops
        assert read_json(folder / "generation_config.json")["eos_token_id"] == stops
        assert read_json(folder / "generation_config.json")["bos_token_id"] == END_OF_TEXT
        assert read_json(folder / "tokenizer_config.json")["eos_token"] == name
        assert load_tokenizer(folder).eos_token_id == stops[0]
        loaded: Any = mlx_lm.load(str(folder), lazy=True)
        assert loaded[1].eos_token_ids == set(stops)
        manifest = read_manifest(folder)
        assert manifest is not None
        assert manifest.stop_ids == stops


def test_stop_tokens_of_instruction_tuned_models(qwen3_moe_run: Pipeline, llama_run: Pipeline) -> None:
    """With the fix nothing that the model itself stops at is lost."""
    for run, stops in ((qwen3_moe_run, [IM_END, END_OF_TEXT]), (llama_run, [2])):
        loaded: Any = mlx_lm.load(str(run.folder("fuse")), lazy=True)
        assert read_json(run.folder("fuse") / "generation_config.json")["eos_token_id"] == stops
        assert loaded[1].eos_token_ids == set(stops)


def test_the_template_is_the_one_that_was_trained_on(run: Pipeline) -> None:
    setup = run.options("train").preset.model
    wanted = template_hash(load_tokenizer(run.model, setup))
    folder = run.folder("fuse")
    assert template_hash(load_tokenizer(folder)) == wanted
    for stage in ("train", "fuse"):
        manifest = read_manifest(run.folder(stage))
        assert manifest is not None
        assert manifest.template == wanted
    text = (folder / "chat_template.jinja").read_text("utf-8")
    assert read_json(folder / "tokenizer_config.json")["chat_template"] == text
    loaded: Any = mlx_lm.load(str(folder), lazy=True)
    assert loaded[1].chat_template == text
    changed = template_hash(load_tokenizer(run.model)) != wanted
    assert changed == (run.overrides.get("chat_template") == "chatml_hermes")


@pytest.mark.parametrize("place", ["list", "folder"])
def test_of_several_templates_one_is_used_and_kept(
    place: str, qwen25_tokenizer: Path, tmp_path: Path
) -> None:
    """`tool_use` renders rows with tools and without: a fused model has one template alone."""
    base, fused = shutil.copytree(qwen25_tokenizer, tmp_path / "base"), tmp_path / "fused"
    settings = read_json(base / "tokenizer_config.json")
    tools = settings.pop("chat_template")
    if place == "list":
        named = {"default": PLAIN, "tool_use": tools, "rag": "never"}
        settings["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    else:
        (base / "chat_template.jinja").write_text(PLAIN, "utf-8")
        (base / "additional_chat_templates").mkdir()
        (base / "additional_chat_templates" / "tool_use.jinja").write_text(tools, "utf-8")
    (base / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (base / "config.json").write_text("{}")
    tokenizer = load_tokenizer(base)
    assert tokenizer.chat_template == tools
    assert read_base(base).own_template == tools
    fused.mkdir()
    write_tokenizer(fused, base, tokenizer, [IM_END])
    assert (fused / "chat_template.jinja").read_text("utf-8") == tools
    assert template_hash(load_tokenizer(fused)) == template_hash(tokenizer)


def test_templates_of_unknown_names_are_refused(qwen25_tokenizer: Path, tmp_path: Path) -> None:
    base = shutil.copytree(qwen25_tokenizer, tmp_path / "base")
    settings = read_json(base / "tokenizer_config.json")
    settings["chat_template"] = [{"name": name, "template": PLAIN} for name in ("rag", "chat")]
    (base / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(StageError, match="or several and none named tool_use or default: name one with"):
        load_tokenizer(base)


def test_nothing_of_the_quantization_is_left(run: Pipeline) -> None:
    folder = run.folder("fuse")
    config, base = read_json(folder / "config.json"), read_json(run.model / "config.json")
    assert ("quantization" in base) == ("4bit" in run.model.name)
    assert not {"quantization", "quantization_config"} & config.keys()
    kept = base.keys() - {"quantization", "quantization_config", "eos_token_id"}
    assert {name: config[name] for name in kept} == {name: base[name] for name in kept}
    assert not [
        name for name in load_arrays(folder / "model.safetensors") if name.endswith((".scales", ".biases"))
    ]
    for name in ("tokenizer.json", "config.json", "generation_config.json", "model.safetensors"):
        assert (folder / name).is_file()
    assert (folder / "tokenizer.json").read_bytes() == (run.model / "tokenizer.json").read_bytes()


def test_another_models_adapter_is_refused(qwen2_run: Pipeline, llama_run: Pipeline, tmp_path: Path) -> None:
    """Its shapes may fit, as they do here; a template that was not trained on is no better."""
    options = replace(qwen2_run.options("fuse"), data=llama_run.folder("train"), out=tmp_path / "fuse")
    with pytest.raises(
        StageError, match=r"^\S+/train was trained on another base model: [^\n]+--model[^\n]+$"
    ):
        run_work("fuse", options)
    options = replace(llama_run.options("fuse", chat_template="own"), out=tmp_path / "fuse")
    with pytest.raises(StageError, match=r"^\S+/train was trained with another chat template: [^\n]+$"):
        run_work("fuse", options)
    assert not (tmp_path / "fuse").exists()


def test_missing_adapter_names_the_command(
    built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    folder = str(built.model("qwen2"))
    assert main(["--model", folder]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fuse: no output of train in ")
    place = f"FAIR_RETEST_ARTIFACTS={tmp_path}"
    same = f"-- --model {folder} --fixes fair"
    assert error.endswith(
        f" run {place} nox -s train {same} (or {place} nox -s retest_fair {same} for all stages)\n"
    )
