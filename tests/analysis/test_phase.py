import itertools

import numpy as np
import pytest
import xarray as xr

from lab.analysis.phase import NO_PHASE, PHASES, bootstrap_median, classify, crossing, first_crossing, reduce, vote

NAN, INF = np.nan, np.inf


def cells(values, **coords):
    """Dims in the order of the keywords, `seed` last."""
    values = np.asarray(values, float)
    return xr.DataArray(values, {**coords, "seed": np.arange(values.shape[-1])}, (*coords, "seed"))


def test_interval_is_that_of_all_equally_likely_resamples():
    values_S = np.array([0.3, 9.0, 1.0, 4.0])
    every_median = np.sort([np.median(resample) for resample in itertools.product(values_S, repeat=4)])
    # 256 resamples, each with probability 1/256: quantiles of their distribution.
    expected = [every_median[int(np.ceil(share * 256)) - 1] for share in (0.15, 0.85)]
    assert every_median.searchsorted(expected[0], "right") / 256 > 0.16  # the steps of the distribution are
    assert every_median.searchsorted(expected[1]) / 256 < 0.84  # four standard errors (0.0025) from the level
    result = bootstrap_median(values_S, 20_000, 0.7, 0)
    assert (result.low, result.high) == tuple(expected)
    assert (result.median, result.n) == (2.5, 4)


def test_interval_covers_the_true_median_as_often_as_it_says():
    # 15 log-normal values with median 1. The percentile interval ends on order statistics, whose coverage is
    # binomial: 0.88 and 0.965 for the two pairs next to 0.9; +- 0.046 is two standard errors of 200 trials.
    rng = np.random.default_rng(0)
    result = reduce(cells(np.exp(rng.standard_normal((200, 15))), trial=np.arange(200)), n_bootstrap=300)
    covered = float(((result["low"] <= 1) & (result["high"] >= 1)).mean())
    assert 0.88 - 0.046 < covered < 0.98


def test_interval_of_three_seeds_covers_three_times_in_four_whatever_is_asked_for():
    # All three values on one side of the median: probability 1/4; the standard error of 400 trials is 0.022.
    values = np.random.default_rng(1).standard_normal((400, 3))
    result = reduce(cells(values, trial=np.arange(400)), n_bootstrap=200, level=0.99)
    covered = float(((result["low"] <= 0) & (result["high"] >= 0)).mean())
    assert covered == pytest.approx(0.75, abs=3 * 0.022)
    np.testing.assert_array_equal(result["low"], values.min(axis=1))
    np.testing.assert_array_equal(result["high"], values.max(axis=1))


def test_diverged_rows_leave_the_median_and_are_counted():
    values = cells([[1, NAN, 3, 8], [NAN, NAN, 5, NAN], [NAN] * 4], gamma=[0.3, 0.5, 0.7])
    result = reduce(values)
    np.testing.assert_array_equal(result["median"], [3, 5, NAN])
    np.testing.assert_array_equal(result["n"], [3, 1, 0])
    np.testing.assert_array_equal(result["n_lost"], [1, 3, 4])
    np.testing.assert_array_equal(result["low"], [1, NAN, NAN])
    np.testing.assert_array_equal(result["high"], [8, NAN, NAN])


@pytest.mark.parametrize(
    ("values", "median"),
    [([INF, 1, -INF], 1), ([-INF, INF], -INF), ([2, INF], 2), ([1, 2, 4, INF], 3), ([INF, INF], INF)],
)
def test_median_of_censored_values_is_a_place_between_the_middle_two_or_the_lower(values, median):
    assert bootstrap_median(np.array(values, float), 10, 0.9, 0).median == median


def test_same_seed_same_interval_and_cells_resampled_alike():
    values_S = np.random.default_rng(2).standard_normal(9)
    one = reduce(cells([values_S, values_S + 100], gamma=[0.3, 0.5]), seed=3)
    xr.testing.assert_identical(one, reduce(cells([values_S, values_S + 100], gamma=[0.3, 0.5]), seed=3))
    # x -> x + 100 rounds to 2^-47 = eps(128) / 2.
    np.testing.assert_allclose(one["low"][1] - one["low"][0], 100, rtol=0, atol=2.0**-46)


def test_refused_dimensions_and_levels_are_named():
    values = cells([[1, 2]], gamma=[0.3])
    with pytest.raises(ValueError, match=r"'row'; there are gamma, seed"):
        reduce(values, over="row")
    with pytest.raises(ValueError, match="level 90"):
        reduce(values, level=90)
    with pytest.raises(ValueError, match="'weight_decay'"):
        crossing(values, axis="weight_decay")


