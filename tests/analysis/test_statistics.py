import itertools

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from lab.analysis import embedding, statistics

NAN, INF = np.nan, np.inf
N_TRIALS = 4000
DRAWS = {
    "skewed": lambda rng, shape: (np.exp(2 * rng.standard_normal(shape)), 1.0),
    "heavy-tailed": lambda rng, shape: (rng.standard_cauchy(shape), 0.0),
    "two-peaked": lambda rng, shape: (rng.choice([-1.0, 1.0], shape) * rng.uniform(0.9, 1.1, shape), 0.0),
    "tied": lambda rng, shape: (rng.integers(0, 3, shape).astype(float), 1.0),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("n", range(5, 13))
def test_interval_covers_the_median_as_often_as_it_says_whatever_the_distribution(draw, n):
    values_TxN, median = draw(np.random.default_rng(n), (N_TRIALS, n))
    low, high, promised = statistics.median_interval(np.arange(n))  # ends by their places in the order
    low_T, high_T = np.sort(values_TxN, axis=1)[:, [int(low), int(high)]].T
    for values_N, *ends in zip(values_TxN[:100], low_T, high_T, strict=False):
        assert statistics.median_interval(values_N) == (*ends, promised)
    covered = np.mean((low_T <= median) & (median <= high_T))
    assert promised >= 0.9
    # four binomial standard errors; exact for continuous laws, at least so where values are tied
    allowed = 4 * np.sqrt(promised * (1 - promised) / N_TRIALS)
    assert covered >= promised - allowed
    assert covered <= promised + allowed or draw is DRAWS["tied"]


@pytest.mark.parametrize(("n", "k", "coverage"), [(1, 1, 0), (3, 1, 0.75), (5, 1, 0.9375), (7, 1, 0.984375),
                                                  (8, 2, 0.9296875), (11, 3, 0.9345703125)])  # fmt: skip
def test_interval_is_the_narrowest_with_enough_coverage(n, k, coverage):
    """By counting: 2^n equally likely ways for n values to lie below or above the median."""
    interval = statistics.median_interval(np.arange(n)[::-1])
    assert (interval.low, interval.high) == (k - 1, n - k)
    sides = np.array([*itertools.product([0, 1], repeat=n)]).sum(axis=1)
    assert interval.coverage == coverage == np.mean((sides >= k) & (sides <= n - k)) if n > 1 else coverage == 0
    narrower = np.mean((sides >= k + 1) & (sides <= n - k - 1))
    assert narrower < 0.9


@pytest.mark.parametrize("values", [[], [1.0, NAN]])
def test_interval_refuses_what_has_no_order(values):
    with pytest.raises(ValueError, match="needs at least one value and no NaN"):
        statistics.median_interval(np.array(values))


@pytest.mark.parametrize(("values", "expected"), [([3, 1, 2], 2), ([4, 1, 2, 3], 2.5), ([INF, 1, 2, INF], 2),
                                                  ([-INF, -INF, 5, INF], -INF)])  # fmt: skip
def test_median(values, expected):
    assert statistics.median(np.array(values)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.4, 0.6, 1.0], 0.25),
        ([0.6, 0.4, 0.6, 1.0], -INF),  # there at the first place
        ([0.0, 0.4, 0.4, 0.4], INF),  # never
        ([NAN, NAN, NAN, NAN], NAN),
        ([0.0, NAN, 1.0, 1.0], 0.2),  # a missing point is passed over
        ([-INF, 1.0, 1.0, 1.0], 0.2),
        ([0.0, INF, 1.0, 1.0], 0.1),
        ([-INF, INF, 1.0, 1.0], 0.15),
        ([0.0, 0.5, 0.5, 0.5], 0.2),  # the level itself counts
    ],
)
def test_crossing_has_one_rule_for_what_is_censored(values, expected):
    gamma = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(statistics.first_crossing(np.array(values), gamma, 0.5), expected, rtol=1e-12)
    array = xr.DataArray([values[::-1]] * 2, {"gamma": gamma[::-1]}, ("seed", "gamma"))
    np.testing.assert_allclose(statistics.crossing(array), [expected] * 2, rtol=1e-12)


