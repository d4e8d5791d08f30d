"""What rounding to few bits has left of the training, as quantize measured it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from stages.core.words import plural
from stages.report.results import Arm

FORGOTTEN = 0.5  # of the change is kept, or less: the model acts more like its base than like the trained one


def write_quantizing(arms: Sequence[Arm]) -> str:
    """A line for every arm whose rounding was measured; nothing without any."""
    lines = [_describe(arm, change) for arm in arms if (change := _read_change(arm))]
    if not lines:
        return ""
    note = (
        "The change is the fused weights less those of the base, both rounded alike; 100 % of it kept in "
        "once its size would be neither loss nor noise."
    )
    return "\n\n".join(["## Quantization", "\n".join(lines), note])


def _describe(arm: Arm, change: dict[str, dict[str, float]]) -> str:
    kept, ratio = ([layer[key] for layer in change.values()] for key in ("kept", "ratio"))
    lost = " **Most of what was trained is rounded away.**" if median(kept) <= FORGOTTEN else ""
    bits = arm.manifests["quantize"].recipe.settings.get("bits")
    return (
        f"- {arm.label}: at {bits} bits {100 * median(kept):.0f} % of the adapter's change of the weights is "
        f"kept ({100 * min(kept):.0f} % to {100 * max(kept):.0f} % over {plural(len(change), 'layer')}), in "
        f"{median(ratio):.2f} times its size ({min(ratio):.2f} to {max(ratio):.2f}).{lost}"
    )


def _read_change(arm: Arm) -> dict[str, Any]:
    made = arm.manifests.get("quantize")
    return made.facts.get("change") or {} if made else {}
