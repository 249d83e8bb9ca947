"""What the report draws of both objectives, on runs written by hand."""

import numpy as np
import pytest
import xarray as xr
from shown import lines, titles
from synthetic import Grid, runs

from lab.objective import CTP, NTP
from lab.runs import Run
from lab.studies.ntp_ctp import STUDY, pictures, transfer
from lab.studies.ntp_ctp.claims import KNOWN, SCORES
from lab.studies.ntp_ctp.flatness import NORM

LENGTH = 9


def grid(**axes):
    return Grid(STUDY.usual, **({"ntp_weight": (CTP, NTP), "gamma": (0.5, 0.8), "weight_decay": (0.01,)} | axes))


def both(made, name, ctp, ntp, **how):
    return made.put(name, ctp, ntp_weight=CTP, **how).put(name, ntp, ntp_weight=NTP, **how)


def test_objectives_are_compared_within_cells():
    """Gamma moves both sharpness and accuracy; given gamma the objective alone decides."""
    made = grid(learning_rate=(1e-3,), seed=(0, 1, 2))
    rows = made.dataset["diverged_at"]
    objective, gamma = (
        made.dataset[axis].broadcast_like(rows).transpose(*rows.dims) for axis in ("ntp_weight", "gamma")
    )
    noise = rows.copy(data=np.random.default_rng(0).random(rows.shape))
    made.dataset["ood.accuracy"] = (10 * gamma + objective).expand_dims(step=[0, 100])
    made.dataset["train.loss"], made.dataset[NORM] = noise.expand_dims(step=[0, 100]), noise.expand_dims(snapshot=[0])
    for name, values in (("top", gamma), ("trace", noise), ("sam", noise)):
        made.dataset[f"minimum.{name}"] = values
    found = pictures.predictor_correlations(made.run())["value"].sel(coefficient="spearman")
    # two groups of six in twelve rows: ranks 3.5 and 9.5 against 2, 5, 8, 11 make sqrt(0.8) and sqrt(0.2)
    assert float(found.sel(measure="objective", control="knobs")) == pytest.approx(1)
    assert float(found.sel(measure="sharpness", control="none")) == pytest.approx(6 / np.sqrt(45))
    assert np.isnan(found.sel(measure="sharpness", control="knobs"))


def test_lines_are_means_and_standard_errors_of_the_rows_that_did_not_diverge():
    made = grid().put("minimum.line", np.array([[1, 2], [3, 4], [5, 6], [99, 99], [7, 8]])[:, None], time=None,
                      dims={"alpha": [0.1, 0.5]}, ntp_weight=NTP).diverge(5, seed=3)  # fmt: skip
    mean, error = pictures.lines_by_objective(made.run(), "minimum.line")["NTP, γ = 0.5"]
    np.testing.assert_allclose(mean, [4, 5])
    np.testing.assert_allclose(error, np.std([1, 3, 5, 7], ddof=1) / 2)
    one = Run(made.dataset.isel(seed=[0]), STUDY.usual)
    assert pictures.lines_by_objective(one, "minimum.line")["NTP, γ = 0.5"][1].isnull().all()


def test_flow_has_a_panel_an_objective_with_its_scores():
    made = grid(seed=(0,), learning_rate=(1e-3,))
    for name, *scores in zip(SCORES.values(), (0.1, 0.4), (0.5, 0.2), strict=True):
        both(made, name, *scores, time=None)
    pattern = np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None]
    rows = made.dataset["diverged_at"]
    made.dataset["flow.pattern"] = rows * 0 + xr.DataArray([pattern] * 2, dims=("layer", "query", "position"))
    made.dataset["flow.tokens"] = rows * 0 + xr.DataArray([50, 60, 4, 3, 70, 71, 72, 73, 74], dims="position")
    assert titles(pictures.flow(made.run()).figure) == [
        "CTP: reasoning circuit 0.10, symmetric circuit 0.40", "NTP: reasoning circuit 0.50, symmetric circuit 0.20"
    ]  # fmt: skip


def test_noises_that_the_grid_varies_have_a_picture_of_their_own():
    made = both(grid(sam_radius=(0.0, 0.1)), "ood.accuracy", 0.2, 0.4)
    one = both(grid(ntp_weight=(CTP, NTP)), "ood.accuracy", 0.2, 0.4)
    found = pictures.sections(runs(STUDY, a=made, b=one))
    assert [[one.name for one in section.pictures] for section in found] == [["a-sam-radius"], []]


def test_second_task_has_a_curve_an_objective_and_task():
    second = both(both(grid(), "train.accuracy", 0.1, 0.2), KNOWN, 0.3, 0.4)
    first = both(grid(), "train.accuracy", 0.5, 0.6)
    (section,) = transfer.sections(runs(STUDY, first=first, second=second))
    (picture,) = section.pictures
    assert picture.name == "second-transfer"
    assert {line.get_ydata()[-1] for line in lines(picture.figure.axes[0], "median")} == {0.1, 0.2, 0.3, 0.4}