@pytest.mark.parametrize(("spearman", "eps"), [(statistics.spearman, 2.0**-52), (embedding.spearman, 2.0**-23)])
def test_rank_correlation_is_that_of_scipy_on_the_host_and_on_the_device(spearman, eps):
    rng = np.random.default_rng(0)
    for levels in (3, 10, 10_000):  # many ties, some, none
        a, b = rng.integers(0, levels, (2, 50)).astype(np.float32)
        # sums over whole numbers below 2^24 are exact; product, root and quotient round once each
        assert float(spearman(a, b)) == pytest.approx(stats.spearmanr(a, b).statistic, abs=4 * eps)
    a = rng.standard_normal(30).astype(np.float32)
    assert float(spearman(a, np.exp(a))) == pytest.approx(1, abs=2 * eps)  # order only
    assert float(spearman(a, -(a**3))) == pytest.approx(-1, abs=2 * eps)
    a = np.arange(5, dtype=np.float32)
    assert spearman(a, np.ones_like(a)) == 0 and np.isnan(spearman(a, np.where(a == 2, np.float32(NAN), a)))
    assert spearman(a, np.array([-INF, 0, 1, 2, INF], np.float32)) == 1


def test_trend_is_taken_along_the_axis():
    values = xr.DataArray([[1.0, 2, 3], [3, 2, 1], [1, NAN, 2]], {"gamma": [0.3, 0.5, 0.7]}, ("seed", "gamma"))
    np.testing.assert_array_equal(statistics.rank_trend(values), [1, -1, NAN])


def test_slope_is_that_of_numpys_line_and_unknown_where_a_value_is_missing():
    along = xr.DataArray([0.5, 1.0, 3.0, 7.0], dims="x")
    values = xr.DataArray([[1.0, 2.0, 2.5, 9.0], [1.0, np.nan, 2.0, 3.0]], dims=("seed", "x"))
    found = statistics.slope(values, along, "x")
    # four terms of single digits, and numpy's singular values beside them
    assert found[0] == pytest.approx(np.polyfit(along, values[0], 1)[0], rel=1e-13) and np.isnan(found[1])


def test_logistic_fit_finds_the_curve_that_made_the_values():
    gamma, rng = np.linspace(0.2, 0.8, 9), np.random.default_rng(0)
    curve = 1 / (1 + np.exp(-(gamma - 0.47) / 0.03))
    exact = statistics.logistic_crossing(xr.DataArray([curve] * 3, {"gamma": gamma}, ("seed", "gamma")))
    assert exact.midpoint == pytest.approx(0.47, abs=1e-6) and exact.width == pytest.approx(0.03, abs=1e-6)
    assert exact.low == pytest.approx(exact.high)
    shifted = 1 / (1 + np.exp(-(gamma - 0.47 - 0.05 * rng.standard_normal((8, 1))) / 0.03))
    fit = statistics.logistic_crossing(xr.DataArray(shifted, {"gamma": gamma}, ("seed", "gamma")))
    # the mean of eight shifts of 0.05 has standard error 0.018; the middle 90 % are +- 1.6 of it
    assert fit.low < fit.midpoint < fit.high and 0.01 < fit.high - fit.low < 0.12


def test_logistic_fit_refuses_too_few_points_and_other_axes():
    values = xr.DataArray([[0.1, NAN, 0.9]], {"gamma": [0.3, 0.5, 0.7]}, ("seed", "gamma"))
    with pytest.raises(ValueError, match="needs three"):
        statistics.logistic_crossing(values)
    with pytest.raises(ValueError, match="is of gamma and seed"):
        statistics.logistic_crossing(values[0])


def test_resamples_count_every_draw_and_start_with_the_sample_itself():
    counts_BxN = statistics.resamples(7, 50, 0)
    np.testing.assert_array_equal(counts_BxN[0], np.ones(7))
    np.testing.assert_array_equal(counts_BxN.sum(axis=1), 7)
    assert counts_BxN.shape == (51, 7) and len({*map(tuple, counts_BxN)}) > 40


def test_first_where_and_value_at_are_of_every_curve():
    values = xr.DataArray([[1.0, 5.0, 2.0, 7.0], [0.0, 0.0, 0.0, 0.0]], {"time": [0, 10, 30, 40]}, ("seed", "time"))
    first = statistics.first_where(values > 4, "time")
    np.testing.assert_array_equal(first, [10, np.nan])
    np.testing.assert_array_equal(statistics.value_at(values, first, "time"), [5, np.nan])
    np.testing.assert_array_equal(statistics.value_at(values, xr.full_like(first, 20), "time"), [np.nan, np.nan])


def test_first_reached_is_a_place_of_the_grid_and_unknown_where_the_end_is_missing():
    curves = [[0, 0.4, 0.9, 0.2], [0.5, 0, 0, 0], [0, 0, 0, 0.4999], [0, 0.6, 0.6, NAN], [NAN, 0.5, 0.5, 0.5]]
    values = xr.DataArray(curves, {"step": [0, 10, 20, 30]}, ("seed", "step"))
    expected = [20, 0, INF, NAN, 10]
    np.testing.assert_array_equal(statistics.first_reached(values, 0.5), expected)
    np.testing.assert_array_equal(statistics.first_reached(values.isel(step=[3, 0, 2, 1]), 0.5), expected)
