"""The time of a run, shared among its queries: so that a query's part means the same for any engine."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from statistics import fmean, median

from stages.core.records import RawReply, Timing
from stages.eval.engines import Costs


class WorkClock:
    """Gives every query in work an equal part of the time that passes; the parts add up to the whole."""

    def __init__(self, ids: Collection[str]) -> None:
        self.parts = dict.fromkeys(ids, 0.0)
        self._last = time.perf_counter()

    def tick(self, in_work: Collection[str]) -> float:
        """Share the seconds since the last tick among the queries that were in work, and return them."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        for query in in_work:
            self.parts[query] += elapsed / len(in_work)
        return elapsed

    def skip(self) -> None:
        """Leave the time since the last tick out."""
        self._last = time.perf_counter()


def summarize_timing(replies: Sequence[RawReply], costs: Costs) -> Timing:
    """The timing of a suite. A figure is None where a reply lacks what it is made of."""
    parts = [reply.seconds for reply in replies if reply.seconds is not None]
    counts = [reply.tokens for reply in replies if reply.tokens is not None]
    timed, counted = len(parts) == len(replies), len(counts) == len(replies)
    seconds, tokens = sum(parts), sum(counts)
    runaways = [reply for reply in replies if reply.finish == "length"]
    return Timing(
        load_seconds=costs.load_seconds,
        first_token_seconds=costs.first_token_seconds,
        seconds_per_query=round(fmean(parts), 4) if timed else None,
        seconds_median=round(median(parts), 4) if timed else None,
        seconds_p95=round(percentile(parts, 0.95), 4) if timed else None,
        tokens_per_second=round(tokens / seconds, 2) if timed and counted and seconds else None,
        generated_tokens=tokens if counted else None,
        runaway_tokens=_share(sum(r.tokens or 0 for r in runaways), tokens) if counted else None,
        runaway_seconds=_share(sum(r.seconds or 0.0 for r in runaways), seconds) if timed else None,
        peak_memory_gb=costs.peak_memory_gb,
        disk_gb=costs.disk_gb,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
