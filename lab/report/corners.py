"""Two corners of a grid compared, in and out of distribution: numbers for claims, and pictures.

One corner has the smallest initial weights with the largest decay, the other the largest with the smallest. `splits`
are, by task family, the split that is like training and the one that is not; runs of other families do not count.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from lab.report import figures
from lab.report.page import Picture
from lab.runs import MissingData, Run, Runs, words

SMALL, LARGE = "small weights, large decay", "large weights, small decay"
CORNERS = {SMALL: {"gamma": max, "weight_decay": max}, LARGE: {"gamma": min, "weight_decay": min}}
SIZES = ("train_items", "seed")

Splits = Mapping[str, tuple[str, str]]


def task_family(run: Run) -> str:
    return run.config["task"]["family"]


def at_corner(run: Run, name: str, corner: str, keep: Sequence[str] = SIZES) -> xr.DataArray:
    """A variable's last value at one of `CORNERS`, dims `keep` before all others.

    Raises:
      MissingData: it was not measured, or there is one gamma or decay only.
    """
    for axis in ("gamma", "weight_decay"):
        if len(run.values_of(axis)) < 2:
            raise MissingData(f"a second {words(axis)}")
    return run.final(name, keep, **CORNERS[corner])


def least_lead(runs: Runs, splits: Splits) -> tuple[xr.DataArray, str]:
    """By seed: how far small weights with large decay lead out of distribution, at the worst data size; and a note."""
    leads, notes = [], []
    for name, run in _of_families(runs, splits).items():
        small, large = (at_corner(run, f"{splits[task_family(run)][1]}.accuracy", corner) for corner in CORNERS)
        leads.append(small - large)
        medians = zip(*(np.atleast_1d(values.median("seed")) for values in (small, large)), strict=True)
        sizes = run.values_of("train_items") if "train_items" in run.axes else [None]
        labels = [name if size is None else f"{name} of {size:g} items" for size in sizes]
        notes += [f"{label}: {a:.2f} against {b:.2f}" for label, (a, b) in zip(labels, medians, strict=True)]
    return _least(leads), f"Medians: {'; '.join(notes)}."


def least_fit(runs: Runs, splits: Splits) -> tuple[xr.DataArray, str]:
    """By seed: the lowest accuracy of both corners in distribution, at any data size; and a note."""
    chosen = _of_families(runs, splits).values()
    used = {splits[task_family(run)][0]: run for run in chosen}
    fits = [at_corner(run, f"{splits[task_family(run)][0]}.accuracy", corner) for run in chosen for corner in CORNERS]
    return _least(fits), f"Of split {', '.join(used)}."


def grid_picture(run: Run, splits: Splits) -> Picture:
    inside, outside = splits[task_family(run)]
    title = "Exact match over initial scale and weight decay"
    figure = figures.phase_diagram(run, _labels(run, splits), title=title)
    return Picture("grid", f"Split {inside} in, {outside} out of distribution.", figure)


def training_picture(run: Run, splits: Splits) -> Picture:
    figure = figures.training_curves(run, _labels(run, splits), title="Exact match over training", weight_decay=min)
    return Picture("training", "At the grid's smallest weight decay.", figure, "Over training")


def _labels(run: Run, splits: Splits) -> dict[str, str]:
    inside, outside = splits[task_family(run)]
    return {f"{inside}.accuracy": "in distribution", f"{outside}.accuracy": "out of distribution"}


def _of_families(runs: Runs, splits: Splits) -> Runs:
    chosen = runs.where(lambda _, run: task_family(run) in splits)
    if not chosen:
        raise MissingData(f"a training on {' or '.join(splits)}")
    return chosen


def _least(values: Sequence[xr.DataArray]) -> xr.DataArray:
    """The least one of each seed; NaN where any of them is."""
    by_seed = [one.min([dim for dim in one.dims if dim != "seed"], skipna=False) for one in values]
    together = xr.concat(by_seed, "part", join="outer", coords="minimal", compat="override")
    return together.min("part", skipna=False)
