"""The report's statistics against scipy, statsmodels and known answers."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from stages.core.errors import StageError
from stages.core.records import EvalSummary, Rate, Timing
from stages.report.intervals import Z95, Count, rate_interval, ratio_interval, score_statistic
from stages.report.pairs import Pairing
from stages.report.verdict import (
    Match,
    apply_rule,
    choose_match,
    plan_queries,
    rate_ratio,
    reach_verdict,
    refuse_comparison,
)

RATES = [(0, 1), (1, 1), (0, 13), (13, 13), (7, 20), (20, 20), (19, 20), (181, 200), (1, 200), (200, 200)]
INNER = [(7, 20), (19, 20), (1, 13), (181, 200), (3, 200), (100, 200)]
EDGES = [
    ((7, 20), (20, 20)),
    ((18, 20), (20, 20)),
    ((20, 20), (20, 20)),
    ((0, 13), (13, 13)),
    ((20, 20), (7, 20)),
]


def summarize(
    k: int, n: int, *, source: str = "measured", scorer: int = 1, version: int = 1, queries: str = "abc"
) -> EvalSummary:
    return EvalSummary.model_validate(
        {
            "scorer_version": scorer,
            "model": "m",
            "title": "M",
            "arm": "fair",
            "seed": 0,
            "suite": "core20",
            "suite_version": version,
            "suite_fingerprint": queries,
            "dialect": "hermes",
            "source": source,
            "tool_or_direct": {"k": k, "n": n},
            "timing": Timing(
                load_seconds=1, seconds_per_query=1, tokens_per_second=1, peak_memory_gb=1, disk_gb=1
            ).model_dump(),
        }
    )


def test_z_is_the_quantile() -> None:
    assert pytest.approx(norm.ppf(0.975), abs=1e-15) == Z95


@pytest.mark.parametrize(("k", "n"), RATES)
def test_wilson_equals_scipy_and_statsmodels(k: int, n: int) -> None:
    ours = rate_interval(Rate(k=k, n=n))
    scipy_low, scipy_high = binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((scipy_low, scipy_high), abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("candidate", "reference"), list(product(INNER, INNER)))
def test_ratio_interval_equals_statsmodels(candidate: tuple[int, int], reference: tuple[int, int]) -> None:
    ours = ratio_interval(Count(*candidate), Count(*reference))
    theirs = confint_proportions_2indep(
        *candidate, *reference, compare="ratio", method="score", correction=True
    )
    assert (ours.low, ours.high) == pytest.approx(theirs, rel=1e-8)


def constrained_statistic(candidate: tuple[int, int], reference: tuple[int, int], ratio: float) -> float:
    """The score statistic by maximizing the likelihood numerically, without the closed form."""
    (k1, n1), (k0, n0) = candidate, reference

    def loss(p: float) -> float:
        return -float(binom.logpmf(k1, n1, ratio * p) + binom.logpmf(k0, n0, p))

    top = min(1.0, 1 / ratio)
    p0 = minimize_scalar(loss, bounds=(0, top), method="bounded", options={"xatol": 1e-13}).x
    p1 = ratio * p0
    variance = p1 * (1 - p1) / n1 + ratio**2 * p0 * (1 - p0) / n0
    return float((k1 / n1 - ratio * k0 / n0) ** 2 / variance * (n1 + n0 - 1) / (n1 + n0))


# statsmodels finds no root where a rate is 0 or 1 (7/20 to 20/20 gives it 0.675 to 0.675), so these
# cases are held against the likelihood itself.
@pytest.mark.parametrize(("candidate", "reference"), EDGES)
def test_ratio_interval_at_rates_of_0_and_1(candidate: tuple[int, int], reference: tuple[int, int]) -> None:
    ours = ratio_interval(Count(*candidate), Count(*reference))
    point = rate_ratio(Rate(k=candidate[0], n=candidate[1]), Rate(k=reference[0], n=reference[1]))
    assert point is not None
    high = brentq(
        lambda r: constrained_statistic(candidate, reference, r) - Z95**2, point + 1e-4, 50, xtol=1e-10
    )
    assert ours.high == pytest.approx(high, rel=1e-4)
    if candidate[0]:
        low = brentq(lambda r: constrained_statistic(candidate, reference, r) - Z95**2, 1e-3, point - 1e-4)
        assert ours.low == pytest.approx(low, rel=1e-4)
    else:
        assert ours.low == 0.0


def test_perfect_against_perfect_has_the_closed_form() -> None:
    # For n/n against n/n the statistic is n (1 - r) / r times (2n - 1) / 2n.
    n = 20
    z2 = Z95**2 * 2 * n / (2 * n - 1)
    assert ratio_interval(Count(n, n), Count(n, n)).low == pytest.approx(n / (n + z2), rel=1e-9)


@pytest.mark.parametrize(
    ("candidate", "reference", "low", "high"),
    [((0, 5), (0, 5), 0.0, math.inf), ((1, 1), (0, 1), None, math.inf), ((0, 1), (1, 1), 0.0, None)],
)
def test_limits_that_the_data_do_not_set(
    candidate: tuple[int, int], reference: tuple[int, int], low: float | None, high: float | None
) -> None:
    interval = ratio_interval(Count(*candidate), Count(*reference))
    assert interval.low == low if low is not None else 0 < interval.low < 1
    assert interval.high == high if high is not None else 1 < interval.high < math.inf


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_ratio_interval_holds_what_the_test_keeps(n1: int, n0: int, data: st.DataObject) -> None:
    candidate = Count(data.draw(st.integers(0, n1)), n1)
    reference = Count(data.draw(st.integers(1, n0)), n0)
    interval, point = ratio_interval(candidate, reference), candidate.k / n1 / (reference.k / n0)
    assert interval.low <= point <= interval.high
    for ratio in (interval.low, interval.high):
        if ratio > 0:
            assert score_statistic(candidate, reference, ratio) == pytest.approx(Z95**2, rel=1e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_an_empty_or_broken_count_is_an_error(k: int, n: int) -> None:
    with pytest.raises(StageError, match="is no rate"):
        ratio_interval(Count(k, n), Count(1, 2))


@pytest.mark.parametrize(
    ("ratio", "answer"),
    [
        (math.inf, "use small"),
        (1.0, "use small"),
        (0.9, "use small"),
        (math.nextafter(0.9, 0), "split"),
        (0.7, "split"),
        (math.nextafter(0.7, 0), "stay with large"),
        (0.0, "stay with large"),
    ],
)
def test_rule_at_its_limits(ratio: float, answer: str) -> None:
    assert apply_rule(ratio) == answer


@pytest.mark.parametrize("n", range(10, 401, 10))
def test_counts_that_make_exactly_a_limit_are_on_its_upper_side(n: int) -> None:
    for percent, answer in ((90, "use small"), (70, "split")):
        ratio = rate_ratio(Rate(k=n * percent // 100, n=n), Rate(k=n, n=n))
        assert ratio is not None
        assert apply_rule(ratio) == answer
    shared = rate_ratio(Rate(k=63 * n // 10, n=10 * n), Rate(k=9 * n, n=10 * n))
    assert shared is not None
    assert apply_rule(shared) == "split"


@pytest.mark.parametrize(
    ("k", "n", "answer"),
    [(200, 200, "use small"), (160, 200, "split"), (100, 200, "stay with large"), (7, 20, "stay with large")],
)
def test_a_whole_interval_in_one_band_is_an_answer(k: int, n: int, answer: str) -> None:
    verdict = reach_verdict("m", Match(summarize(k, n), summarize(n, n)), [], 0)
    assert (verdict.supported_answer, verdict.point_answer, verdict.cause) == (answer, answer, None)
    assert verdict.queries_needed is None


@pytest.mark.parametrize(
    ("k", "point"), [(20, "use small"), (18, "use small"), (17, "split"), (13, "stay with large")]
)
def test_twenty_queries_are_often_too_few(k: int, point: str) -> None:
    verdict = reach_verdict("m", Match(summarize(k, 20), summarize(20, 20)), [], 0)
    assert (verdict.supported_answer, verdict.cause) == ("inconclusive", "too few queries")
    assert verdict.point_answer == point
    assert verdict.ratio == k / 20


@pytest.mark.parametrize("k", [200, 100])
def test_flaws_outweigh_any_number(k: int) -> None:
    verdict = reach_verdict("m", Match(summarize(k, 200), summarize(200, 200)), ["no tools"], 0)
    assert (verdict.supported_answer, verdict.cause) == ("inconclusive", "flawed set-up")
    assert verdict.point_answer == apply_rule(k / 200)
    assert verdict.reasons[0] == "no tools"


def test_a_reference_that_is_never_right_gives_no_answer() -> None:
    verdict = reach_verdict("m", Match(summarize(5, 20), summarize(0, 20)), [], 0)
    assert (verdict.ratio, verdict.point_answer, verdict.ratio_high) == (None, None, None)
    assert (verdict.supported_answer, verdict.cause) == ("inconclusive", "no comparable reference")
    assert "no query right" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [((20, 20), (20, 20)), ((17, 20), (20, 20)), ((13, 20), (20, 20)), ((16, 20), (19, 20))],
)
def test_planned_queries_are_just_enough(candidate: tuple[int, int], reference: tuple[int, int]) -> None:
    rates = Rate(k=candidate[0], n=candidate[1]), Rate(k=reference[0], n=reference[1])
    needed, note = plan_queries(*rates)
    assert needed is not None
    assert "score interval" in note

    def bands(queries: int) -> set[str]:
        limits = ratio_interval(*(Count(rate.value * queries, queries) for rate in rates))
        return {apply_rule(limits.low), apply_rule(limits.high)}

    assert len(bands(needed)) == 1
    assert len(bands(needed - 1)) == 2


def test_planned_queries_for_perfect_models_have_the_closed_form() -> None:
    # (1 - 0.9) / 0.9 * (2n - 1) / 2 >= z^2
    needed, _ = plan_queries(Rate(k=20, n=20), Rate(k=20, n=20))
    assert needed == math.ceil(9 * Z95**2 + 0.5)


def test_no_number_of_queries_decides_on_a_limit() -> None:
    assert plan_queries(Rate(k=18, n=20), Rate(k=20, n=20))[0] is None
    needed, note = plan_queries(Rate(k=89_999, n=100_000), Rate(k=1, n=1))
    assert needed is None
    assert "more than 100000" in note


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (1, 0), (3, 9), (9, 3), (5, 5), (0, 130), (40, 81)]
)
def test_mcnemar_equals_statsmodels_and_scipy(first: int, second: int) -> None:
    ours = Pairing(first, second).p_value
    assert ours == pytest.approx(mcnemar(np.array([[50, first], [second, 20]]), exact=True).pvalue, rel=1e-9)
    if first + second:
        assert ours == pytest.approx(binomtest(first, first + second).pvalue, rel=1e-9)


def test_different_versions_are_refused() -> None:
    ours = summarize(9, 20)
    assert not refuse_comparison(ours, summarize(20, 20))
    assert "version 1 against 2" in refuse_comparison(ours, summarize(20, 20, version=2))
    for source in ("measured", "recorded"):
        other = refuse_comparison(ours, summarize(20, 20, queries="abd", source=source))
        assert other == "two suites are named core20: their queries or accepted calls differ"
    assert "scorer version 1 against 2" in refuse_comparison(ours, summarize(20, 20, scorer=2))
    assert "suite core20 against other" in refuse_comparison(ours, ours.model_copy(update={"suite": "other"}))
    assert not refuse_comparison(ours, summarize(20, 20, scorer=0, source="recorded"))


def test_the_comparable_suite_with_the_most_queries_decides() -> None:
    few, many = summarize(9, 20), summarize(190, 200).model_copy(update={"suite": "extended"})
    compared = Match(few, summarize(20, 20))
    assert choose_match([compared, Match(many, None, "no reference")]) is compared
    assert choose_match([compared, other := Match(many, many)]) is other
