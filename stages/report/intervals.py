"""Intervals for one rate, and for the ratio of two.

Written out in plain Python because importing scipy.stats alone takes longer than a report may;
the tests hold them against scipy and statsmodels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from stages.core.errors import StageError
from stages.core.records import Rate

Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal: a two-sided interval of 95 %


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; `high` is infinite where the data set no upper limit."""

    low: float
    high: float


@dataclass(frozen=True)
class Count:
    """`k` of `n`; both may be fractions, which the planning of queries uses."""

    k: float
    n: float

    def __post_init__(self) -> None:
        if self.n <= 0 or not 0 <= self.k <= self.n:
            raise StageError(
                f"{self.k:g} of {self.n:g} is no rate: an empty or broken result, evaluate again"
            )

    @classmethod
    def of(cls, rate: Rate) -> Count:
        """The same count as a record holds it."""
        return cls(rate.k, rate.n)


def rate_interval(rate: Rate) -> Interval:
    """Wilson's score interval of one rate (Wilson 1927, JASA 22:209-212). StageError for an empty one."""
    count = Count.of(rate)
    share, z2n = count.k / count.n, Z95**2 / count.n
    middle = (share + z2n / 2) / (1 + z2n)
    half = Z95 / (1 + z2n) * math.sqrt(share * (1 - share) / count.n + z2n / (4 * count.n))
    low = 0.0 if count.k == 0 else middle - half
    high = 1.0 if count.k == count.n else middle + half
    return Interval(max(0.0, low), min(1.0, high))


def ratio_interval(candidate: Count, reference: Count) -> Interval:
    """Score interval of the ratio of two independent rates, candidate over reference.

    Source: Miettinen and Nurminen 1985, Statistics in Medicine 4:213-226 (Koopman's interval of
    1984 times N/(N-1)): the ratios that the score test does not reject at 5 %. It holds for rates
    of 0 and 1 and for few queries, where intervals on the logarithm fail.
    """

    def surplus(ratio: float) -> float:
        return score_statistic(candidate, reference, ratio) - Z95**2

    if reference.k == 0:
        point = math.inf if candidate.k else 1.0
    else:
        point = (candidate.k * reference.n) / (candidate.n * reference.k)
    low = 0.0 if candidate.k == 0 else _find_root(surplus, *_bracket(surplus, min(point, 1e9), 0.5))
    high = math.inf if reference.k == 0 else _find_root(surplus, *_bracket(surplus, point, 2.0))
    return Interval(low, high)


def score_statistic(candidate: Count, reference: Count, ratio: float) -> float:
    """Chi-squared score statistic (1 degree of freedom) of `candidate rate = ratio x reference rate`."""
    total = candidate.n + reference.n
    # Under the hypothesis the likelihood is greatest where a p^2 - b p + c = 0, p the reference's rate.
    a = total * ratio
    b = (candidate.n + reference.k) * ratio + candidate.k + reference.n
    c = candidate.k + reference.k
    p_reference = min(1.0, 2 * c / (b + math.sqrt(max(0.0, b * b - 4 * a * c))))
    p_candidate = min(1.0, ratio * p_reference)
    variance = (
        p_candidate * (1 - p_candidate) / candidate.n
        + ratio**2 * p_reference * (1 - p_reference) / reference.n
    )
    distance = candidate.k / candidate.n - ratio * reference.k / reference.n
    if variance <= 0:
        return 0.0 if abs(distance) < 1e-12 else math.inf
    return distance**2 / variance * max(total - 1, 1e-9) / total


def _bracket(surplus: Callable[[float], float], point: float, step: float) -> tuple[float, float]:
    """A ratio on the inner and one on the outer side of a limit, walking away from the point estimate."""
    inner = outer = max(point, 1e-9)
    while surplus(outer) < 0:
        inner, outer = outer, outer * step
    return inner, outer


def _find_root(surplus: Callable[[float], float], inner: float, outer: float) -> float:
    """Bisection between a ratio that is kept and one that is rejected, to 12 digits."""
    while abs(outer - inner) > 1e-12 * max(inner, outer):
        middle = (inner + outer) / 2
        if surplus(middle) < 0:
            inner = middle
        else:
            outer = middle
    return (inner + outer) / 2
