"""The size of a model folder from the headers of its files, as the safetensors package writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.core.errors import StageError
from stages.core.weights import Weights, weigh_model


def zeros(dtype: Any, *shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def test_every_file_counts_and_the_commonest_type_is_the_models(tmp_path: Path) -> None:
    save_file({"norm": zeros(np.float32, 7)}, tmp_path / "model-1.safetensors", {"format": "mlx"})
    save_file({"a.weight": zeros(np.float16, 30, 20)}, tmp_path / "model-2.safetensors")
    save_file({"again": zeros(np.float32, 9999)}, tmp_path / "consolidated.safetensors")  # nobody loads it
    weights = weigh_model(tmp_path)
    assert weights == Weights(607, "F16")
    assert (weights.billions, weights.whole_gb) == (607e-9, 1214e-9)


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_packed_weights_count_by_their_bits(key: str, tmp_path: Path) -> None:
    """4 bits, and 8 for one layer: a word of 32 bits holds 8 weights, and 4."""
    setup = {"group_size": 64, "bits": 4, "b": {"group_size": 64, "bits": 8}}
    (tmp_path / "config.json").write_text(json.dumps({key: setup}))
    arrays = {
        "a.weight": zeros(np.uint32, 10, 64 * 4 // 32), "a.scales": zeros(np.float16, 10, 1),
        "a.biases": zeros(np.float16, 10, 1), "a.bias": zeros(np.float32, 10),
        "b.weight": zeros(np.uint32, 10, 64 * 8 // 32), "b.scales": zeros(np.float16, 10, 1),
        "b.biases": zeros(np.float16, 10, 1), "scales": zeros(np.float32, 3),
    }  # fmt: skip
    save_file(arrays, tmp_path / "model.safetensors")
    assert weigh_model(tmp_path) == Weights(2 * 640 + 10 + 3, "F16")


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    assert weigh_model(tmp_path) is None


@pytest.mark.parametrize(
    "data", [b"", b"\x05\0\0\0\0\0\0\0{", b"\x02\0\0\0\0\0\0\0[]", b"version https://git-lfs"]
)
def test_a_file_that_is_none_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(StageError, match=r"model\.safetensors is cut off, or no safetensors file: fetch"):
        weigh_model(tmp_path)


def test_words_alone_are_no_model(tmp_path: Path) -> None:
    save_file({"a.weight": zeros(np.uint32, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(StageError, match="has no floating-point weights"):
        weigh_model(tmp_path)