def test_line_crosses_where_its_equation_says():
    # Accuracy 2 (gamma - c) crosses 1/2 at c + 1/4, on any grid, in any order.
    gamma, c = np.array([0.8, 0.3, 0.45, 0.5]), np.array([0.1, 0.2, 0.25])
    result = crossing(cells(2 * (gamma[:, None] - c), gamma=gamma))
    eps = 2.0**-52  # five roundings of numbers below 1
    assert float(result["median"]) == pytest.approx(0.45, abs=5 * eps)
    assert float(result["low"]) == pytest.approx(0.35, abs=5 * eps)  # of three seeds: the lowest and the highest
    assert float(result["high"]) == pytest.approx(0.5, abs=5 * eps)
    assert (result["already"], result["never"], result["falls_back"], result["n"]) == (0, 0, 0, 3)


def test_crossing_beyond_the_grid_is_censored_and_counted():
    gamma = [0.3, 0.5, 0.7]
    below, above, rising, dip = [0, 0.1, 0.2], [0.9, 1, 1], [0, 1, 1], [0.6, 0.1, 0.9]
    curves = np.array([[above, above, rising, below], [below, below, below, rising], [dip, [NAN] * 3, rising, rising]])
    result = crossing(cells(np.swapaxes(curves, 1, 2), weight_decay=[0, 0.1, 1], gamma=gamma), confidence=0.8)
    np.testing.assert_array_equal(result["median"], [-INF, INF, 0.4])  # -inf and 0.4 are the middle two: the lower
    np.testing.assert_allclose(result["already"], [2 / 4, 0, 1 / 3])
    np.testing.assert_allclose(result["never"], [1 / 4, 3 / 4, 0])
    np.testing.assert_allclose(result["falls_back"], [0, 0, 1 / 3])
    np.testing.assert_array_equal(result["n_lost"], [0, 0, 1])
    # A resampled median moves to the rarer side with probability 0.26 (two of four at 1/4, two of three at 1/3),
    # which is more than the 0.1 left out; to +inf in the first with 0.05 (three of four), which is less.
    np.testing.assert_array_equal(result["low"], [-INF, 0.4, -INF])
    np.testing.assert_array_equal(result["high"], [0.4, INF, 0.4])


def test_crossing_passes_over_diverged_points():
    place_G = np.array([0.0, 1.0, 2.0, 3.0])
    assert first_crossing(np.array([0.0, NAN, NAN, 1.0]), place_G, 0.25) == (0.75, False)
    assert first_crossing(np.array([NAN, 0.5, 0.0, 1.0]), place_G, 0.5) == (-INF, True)


def test_published_phase_grid_comes_back_from_accuracies_in_its_regimes():
    # arXiv 2501.08537, phase grid; accuracies of its decay-0.01 slice, by phase.
    accuracies = {"1": (0.89, 0.08, 0.2), "2 w/o": (0.99, 0.04, 0.1), "2 w": (0.995, 0.09, 0.95), "3": (1.0, 0.96, 0.1)}
    published = [["1", "1", "1", "2 w"], *2 * [["2 w/o", "2 w/o", "2 w/o", "3"]], ["2 w", "2 w", "2 w", "3"], ["3"] * 4]
    coords = {"gamma": [0.4, 0.45, 0.5, 0.55, 0.6], "weight_decay": [0, 0.01, 0.1, 1.0]}
    arrays = np.moveaxis(np.array([[accuracies[name] for name in row] for row in published]), 2, 0)
    phase = classify(*(xr.DataArray(array, coords, list(coords)) for array in arrays))
    assert [[phase.attrs["names"][index] for index in row] for row in phase.values] == published
    assert phase.attrs["names"] == PHASES and phase.dtype == np.int8


def test_rows_outside_the_four_phases_have_none():
    id_accuracy = xr.DataArray([0.2, NAN, 1.0, 1.0, 0.2, 1.0, 0.9], dims="row")
    ood_accuracy = xr.DataArray([0.9, 0.0, NAN, 0.0, 0.0, 0.9, 0.0], dims="row")
    commutativity = xr.DataArray([0.0, 0.0, 0.0, NAN, NAN, NAN, 0.5], dims="row")
    expected = [NO_PHASE] * 4 + [PHASES.index("1"), PHASES.index("3"), PHASES.index("2 w")]
    np.testing.assert_array_equal(classify(id_accuracy, ood_accuracy, commutativity), expected)
    other = ood_accuracy.assign_coords(row=np.arange(7) + 1)
    with pytest.raises(ValueError, match="exact"):
        classify(id_accuracy.assign_coords(row=np.arange(7)), other, commutativity)


def test_vote_elects_the_most_frequent_phase_and_leaves_ties_open():
    phases = [[0, 0, 2, 0], [3, 3, 2, 2], [1, -1, 1, 0], [-1, -1, -1, -1]]
    phase = xr.DataArray(np.array(phases, np.int8), dims=("gamma", "seed"))
    result = vote(phase)
    np.testing.assert_array_equal(result["phase"], [0, NO_PHASE, 1, NO_PHASE])
    np.testing.assert_allclose(result["agreement"], [3 / 4, 2 / 4, 2 / 3, NAN])
    np.testing.assert_array_equal(result["n"], [4, 4, 3, 0])
    np.testing.assert_array_equal(result["n_lost"], [0, 0, 1, 4])
