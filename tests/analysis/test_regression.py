"""Least squares against numpy's, closed forms of orthogonal vectors, and how often intervals hold the truth."""

import numpy as np
import pytest

from lab.analysis.regression import correlations, ols

ROUNDING = 1e-10  # float64: sums of a hundred terms, inverses of matrices with condition numbers below 1000


def sample(n=60, n_groups=6, seed=0):
    """A target, two predictors of other units that correlate, and the groups of rows."""
    rng = np.random.default_rng(seed)
    first = 1e3 + 50 * rng.standard_normal(n)
    second = 0.01 * first + 0.3 * rng.standard_normal(n)
    return 3 - 0.02 * first + second + rng.standard_normal(n), {"a": first, "b": second}, np.arange(n) % n_groups


def standardized(column):
    return (column - column.mean()) / column.std()


def test_coefficients_are_numpys_of_standardized_columns():
    y, predictors, group = sample()
    x = np.stack([standardized(column) for column in predictors.values()], axis=1)
    expected, (residual,), _, _ = np.linalg.lstsq(x, standardized(y), rcond=None)
    found = ols(y, predictors, group, n_bootstrap=50)
    np.testing.assert_allclose(found["coefficient"], expected, rtol=0, atol=ROUNDING)
    assert float(found["r2"]) == pytest.approx(1 - residual / len(y), abs=ROUNDING)
    assert found["predictor"].values.tolist() == ["a", "b"] and int(found["n_rows"]) == 60


@pytest.mark.parametrize("rho", [0.0, 0.6, -0.99])
def test_shares_and_inflation_are_the_closed_forms_of_two_correlated_predictors(rho):
    rng = np.random.default_rng(1)
    u, v, w = np.linalg.qr(np.column_stack([np.ones(20), rng.standard_normal((20, 3))]))[0][:, 1:].T  # and centred
    other = np.sqrt(1 - rho**2)
    a, b, total = 0.7, 0.4, 0.7**2 + 0.4**2 + 0.5**2
    found = ols(a * u + b * v + 0.5 * w, {"x": 3 * u, "z": rho * u + other * v}, np.arange(20), n_bootstrap=10)
    alone = np.array([a**2, (rho * a + other * b) ** 2]) / total
    assert float(found["r2"]) == pytest.approx((a**2 + b**2) / total, abs=ROUNDING)
    np.testing.assert_allclose(found["inflation"], 1 / (1 - rho**2), rtol=ROUNDING)
    np.testing.assert_allclose(found["alone"], alone, atol=ROUNDING)
    np.testing.assert_allclose(found["added"], (a**2 + b**2) / total - alone[::-1], atol=ROUNDING)
    expected = np.array([a - b * rho / other, b / other]) / np.sqrt(total)
    np.testing.assert_allclose(found["coefficient"], expected, atol=ROUNDING)


def test_correlations_of_a_resample_are_those_of_the_repeated_rows():
    y, predictors, group = sample(n=24)
    table = np.stack([standardized(column) for column in (*predictors.values(), y)], axis=1)
    counts = np.array([[1, 1, 1, 1, 1, 1], [0, 3, 1, 0, 0, 2]])
    found = correlations(table, group, counts)
    for one, count in zip(found, counts, strict=True):
        np.testing.assert_allclose(one, np.corrcoef(np.repeat(table, count[group], axis=0).T), atol=ROUNDING)
    table[group == 2, 1] = 5.0
    (only,) = correlations(table, group, np.array([[0, 0, 6, 0, 0, 0]]))
    assert np.isnan(only[1]).all() and np.isfinite(only[0, 2])


def test_intervals_are_quantiles_over_whole_groups():
    y, predictors, group = sample(n_groups=3)
    found = ols(y, predictors, group, n_bootstrap=400, level=0.8, seed=5)
    fits = []
    for drawn in np.random.default_rng(5).integers(3, size=(400, 3)):
        rows = np.concatenate([np.flatnonzero(group == g) for g in drawn])
        fits.append(ols(y[rows], {name: x[rows] for name, x in predictors.items()}, rows, 2)["coefficient"].values)
    np.testing.assert_allclose([found["low"], found["high"]], np.quantile(fits, [0.1, 0.9], axis=0), atol=ROUNDING)


