"""Fixes that are switched on and change nothing on this model, as far as the records show it."""

from __future__ import annotations

from stages.report.results import Arm


def find_idle_fixes(without: Arm, repaired: Arm) -> list[str]:
    """One sentence per fix that only the second arm has and that made no difference to its input."""
    said = []
    for name, check in _CHECKS.items():
        if (
            name in repaired.options.fixes
            and name not in without.options.fixes
            and (text := check(without, repaired))
        ):
            said.append(f"`{name}` has no effect on this model: {text}.")
    return said


def _same_rows(a: Arm, b: Arm) -> str:
    contents = [arm.manifests["convert_data"].content for arm in (a, b) if "convert_data" in arm.manifests]
    same = len(contents) == 2 and contents[0] == contents[1]
    return "the converted rows are the same in both arms" if same else ""


def _same_stops(a: Arm, b: Arm) -> str:
    stops = [arm.manifests["fuse"].stop_ids for arm in (a, b) if "fuse" in arm.manifests]
    if len(stops) == 2 and stops[0] == stops[1] and stops[0]:
        return f"the fused models of both arms stop at the same ids {stops[0]}"
    return ""


def _same_parser(a: Arm, b: Arm) -> str:
    dialects = {r.summary.dialect for arm in (a, b) for r in arm.suites.values()}
    return f"both arms are read as {dialects.pop()}" if len(dialects) == 1 else ""


def _same_bits(a: Arm, b: Arm) -> str:
    bits = [
        arm.manifests["quantize"].recipe.settings.get("bits") for arm in (a, b) if "quantize" in arm.manifests
    ]
    return f"both arms have {bits[0]} bits" if len(bits) == 2 and bits[0] == bits[1] and bits[0] else ""


_CHECKS = {"json": _same_rows, "eos": _same_stops, "parser": _same_parser, "six_bit": _same_bits}
