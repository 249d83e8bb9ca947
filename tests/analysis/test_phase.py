import numpy as np
import pytest
import xarray as xr

from lab.analysis.phase import NO_PHASE, PHASES, SCORES, both, classify, published_scores, typical, vote

NAN, INF = np.nan, np.inf


def cells(values, **coords):
    """Dims in the order of the keywords, `seed` last."""
    values = np.asarray(values, float)
    return xr.DataArray(values, {**coords, "seed": np.arange(values.shape[-1])}, (*coords, "seed"))


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


def test_typical_phase_is_that_of_the_medians_and_says_how_many_seeds_have_it():
    """Gammas: memory but for one seed; a tie of seeds that the medians decide; three rows diverged; all did."""
    seen = cells([[1, 1, 1, 0.2], [1, 1, 1, 0.95], [NAN, NAN, NAN, 1], [NAN] * 4], gamma=[1, 2, 3, 4])
    unseen = cells([[0, 0, 0.1, 0], [0.9, 0.4, 0.3, 0.8], [NAN, NAN, NAN, 0.9], [NAN] * 4], gamma=[1, 2, 3, 4])
    alike = cells([[0.1, 0.2, 0.1, 0.9], [0, 0, 0.9, 0], [NAN, NAN, NAN, 1], [NAN] * 4], gamma=[1, 2, 3, 4])
    result = typical(seen, unseen, alike)
    expected = [PHASES.index("2 w/o"), PHASES.index("3"), PHASES.index("3"), NO_PHASE]
    np.testing.assert_array_equal(result["phase"], expected)
    np.testing.assert_allclose(result["agreement"], [3 / 4, 2 / 4, 1, NAN])
    np.testing.assert_array_equal(result["n"], [4, 4, 1, 0])
    np.testing.assert_array_equal(result["n_lost"], [0, 0, 3, 4])
    shuffled = typical(*(values.isel(seed=[2, 0, 3, 1]) for values in (seen, unseen, alike)))
    np.testing.assert_array_equal(shuffled["phase"], result["phase"])
    with pytest.raises(ValueError, match="no dimension 'seed'; there are gamma"):
        typical(*(values.isel(seed=0) for values in (seen, unseen, alike)))


def test_published_scores_are_the_best_accuracies_and_the_last_commutativity():
    def ask(when):
        return lambda name, keep, **at: (when, name, keep, at)

    seen, unseen, alike = published_scores(ask("best"), ask("last"), "keep", weight_decay=1.0)
    at = {"weight_decay": 1.0}
    assert seen == ("best", SCORES[0], "keep", at) and unseen == ("best", SCORES[1], "keep", at)
    assert alike == ("last", SCORES[2], "keep", at)


def test_both_evaluations_are_given_as_means_over_the_seeds_that_are_there():
    best, last = xr.DataArray([0.5, 1.0, np.nan], dims="seed"), xr.DataArray([0.25, 0.5, 0.0], dims="seed")
    assert both(best, last) == "mean over seeds 0.75 (best evaluation), 0.25 (last)"