def test_interval_covers_the_true_coefficient_although_rows_of_a_group_stray_together():
    # x = s + e, y = x / 2 + t + f, s and t shared by the 6 rows of a group, all of variance 1: var x = 2,
    # var y = 2 / 4 + 2, so the standardized coefficient is (1 / 2) (2 / 2.5)^(1/2).
    expected, rng, group = 0.5 * np.sqrt(2 / 2.5), np.random.default_rng(0), np.repeat(np.arange(30), 6)
    covered, narrow = [], []
    for _ in range(200):
        shared, own = rng.standard_normal((2, 30)), rng.standard_normal((3, 180))
        x = shared[0, group] + own[0]
        y = x / 2 + shared[1, group] + own[1]
        for found, within in ((group, covered), (np.arange(180), narrow)):
            one = ols(y, {"x": x, "noise": own[2]}, found, n_bootstrap=200).sel(predictor="x")
            within.append(float(one["low"]) <= expected <= float(one["high"]))
    # Nominal 0.9, less a few percent for 30 groups; the standard error of 200 tries is 0.02. Slope's errors of a group
    # correlate by 1/2 (of t) times 1/2 (of s): rows taken for independent give intervals (1 + 5 / 4)^(1/2) = 1.5 times
    # too narrow, which hold 0.73.
    assert 0.82 < np.mean(covered) < 0.97
    assert np.mean(narrow) < 0.8


def test_rows_that_are_not_finite_are_left_out_and_counted():
    y, predictors, group = sample()
    expected = ols(y[4:], {name: x[4:] for name, x in predictors.items()}, group[4:])
    y[0], predictors["a"][1], predictors["b"][2], y[3] = np.nan, np.inf, -np.inf, np.nan
    found = ols(y, predictors, np.where(np.arange(60) == 0, np.nan, group))
    assert (int(found["n_rows"]), int(found["n_missing"]), int(expected["n_missing"])) == (56, 4, 0)
    np.testing.assert_array_equal(found["coefficient"], expected["coefficient"])
    np.testing.assert_array_equal(found["low"], expected["low"])


def test_one_group_has_no_interval():
    y, predictors, _ = sample()
    found = ols(y, predictors, np.zeros(60))
    assert np.isnan(found["low"]).all() and np.isnan(found["high"]).all() and np.isfinite(found["coefficient"]).all()


def test_resamples_in_which_a_predictor_does_not_vary_are_left_out():
    y, predictors, group = sample(n_groups=2)
    predictors["b"] = np.where(group == 0, 1.0, predictors["b"])
    found = ols(y, predictors, group)
    assert np.isfinite(found["low"]).all() and (found["low"] <= found["high"]).all()


def test_impossible_regressions_are_refused_by_name():
    y, predictors, group = sample()
    with pytest.raises(ValueError, match="3 rows with finite numbers: 2 predictors need at least 4"):
        ols(y[:3], {name: x[:3] for name, x in predictors.items()}, group[:3])
    with pytest.raises(ValueError, match="0 rows"):
        ols(y * np.nan, predictors, group)
    with pytest.raises(ValueError, match="b is 2 in all 60 rows"):
        ols(y, predictors | {"b": np.full(60, 2.0)}, group)
    with pytest.raises(ValueError, match="the target is 0 in all 60 rows"):
        ols(np.zeros(60), predictors, group)
    with pytest.raises(ValueError, match="predictors a, b, c are linearly dependent"):
        ols(y, predictors | {"c": predictors["a"] - 2 * predictors["b"]}, group)
    with pytest.raises(ValueError, match="confidence level 90"):
        ols(y, predictors, group, level=90)
