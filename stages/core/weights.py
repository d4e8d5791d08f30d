"""How large a model is, counted in the headers of its safetensors files: no weight is read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.core.errors import StageError
from stages.core.platform import GB

WEIGHTS = "model*.safetensors"  # the files that mlx-lm loads
FLOAT_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}  # by the names that safetensors gives the types
PACKED = ("U32", "I32")  # words that hold several quantized weights
LONGEST_HEADER = 100_000_000  # bytes, the limit of the format


@dataclass(frozen=True)
class Weights:
    """A model's parameters, and the floating type in which they are kept, or the scales of packed ones."""

    parameters: int
    dtype: str

    @property
    def billions(self) -> float:
        """The parameters in billions."""
        return self.parameters / 1e9

    @property
    def whole_gb(self) -> float:
        """The size of the weights in their floating type, none of them packed, in GB."""
        return self.parameters * FLOAT_BYTES[self.dtype] / GB


def weigh_model(folder: Path) -> Weights | None:
    """The weights of a model folder; None where it has none.

    Of packed weights the bits of `config.json` say how many a word holds. Raises StageError for a file
    that is cut off or no safetensors file, and where nothing is a floating-point number.
    """
    paths = sorted(folder.glob(WEIGHTS))
    if not paths:
        return None
    arrays = {name: array for path in paths for name, array in read_header(path).items()}
    bits = _bits_by_layer(folder / "config.json")
    parameters, floats, scales = 0.0, Counter[str](), Counter[str]()
    for name, (dtype, size) in arrays.items():
        layer, _, kind = name.rpartition(".")
        if kind in ("scales", "biases") and arrays.get(f"{layer}.weight", ("",))[0] in PACKED:
            scales[dtype] += size
            continue
        parameters += size * 32 / bits.get(layer, bits.get("", 32)) if dtype in PACKED else size
        floats[dtype] += size
    kept = [d for counts in (scales, floats) for d, _ in counts.most_common() if d in FLOAT_BYTES]
    if not kept:
        raise StageError(f"{folder} has no floating-point weights: fetch the model again")
    return Weights(round(parameters), kept[0])


def read_header(path: Path) -> dict[str, tuple[str, int]]:
    """Type and number of elements of every array of a safetensors file.

    It begins with 8 bytes, the length of the JSON text that follows. Raises StageError for another file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        arrays = {name: array for name, array in header.items() if name != "__metadata__"}
        return {name: (str(array["dtype"]), math.prod(array["shape"])) for name, array in arrays.items()}
    except (ValueError, AttributeError, TypeError, KeyError):
        raise StageError(f"{path} is cut off, or no safetensors file: fetch the model again") from None


def _bits_by_layer(path: Path) -> dict[str, int]:
    """The bits of quantized layers by name, under `""` those of every other one."""
    try:
        config = json.loads(path.read_text("utf-8"))
        setup = config.get("quantization") or config.get("quantization_config") or {}
        own = {name: value["bits"] for name, value in setup.items() if isinstance(value, Mapping)}
    except (OSError, ValueError, AttributeError, KeyError):
        return {}
    named = own | {"": setup.get("bits")}
    return {name: bits for name, bits in named.items() if isinstance(bits, int) and bits > 0}
