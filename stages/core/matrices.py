"""Rows of the weight matrices of a model folder, whatever they are packed in; the model is not built.

MLX is imported inside the functions, so that stages without it can import `stages.core`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

from stages.core.compute import load_arrays
from stages.core.errors import StageError

WEIGHT, SCALES, BIASES = ".weight", ".scales", ".biases"


class Matrices:
    """The matrices of a model folder by their names, such as `model.layers.0.self_attn.q_proj`.

    Each is read when its rows are taken, and forgotten then. Those in groups of another kind than
    mlx-lm's affine ones are left out. Raises StageError for a file that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, Any] = {}
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            for path in sorted(folder.glob("*.safetensors")):
                self._arrays |= load_arrays(path)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unreadable(error) from None
        self._packing: dict[str, Any] = config.get("quantization") or {}

    def find(self, names: Iterable[str] | None = None) -> list[str]:
        """The matrices that can be read, of `names` or of all."""
        stored = (key.removesuffix(WEIGHT) for key in self._arrays if key.endswith(WEIGHT))
        return [name for name in (stored if names is None else names) if self._is_readable(name)]

    def count_rows(self, name: str) -> int:
        """Rows of a matrix, those of all experts one after the other."""
        return prod(self._arrays[name + WEIGHT].shape[:-1])

    def packing(self, name: str) -> tuple[int, int] | None:
        """Group size and bits of a matrix, None where it is stored plainly."""
        if name + SCALES not in self._arrays:
            return None
        own = self._packing.get(name)
        packing = own if isinstance(own, dict) else self._packing
        return int(packing["group_size"]), int(packing["bits"])

    def take_rows(self, name: str, rows: Sequence[int], dtypes: Sequence[Any] = (None,)) -> list[Any]:
        """Some rows of a matrix, (rows, width), once in each of the `dtypes`; None is its own.

        A packed one is computed in that type, in its own that of its scales.
        """
        import mlx.core as mx

        packing = self.packing(name)
        parts = [self._arrays.pop(name + end) for end in ((WEIGHT, SCALES, BIASES) if packing else (WEIGHT,))]
        index = mx.array(list(rows))
        taken = [part.reshape(-1, part.shape[-1])[index] for part in parts]
        own = taken[-1].dtype
        try:
            return [_unpack(taken, packing, dtype or own) for dtype in dtypes]
        except RuntimeError as error:  # arrays are read when they are computed
            raise self._unreadable(error) from None

    def _is_readable(self, name: str) -> bool:
        weight = self._arrays.get(name + WEIGHT)
        if weight is None or weight.ndim < 2:
            return False
        return name + SCALES not in self._arrays or (
            name + BIASES in self._arrays and {"group_size", "bits"} <= self._packing.keys()
        )

    def _unreadable(self, error: Exception) -> StageError:
        reason = " ".join(str(error).split())[:120]
        return StageError(
            f"the weights in {self._folder} cannot be read ({reason}): make or fetch them again"
        )


def _unpack(parts: Sequence[Any], packing: tuple[int, int] | None, dtype: Any) -> Any:
    import mlx.core as mx

    if packing is None:
        rows = parts[0].astype(dtype)
    else:
        weight, scales, biases = parts
        group_size, bits = packing
        rows = mx.dequantize(
            weight, scales.astype(dtype), biases.astype(dtype), group_size=group_size, bits=bits
        )
    mx.eval(rows)
    return rows


def spread_rows(count: int, most: int) -> list[int]:
    """At most `most` of so many rows, evenly spread."""
    if count <= most:
        return list(range(count))
    return [i * (count - 1) // (most - 1) for i in range(most)]
