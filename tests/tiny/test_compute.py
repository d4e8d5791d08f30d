"""Models in memory: whether they fit, that they are read whole, and what the log says of them."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import mlx.core as mx
import pytest

from stages.core import platform, progress
from stages.core.compute import compute_weights, list_arrays, load_model
from stages.core.errors import StageError
from tests.models import BuiltOnce, Kind


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_a_model_that_does_not_fit_is_refused_with_what_it_takes(
    kind: Kind, built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built.model(kind)
    model, _ = load_model(folder)
    arrays = list_arrays(model)
    needed = sum(array.nbytes for array in arrays)
    if platform.accelerator() == "cpu":
        assert needed == 4 * sum(array.size for array in arrays), "float32, whatever is stored"
        assert needed > 5 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    monkeypatch.setattr(platform, "CGROUP", tmp_path)
    (tmp_path / "memory.stat").write_text("anon 0\n")
    (tmp_path / "memory.max").write_text(str(needed + 1_000_000))
    load_model(folder)
    (tmp_path / "memory.max").write_text(str(needed - 1_000_000))
    with pytest.raises(StageError) as error:
        load_model(folder)
    assert str(error.value).startswith(f"{folder}, loaded, takes {needed / 1e9:.1f} GB of memory, ")
    assert "\n" not in str(error.value)


def test_weights_are_computed_one_by_one_under_a_bar(
    built: BuiltOnce, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    model, _ = load_model(built.model("qwen2"))
    count = len(list_arrays(model))
    assert f"  loading 1/{count} arrays" in capfd.readouterr().out
    model.set_dtype(mx.float16)
    expected = [array.astype(mx.float32).sum().item() for array in list_arrays(model)]
    compute_weights(model, "halving")
    out = capfd.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["halving", f"{done}/{count}"] for done in range(1, count)
    ]
    assert [array.astype(mx.float32).sum().item() for array in list_arrays(model)] == expected


def test_the_log_tells_what_mlx_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.LOG_VARIABLE, raising=False)
    gc.collect()  # what earlier tests left would go at any moment
    before = mx.get_active_memory()
    held = mx.ones((5_000_000,))
    mx.eval(held)
    with progress.run_log("train", tmp_path):
        pass
    (path,) = tmp_path.iterdir()
    samples = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    found = [sample["mlx_gb"] for sample in samples if sample["event"] == "memory"]
    assert found
    assert all(held_gb == pytest.approx((before + 20_000_000) / 1e9, abs=0.002) for held_gb in found)
