"""Both objectives side by side, on a run written by hand."""

import numpy as np
import pytest
from shown import keys
from synthetic import GARBAGE, Grid

from lab.objective import CTP, NTP
from lab.report import objectives
from lab.runs import MissingData


@pytest.fixture
def run():
    """Accuracies of CTP are 0.1, of NTP 0.9; one row of CTP diverged before the end."""
    made = Grid({"gamma": min}, ntp_weight=(CTP, 0.5, NTP), gamma=(0.5, 0.8))
    for objective, accuracy in ((CTP, 0.1), (NTP, 0.9)):
        made.put("test.accuracy", accuracy, ntp_weight=objective)
    return made.diverge(50, ntp_weight=CTP, seed=2).diverge(50, ntp_weight=0.5, seed=3).run()


def test_gap_is_ntp_minus_ctp_at_the_usual_gamma_seed_by_seed(run):
    ctp, ntp = objectives.by_objective(run.final, "test.accuracy")
    assert ctp.dims == ntp.dims == ("seed",) and float(ctp.gamma) == 0.5
    gap = objectives.objective_gap(run.final, "test.accuracy")
    np.testing.assert_allclose(gap, [0.8, 0.8, np.nan, 0.8, 0.8])
    assert float(objectives.objective_gap(run.final, "test.accuracy", gamma=max).gamma) == 0.8


def test_an_objective_that_was_not_trained_is_named(run):
    one = Grid(ntp_weight=(NTP,)).put("test.accuracy", 0.9, ntp_weight=NTP).run()
    with pytest.raises(MissingData, match="ntp weight 0"):
        objectives.by_objective(one.final, "test.accuracy")


def test_curves_stand_side_by_side_and_a_pair_diverged_where_one_of_it_did(run):
    beside = objectives.side_by_side(run, {"test.accuracy": "held out"})
    assert "ntp_weight" not in beside.axes and beside.usual == run.usual
    assert set(beside.dataset) == {"diverged_at", "CTP, held out", "NTP, held out"}
    lost = [np.nan if seed == 2 else 0 for seed in range(5)]
    for objective, accuracy in (("CTP", 0.1), ("NTP", 0.9)):
        values = beside.over_time(f"{objective}, held out").sel(gamma=0.5)
        np.testing.assert_array_equal(values.sel(step=0), [GARBAGE] * 5)
        np.testing.assert_array_equal(values.sel(step=100), np.add(lost, accuracy))


def test_every_objective_has_its_curve(run):
    figure = objectives.training_curves(run, {"test.accuracy": "held out"}, "Title")
    assert keys(figure) == ["CTP, held out", "NTP, held out", "diverged, left out"]
