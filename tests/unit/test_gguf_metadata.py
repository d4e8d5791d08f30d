"""The header of a GGUF file, against the library that writes such files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from stages.core.errors import StageError
from stages.core.gguf_metadata import read_gguf_metadata

VALUES: dict[str, Any] = {
    "uint8": 200,
    "int8": -100,
    "uint16": 60_000,
    "int16": -30_000,
    "uint32": 4_000_000_000,
    "int32": -2_000_000_000,
    "uint64": 2**63,
    "int64": -(2**62),
    "float32": 0.5,
    "float64": 1e-300,
    "bool": True,
    "string": "é 🦀\n",
    "array": ["a", "", "Ġthe"],
}


def test_every_kind_of_value_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    for kind, value in VALUES.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_tensor("weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_gguf_metadata(path)
    assert read == {
        "general.architecture": "llama",
        **{f"test.{kind}": value for kind, value in VALUES.items()},
        "test.numbers": [1, 2, 3],
    }
    assert [type(value) for value in read.values()].count(bool) == 1


@pytest.mark.parametrize("data", [b"GGUF\x02\0\0\0" + bytes(40), b"PK\x03\x04" + bytes(60)])
def test_another_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(StageError, match="is no GGUF file of version 3"):
        read_gguf_metadata(tmp_path / "file")
