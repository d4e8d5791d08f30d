"""How long the vectors of a token are in the base model."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from stages.core.matrices import Matrices, spread_rows

SAMPLE = 1000  # tokens that the median is of
_ROLES = {"embed_tokens": "input", "lm_head": "output"}  # tied ones have the first alone


def compare_vectors(folder: Path, token: int, tokens: int) -> dict[str, float]:
    """A token's vector over the median length of others, for input and output; empty without weights.

    `tokens` is the size of the vocabulary: rows behind it belong to no token.
    """
    if not any(folder.glob("*.safetensors")):
        return {}
    weights = Matrices(folder)
    found = {}
    for name in weights.find():
        role = _ROLES.get(name.rpartition(".")[2])
        if role is not None:
            found[role] = _compare(weights, name, token, min(tokens, weights.count_rows(name)))
    return found


def _compare(weights: Matrices, name: str, token: int, tokens: int) -> float:
    import mlx.core as mx

    (rows,) = weights.take_rows(name, [token, *spread_rows(tokens, SAMPLE)], [mx.float32])
    lengths: Any = mx.linalg.norm(rows, axis=1).tolist()
    usual = median(lengths[1:])
    return float(lengths[0] / usual) if usual else 0.0
