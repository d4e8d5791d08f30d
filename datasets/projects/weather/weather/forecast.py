"""A forecast in one sentence."""

from typing import List, Optional


def describe(temperatures: List[float]) -> str:
    high = max(temperatures)
    low = min(temperatures)
    return f"Between {low:.0f} and {high:.0f} degrees, and remember that this is only an estimate for today."


def trend(temperatures: List[float]) -> Optional[str]:
    l = len(temperatures)
    if l < 2:
        return None
    return "rising" if temperatures[-1] > temperatures[0] else "falling"
