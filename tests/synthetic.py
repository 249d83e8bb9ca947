"""Numbers for tests: runs written by hand, with garbage wherever nobody should read; and normal draws."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
import xarray as xr

from lab import claims
from lab.cli import main
from lab.runs import Run, Runs

GARBAGE = 77.0  # in every cell that nobody may read
SEEDS = range(5)
RATES = (1e-4, 1e-3, 1e-2)


class Grid:
    """A run in the making. `put` writes the numbers of one variable, `run` gives the `Run`.

    Axes are those given, a learning rate of three values of which the middle one counts, and five seeds. `times` are
    the steps of time axes other than `step` and `snapshot`.
    """

    def __init__(
        self, usual: Mapping | None = None, config: Mapping | None = None, steps=(0, 100),
        times: Mapping[str, Sequence] | None = None, **axes: Sequence,
    ):  # fmt: skip
        self.usual = usual or {}
        self.times = {"step": steps, "snapshot": steps} | (times or {})
        axes = {"learning_rate": RATES, "seed": SEEDS} | axes
        coords = {axis: list(values) for axis, values in axes.items()}
        self.axes = tuple(axes)
        healthy = np.full([len(values) for values in coords.values()], -1)
        self.dataset = xr.Dataset({"diverged_at": (self.axes, healthy)}, coords, {"config": config or {}})

    def put(self, name: str, values, time: str | None = "step", dims: Mapping[str, Sequence] | None = None, **at):
        """Writes a variable at its last time, or at all times where `values` have them.

        Args:
          values: (*time*, seed, gamma, *dims*), or what broadcasts to that; for a grid without gamma (seed, *dims*).
          dims: further dimensions, with their coordinates.
          at: axis -> values of the other axes; of those that are not named the usual or the middle one.
        """
        dims = dict(dims or {})
        for dim, labels in dims.items():
            self.dataset = self.dataset.assign_coords({dim: list(labels)})
        before = {time: list(self.times[time])} if time else {}
        if name not in self.dataset:
            whole = {axis: self.dataset[axis].values for axis in self.axes}
            sizes = [len(labels) for labels in (*before.values(), *whole.values(), *dims.values())]
            self.dataset = self.dataset.assign_coords(before)
            self.dataset[name] = ((*before, *self.axes, *dims), np.full(sizes, GARBAGE))
        run = Run(self.dataset, self.usual)
        places = {axis: run.dataset[axis].values[index] for axis, index in run.place(**at).items()}
        kept = [axis for axis in ("seed", "gamma") if axis in self.axes and axis not in at]
        cell = self.dataset[name].sel(places)
        values = np.asarray(values, float)
        if time and values.ndim <= len(kept) + len(dims):
            places[time], cell = cell[time].values[-1], cell.isel({time: -1})
            before = {}
        shape = [cell.sizes[dim] for dim in (*before, *kept, *dims)]
        cells = xr.DataArray(np.broadcast_to(values, shape), dims=(*before, *kept, *dims))
        self.dataset[name].loc[places] = cells.transpose(*cell.dims).values
        return self

    def diverge(self, step: int, **at):
        """Marks rows as diverged at a step."""
        self.dataset["diverged_at"].loc[at] = step
        return self

    def run(self) -> Run:
        return Run(self.dataset, self.usual)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_gamma(*numbers, n_seeds: int = len(SEEDS)) -> np.ndarray:
    """(seed, gamma): for each gamma a number for all seeds, or one for each."""
    return np.array([np.broadcast_to(np.asarray(number, float), n_seeds) for number in numbers]).T


def runs(study, **grids: Grid) -> Runs:
    return Runs({name: grid.dataset for name, grid in grids.items()}, study.usual)


def measured(study, id: str, **grids: Grid) -> claims.Result:
    """The study's claim of this id, on runs of these variants."""
    (claim,) = [claim for claim in study.claims if claim.id == id]
    return claims.evaluate(claim, runs(study, **grids))


def reproduce(study: str, folder, *options: str):
    """Trains, measures and reports the smoke preset into a folder, from the command line; returns the folder."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to whole numbers
        main(["reproduce", study, "--preset=smoke", f"--workdir={folder}", *options])
    return folder
