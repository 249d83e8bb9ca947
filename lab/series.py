"""What `lab.load` gives as plain series: one number a row of the grid, over training steps."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr

from lab import limits
from lab.runs import TIMES

MOST = 64  # numbers of one variable at one step of one row that become series without being asked for by name


@dataclasses.dataclass(frozen=True)
class Series:
    """One number a row.

    Attributes:
      values: (T, R), or (R,) of what has no time.
      steps: (T,) optimizer steps that a row had taken, ascending; None: no time.
    """

    values: np.ndarray
    steps: np.ndarray | None = None

    def at(self, steps_N: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """(rows, N): the numbers at these steps; NaN at a step that the series does not have."""
        if self.steps is None:
            return np.repeat(self.values[list(rows)][:, None], len(steps_N), axis=1)
        _, places, own = np.intersect1d(steps_N, self.steps, return_indices=True)
        found = np.full((len(rows), len(steps_N)), np.nan, self.dtype)
        found[:, places] = self.values[np.ix_(own, list(rows))].T
        return found

    def last(self) -> np.ndarray:
        """(R,): the numbers at the last step at which any row has one."""
        if self.steps is None:
            return self.values
        (measured,) = np.nonzero(~np.isnan(self.values).all(axis=1))
        return self.values[measured[-1] if measured.size else -1]

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64, which hold every number and NaN; of what has no time its own."""
        if self.steps is None:
            return self.values.dtype
        return np.dtype(np.float32 if self.values.dtype == np.float32 else np.float64)


def of(dataset: xr.Dataset, names: Iterable[str] | None = None) -> tuple[dict[str, Series], dict[str, int]]:
    """The variables of a dataset of `lab.load`, as it was loaded; no number is copied.

    A variable with further dimensions becomes a series for each place in them, `rank.stable[block_0/attn/query]`.

    Args:
      names: of variables, or of splits and measurements (what stands before the dot); None: all but those with more
        than `MOST` numbers a row and step. `diverged_at` is always among them.

    Returns:
      The series by name, and the variables that were left out for their size, with their numbers a row and step.

    Raises:
      ValueError: a name that the dataset does not have.
    """
    found, left_out = {}, {}
    for name in chosen(dataset, names):
        size = int(np.prod([dataset.sizes[dim] for dim in _further(dataset, name)]))
        if names is None and size > MOST:
            left_out[name] = size
            continue
        values, steps, labels = flat(dataset, name)
        found |= {named(name, label): Series(values[..., i], steps) for i, label in enumerate(labels)}
    return found, left_out


def flat(dataset: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray | None, list[tuple]]:
    """One variable: its values (T, R, N), or (R, N) of what has no time; the steps (T,), or None; and N places in its
    further dimensions, each by its labels, the last dimension fastest.
    """
    variable, rows, others = dataset[name], dataset["diverged_at"], _further(dataset, name)
    time = [dim for dim in variable.dims if dim in TIMES]
    labels = [*itertools.product(*(dataset[dim].values.tolist() for dim in others))]  # a dim without labels counts
    values = variable.transpose(*time, *rows.dims, *others).values
    values = values.reshape(*values.shape[: len(time)], rows.size, len(labels))
    return values, dataset[time[0]].values if time else None, labels


def _further(dataset: xr.Dataset, name: str) -> list:
    """The dimensions of a variable beside time and the grid's."""
    return [dim for dim in dataset[name].dims if dim not in (*dataset["diverged_at"].dims, *TIMES)]


def named(name: str, label: tuple) -> str:
    """`rank.stable[block_0/attn/query]`: a variable at one place in its further dimensions."""
    return f"{name}[{','.join(map(str, label))}]" if label else name


def chosen(dataset: xr.Dataset, names: Iterable[str] | None) -> list[str]:
    there = [str(name) for name in dataset.data_vars if name != "diverged_at"]
    if names is None:
        return ["diverged_at", *there]
    known = {name: [name] for name in there}
    for name in there:
        known.setdefault(name.split(".")[0], []).append(name)
    chosen = ["diverged_at"]
    for name in names:
        if name not in known and name != "diverged_at":
            raise ValueError(f"no metric {name!r}{limits.nearest(name, known) or '.'} There are {', '.join(there)}")
        chosen += known.get(name, [])
    return list(dict.fromkeys(chosen))
