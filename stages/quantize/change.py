"""What of the adapter's change of the weights is left after rounding.

A step of few bits can be larger than what training has changed: the quantized model then acts like the
quantized base, and no figure of the training shows it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from stages.core.matrices import Matrices, spread_rows
from stages.core.words import plural

ROWS = 32  # of a matrix that are looked at; groups lie in rows, so each is rounded as in the whole

Change = dict[str, dict[str, float]]
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def measure_change(base: Path, fused: Path, quantized: Path) -> Change | None:
    """By layer what rounding leaves of D, the fused weights W + D less those of the base, W.

    `ratio` is |Q(W + D) - Q(W)| / |D|, the change that is left over the one that was trained: 0 where it
    is rounded away, far above 1 where it drowns in the noise of rounding. `kept` is the part of D that is
    left in its own direction, <Q(W + D) - Q(W), D> / |D|²: 1 where none is lost. A sample of rows decides.
    Returns None where no matrix of the base was changed, or none is stored under the name it has here.
    """
    before, trained, after = Matrices(base), Matrices(fused), Matrices(quantized)
    names = [name for name in trained.find(before.find(after.find())) if after.packing(name)]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name in names:
        found = _compare(name, before, trained, after)
        layer = _LAYER.search(f".{name}.")
        for index, value in enumerate(found or ()):
            sums[layer[1] if layer else name][index] += value
    if not sums:
        return None
    return {
        layer: {"ratio": round((left / change) ** 0.5, 4), "kept": round(shared / change, 4)}
        for layer, (left, shared, change) in sums.items()
    }


def describe_change(change: Change) -> str:
    """The median layer in a line."""
    ratio, kept = (median(layer[key] for layer in change.values()) for key in ("ratio", "kept"))
    return (
        f"rounding keeps {100 * kept:.0f} % of what the adapter changed (the median of "
        f"{plural(len(change), 'layer')}; with what rounding adds it is {ratio:.1f} times as large)"
    )


def _compare(name: str, before: Matrices, trained: Matrices, after: Matrices) -> list[float] | None:
    """|Q(W + D) - Q(W)|², <Q(W + D) - Q(W), D> and |D|² of a matrix; None where training left it alone."""
    import mlx.core as mx

    count = trained.count_rows(name)
    packing = after.packing(name)
    if packing is None or not before.count_rows(name) == after.count_rows(name) == count:
        return None
    rows = spread_rows(count, ROWS)
    (fused,) = trained.take_rows(name, rows)
    # A base that was dequantized on a GPU was so in its own type, and on a CPU in float32.
    stored, exact = (w.astype(fused.dtype) for w in before.take_rows(name, rows, [None, mx.float32]))
    if any(mx.array_equal(fused, same) for same in (stored, exact)):
        return None
    group_size, bits = packing
    (rounded,) = after.take_rows(name, rows, [mx.float32])
    parts: Any = mx.quantize(exact, group_size=group_size, bits=bits)
    weight, scales, biases = (part if i == 0 else part.astype(mx.float32) for i, part in enumerate(parts))
    untrained = mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits)
    left, change = rounded - untrained, (fused.astype(mx.float32) - exact.astype(mx.float32))
    return [float((a * b).sum()) for a, b in ((left, left), (left, change), (change, change))]
