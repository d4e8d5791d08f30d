"""Quantizing: models that stock mlx-lm loads, nearer to the fused one with every bit."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.utils import tree_flatten

from stages.core.artifact import read_manifest
from stages.core.compute import load_arrays, load_model
from stages.core.errors import StageError
from stages.core.platform import folder_size_gb
from stages.quantize.__main__ import main
from stages.quantize.change import measure_change
from stages.quantize.stage import WEIGHTS, require_fit
from tests.models import END_OF_TEXT, IM_END, BuiltOnce
from tests.pipeline import Pipeline, run_work

BITS = (5, 6, 8)


@pytest.fixture(scope="module")
def by_bits(qwen2_run: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    qwen2_run.folder("fuse")
    root = tmp_path_factory.mktemp("bits")
    for bits in BITS:
        run_work("quantize", replace(qwen2_run.options("quantize", bits=bits), out=root / str(bits)))
    return {bits: root / str(bits) for bits in BITS}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("bits", BITS)
def test_stock_mlx_lm_loads_it(bits: int, by_bits: dict[int, Path]) -> None:
    folder = by_bits[bits]
    config = read_json(folder / "config.json")
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (bits, 64)
    loaded: Any = mlx_lm.load(str(folder))
    model, tokenizer = loaded
    names = dict(tree_flatten(model.parameters()))
    assert "model.layers.0.self_attn.q_proj.scales" in names
    assert "lm_head.scales" in names
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    replies = [r.token for r in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=3)]
    assert 1 <= len(replies) <= 3
    assert tokenizer.eos_token_ids == {IM_END, END_OF_TEXT}


def test_the_error_shrinks_with_the_bits(by_bits: dict[int, Path], qwen2_run: Pipeline) -> None:
    fused = load_arrays(qwen2_run.folder("fuse") / "model.safetensors")
    errors: dict[int, dict[str, float]] = {}
    for bits, folder in by_bits.items():
        weights = dict(tree_flatten(load_model(folder)[0].parameters()))
        assert weights.keys() == fused.keys()
        errors[bits] = {}
        for name, exact in fused.items():
            wanted, found = np.array(exact.astype(mx.float32)), np.array(weights[name].astype(mx.float32))
            if name.endswith(("norm.weight", "bias")):
                np.testing.assert_array_equal(found, wanted)  # these are not quantized
            else:
                errors[bits][name] = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    assert len(errors[5]) == 16
    for name in errors[5]:
        assert errors[5][name] < 0.06, name
        assert errors[5][name] > 1.6 * errors[6][name], name
        assert errors[6][name] > 2.5 * errors[8][name], name


def test_sizes_and_facts(by_bits: dict[int, Path], qwen2_run: Pipeline) -> None:
    sizes = []
    for bits, folder in by_bits.items():
        manifest = read_manifest(folder)
        assert manifest is not None
        facts = manifest.facts
        assert facts["bits"] == bits
        assert facts["bits_per_weight"] == pytest.approx(
            bits + 0.5, abs=0.01
        )  # scale and bias per 64 weights
        weights = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        assert weights * 8 / (2 * 151936 * 64) == pytest.approx(
            bits + 0.5, rel=0.02
        )  # nearly all is embeddings
        assert facts["disk_gb"] == pytest.approx(folder_size_gb(folder), abs=1e-4)
        trained = read_manifest(qwen2_run.folder("train"))
        assert trained is not None
        assert manifest.stop_ids == [IM_END, END_OF_TEXT]
        assert (manifest.seed, manifest.template) == (0, trained.template)
        assert len(str(manifest.template)) == 16
        sizes.append(weights)
    assert sizes == sorted(sizes)


def test_what_rounding_leaves_of_the_adapter(by_bits: dict[int, Path], qwen2_run: Pipeline) -> None:
    """Measured on a sample of rows; here against all rows of a matrix, and against no training at all."""
    fused = qwen2_run.folder("fuse")
    ratios = []
    for folder in by_bits.values():
        manifest = read_manifest(folder)
        assert manifest is not None
        change = manifest.facts["change"]
        assert change == measure_change(qwen2_run.model, fused, folder)
        assert change.keys() == {"0", "1"}, "the layers that were trained; the embeddings were not"
        assert all(0.5 < layer["kept"] < 1.5 for layer in change.values())
        ratios.append(change["1"]["ratio"])
    assert ratios == sorted(ratios, reverse=True), "the fewer bits, the more noise"
    assert ratios[-1] == pytest.approx(1, abs=0.3)
    assert measure_change(fused, fused, by_bits[6]) is None


def test_the_change_is_that_of_whole_matrices(qwen2_run: Pipeline, by_bits: dict[int, Path]) -> None:
    base = dict(tree_flatten(load_model(qwen2_run.model)[0].parameters()))
    fused = load_arrays(qwen2_run.folder("fuse") / "model.safetensors")
    rounded = dict(tree_flatten(load_model(by_bits[5])[0].parameters()))
    sums = np.zeros(3)
    for name in (n for n in fused if n.startswith("model.layers.1.") and n.endswith("_proj.weight")):
        plain = base[name].astype(fused[name].dtype)
        parts: Any = mx.quantize(plain, group_size=64, bits=5)
        scales, biases = (part.astype(mx.float32) for part in parts[1:])
        untrained = mx.dequantize(parts[0], scales, biases, group_size=64, bits=5)
        left = np.array(rounded[name] - untrained)
        change = np.array(fused[name].astype(mx.float32) - plain.astype(mx.float32))
        sums += [(left**2).sum(), (left * change).sum(), (change**2).sum()]
    manifest = read_manifest(by_bits[5])
    assert manifest is not None
    found = manifest.facts["change"]["1"]
    assert found["ratio"] == pytest.approx((sums[0] / sums[2]) ** 0.5, rel=0.1)
    assert found["kept"] == pytest.approx(sums[1] / sums[2], abs=0.1)


def test_without_the_base_nothing_is_measured(qwen2_run: Pipeline, tmp_path: Path) -> None:
    fused = qwen2_run.folder("fuse")
    other = qwen2_run.options("quantize", source=str(fused))
    outcome = run_work("quantize", replace(other, out=tmp_path / "out"))
    assert "change" not in outcome.facts
    assert len(outcome.lines) == 1


def test_all_other_files_are_those_of_the_fused_model(by_bits: dict[int, Path], qwen2_run: Pipeline) -> None:
    fused = qwen2_run.folder("fuse")
    own = {"config.json", "manifest.json"}
    names = {p.name for p in fused.iterdir() if p.name not in own and not p.name.endswith(WEIGHTS)}
    assert names == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    }
    for folder in by_bits.values():
        for name in names:
            assert (folder / name).read_bytes() == (fused / name).read_bytes()
        assert {p.name for p in folder.iterdir() if not p.name.endswith(WEIGHTS)} == names | own
        before, after = read_json(fused / "config.json"), read_json(folder / "config.json")
        assert {k: v for k, v in after.items() if not k.startswith("quantization")} == before


def test_the_fix_six_bit_decides(qwen2_run: Pipeline, tmp_path: Path) -> None:
    qwen2_run.folder("fuse")
    fixed = qwen2_run.options("quantize")
    without = tuple(fix for fix in fixed.fixes if fix != "six_bit")
    for fixes, bits in ((fixed.fixes, 6), (without, 5)):
        options = replace(fixed, fixes=fixes, out=tmp_path / str(bits))
        assert run_work("quantize", options).facts["bits"] == bits
        assert run_work("quantize", options).up_to_date


def test_experts_are_quantized(qwen3_moe_run: Pipeline) -> None:
    names = load_arrays(qwen3_moe_run.folder("quantize") / "model.safetensors")
    assert "model.layers.1.mlp.switch_mlp.gate_proj.scales" in names
    loaded: Any = mlx_lm.load(str(qwen3_moe_run.folder("quantize")), lazy=True)
    assert loaded[1].eos_token_ids == {IM_END, END_OF_TEXT}


def test_a_group_size_that_skips_matrices_is_refused(qwen2_run: Pipeline, tmp_path: Path) -> None:
    qwen2_run.folder("fuse")
    options = replace(qwen2_run.options("quantize", group_size=128), out=tmp_path / "out")
    with pytest.raises(StageError) as raised:
        run_work("quantize", options)
    told = str(raised.value)
    assert re.match(
        r"--group-size 128 does not fit: \d+ of 16 matrices would stay as they are, such as ", told
    )
    assert told.endswith(" with rows of 64; use 32 or 64")
    assert not (tmp_path / "out").exists()


def test_rows_that_no_group_divides_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    make: Any = Module  # untyped
    model = make()
    model.short, model.long = Linear(48, 8), Linear(64, 8)
    require_fit(model, 64)
    assert capsys.readouterr().out == (
        "  no group size fits all: 1 of 2 matrices would stay as they are, such as short with rows of 48\n"
    )
    with pytest.raises(StageError, match=r"--group-size 128 does not fit: 2 of 2 .*; use 32 or 64"):
        require_fit(model, 128)


def test_a_quantized_model_is_refused(by_bits: dict[int, Path], qwen2_run: Pipeline, tmp_path: Path) -> None:
    options = replace(qwen2_run.options("quantize"), data=by_bits[8], out=tmp_path / "again")
    with pytest.raises(StageError, match=r"^\S+/8 is the output of quantize, not of fuse: name another"):
        run_work("quantize", options)
    assert not (tmp_path / "again").exists()


def test_a_fused_model_that_lost_its_weights(qwen2_run: Pipeline, tmp_path: Path) -> None:
    """Removed to save disk, or cut off by it: the manifest alone would pass."""
    fused = shutil.copytree(qwen2_run.folder("fuse"), tmp_path / "fuse")
    options = replace(qwen2_run.options("quantize"), data=fused, out=tmp_path / "out")
    weights = fused / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(StageError, match=rf"^mlx-lm cannot load {fused}: "):
        run_work("quantize", options)
    weights.unlink()
    lost = re.escape(f"{fused} lacks model.safetensors: make it again with ")
    with pytest.raises(StageError, match=rf"^{lost}.*nox -s fuse -- .* --out {fused} --force$"):
        run_work("quantize", options)
    assert not (tmp_path / "out").exists()


def test_a_chat_template_that_was_not_trained_with_is_refused(qwen2_run: Pipeline, tmp_path: Path) -> None:
    fused = shutil.copytree(qwen2_run.folder("fuse"), tmp_path / "fused")
    with (fused / "chat_template.jinja").open("a", encoding="utf-8") as file:
        file.write("{# changed #}")
    options = replace(qwen2_run.options("quantize"), data=fused, out=tmp_path / "out")
    with pytest.raises(StageError, match=r"^\S+/fused holds another chat template than [^\n]+--force$"):
        run_work("quantize", options)
    assert not (tmp_path / "out").exists()


def test_missing_fused_model_names_the_command(
    built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path))
    folder = str(built.model("qwen2"))
    assert main(["--model", folder, "--fixes", "json,eos"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quantize: no output of fuse in ")
    place = f"FAIR_RETEST_ARTIFACTS={tmp_path}"
    same = f"-- --model {folder} --fixes json+eos"
    assert error.endswith(
        f" run {place} nox -s fuse {same} (or {place} nox -s retest_fair {same} for all stages)\n"
    )
    assert main(["--model", folder, "--bits", "7"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quantize: argument --bits: invalid choice: 7 (choose from 3, 4, 5, 6, 8)")
    assert error.count("\n") == 1


def test_the_bits_of_another_arm_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "out"))
    for words, told in (
        (["--fixes", "flawed", "--bits", "8"], "--bits 8 is for the fix six_bit, and not for flawed: "),
        (["--legacy-bits", "4"], "--legacy-bits 4 is for arms without the fix six_bit, and not for fair: "),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"quantize: {told}give --")
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
