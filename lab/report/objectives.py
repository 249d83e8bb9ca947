"""Next-token prediction (NTP) beside answer-only training (CTP): numbers and curves by the axis `ntp_weight`."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lab.objective import CTP, NTP
from lab.report import figures
from lab.runs import Run

OBJECTIVES = {"CTP": CTP, "NTP": NTP}


def by_objective(select: Callable, name: str, keep=("seed",), **at) -> tuple[xr.DataArray, xr.DataArray]:
    """A variable of rows that CTP trained, and of rows that NTP trained.

    Args:
      select: `final` or `over_time` of a `Run`.
      keep, at: of `Run.rows`.

    Raises:
      MissingData: an objective was not trained, or as `select`.
    """
    ctp, ntp = (select(name, keep, ntp_weight=objective, **at) for objective in OBJECTIVES.values())
    return ctp, ntp


def objective_gap(select: Callable, name: str, **at) -> xr.DataArray:
    """NTP's value minus CTP's, seed by seed; arguments and errors as `by_objective`."""
    ctp, ntp = by_objective(select, name, **at)
    return ntp - ctp


def training_curves(run: Run, metrics: Mapping[str, str], title: str) -> Figure:
    """`figures.training_curves` with a curve `<objective>, <label>` for every metric and objective."""
    beside = side_by_side(run, metrics)
    labels = [f"{objective}, {label}" for objective in OBJECTIVES for label in metrics.values()]
    return figures.training_curves(beside, {label: label for label in labels}, title=title)


def side_by_side(run: Run, metrics: Mapping[str, str]) -> Run:
    """A run with variables `<objective>, <label>` in place of the axis of objectives.

    A pair diverged where one of it did.

    Args:
      metrics: variable -> label.
    """
    diverged_at = np.maximum(*by_objective(run.over_time, "diverged_at", run.axes))
    curves = {}
    for name, label in metrics.items():
        for objective, values in zip(OBJECTIVES, by_objective(run.over_time, name, run.axes), strict=True):
            curves[f"{objective}, {label}"] = values.drop_vars("ntp_weight")
    return dataclasses.replace(run, dataset=xr.Dataset({"diverged_at": diverged_at} | curves, attrs=run.dataset.attrs))
