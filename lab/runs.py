"""Which rows a number is of: one selection of rows, for claims and pictures alike.

A study declares once, per axis of the grid, the value that is meant where none is said (`usual`): a number, or a rule
such as `min`, `max`, `middle`. `Run` applies it; nothing else does.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

KEPT = ("seed", "gamma")  # the axes that a selection keeps, unless told otherwise
TIMES = ("step", "train_step", "snapshot")  # dimensions that count training steps
# Dimensions that count steps of what is computed from a row's start alone, e.g. its exact limit: a row that diverged in
# training keeps these numbers.
START_TIMES = ("time", "spectrum_time")


class MissingData(Exception):
    """What a claim or picture needs and this run does not have, e.g. `weight decay 1`."""


def middle(values):
    """The middle of the sorted values; of an even number the upper one of the two."""
    return np.sort(np.asarray(values))[len(values) // 2]


Place = float | str | Callable


@dataclasses.dataclass(frozen=True)
class Run:
    """One training's numbers (a variant of a study), and the usual value of each axis of its grid.

    Attributes:
      dataset: of `lab.load`, its axes sorted; a grid that is no product becomes one, with NaN where it has no row.
      usual: axis -> a number or a rule (a function of the axis's values). A number that the grid does not have, and an
        axis that is not named, mean the middle value.
    """

    dataset: xr.Dataset
    usual: Mapping[str, Place] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        dataset = self.dataset
        if "row" in dataset["diverged_at"].dims:
            names = [name for name, column in dataset.coords.items() if column.dims == ("row",) and name != "row"]
            dataset = dataset.set_index(row=names).unstack("row")
        object.__setattr__(self, "dataset", dataset.sortby(list(dataset["diverged_at"].dims)))

    @property
    def axes(self) -> tuple[str, ...]:
        """The grid's axes."""
        return tuple(map(str, self.dataset["diverged_at"].dims))

    @property
    def config(self) -> Mapping:
        """The training's config, as plain JSON values."""
        return self.dataset.attrs["config"]

    def __contains__(self, name: str) -> bool:
        return name in self.dataset

    def __getitem__(self, name: str) -> xr.DataArray:
        """A variable of all rows, as it was loaded.

        Raises:
          MissingData: it was not measured.
        """
        if name not in self.dataset:
            raise MissingData(name)
        return self.dataset[name]

    def values_of(self, axis: str) -> np.ndarray:
        """The values of an axis, ascending.

        Raises:
          MissingData: the grid does not vary it.
        """
        if axis not in self.axes:
            raise MissingData(f"an axis {words(axis)}")
        return self.dataset[axis].values

    def place(self, keep: Sequence[str] = KEPT, **at: Place) -> dict[str, int]:
        """Axis -> index of the value that is meant, of every axis that is not kept.

        Raises:
          MissingData: a value in `at` that the grid does not have.
        """
        for axis, wanted in at.items():
            if axis not in self.axes and not (axis in self.usual and self.usual[axis] == wanted):
                raise MissingData(f"an axis {words(axis)}")
        indices = {}
        for axis in self.axes:
            values = self.dataset[axis].values
            if axis in at:
                index = index_of(values, at[axis])
                if index is None:
                    have = ", ".join(map(_short, values))
                    raise MissingData(f"{words(axis)} {_short(at[axis])} (the grid has {have})")
                indices[axis] = index
            elif axis not in keep:
                index = index_of(values, self.usual.get(axis, middle))
                indices[axis] = len(values) // 2 if index is None else index
        return indices

    def rows(self, keep: Sequence[str] = KEPT, **at: Place) -> xr.Dataset:
        """The selected rows, dims `keep` before all others; NaN where a row diverged, over time from that step on.

        Variables over `START_TIMES` are not of the trained row: they stay as they are.

        Args:
          keep: axes of the grid that stay; those that the grid does not have are left out.
          at: axis -> value, or rule, in place of the usual one; an axis named here does not stay.

        Raises:
          MissingData: a value in `at` that the grid does not have.
        """
        chosen = self.dataset.isel(self.place(keep, **at))
        first = [axis for axis in keep if axis in chosen["diverged_at"].dims]
        masked = {name: _healthy(values, chosen["diverged_at"]) for name, values in chosen.data_vars.items()}
        return chosen.assign(masked | {"diverged_at": chosen["diverged_at"]}).transpose(*first, ...)

    def over_time(self, name: str, keep: Sequence[str] = KEPT, **at: Place) -> xr.DataArray:
        """As `rows`, of one variable.

        Raises:
          MissingData: it was not measured, or as `rows`.
        """
        return self._narrow(name).rows(keep, **at)[name]

    def final(self, name: str, keep: Sequence[str] = KEPT, **at: Place) -> xr.DataArray:
        """As `over_time`, at the last time that it was measured at, whichever rows it was measured of.

        Raises:
          MissingData: as `over_time`.
        """
        values = self.over_time(name, keep, **at)
        for time in {*TIMES, *START_TIMES} & {*values.dims}:
            others = [dim for dim in self.dataset[name].dims if dim != time]
            (measured,) = np.nonzero(self.dataset[name].notnull().any(others).values)
            values = values.isel({time: measured[-1] if measured.size else -1})
        return values

    def best(self, name: str, keep: Sequence[str] = KEPT, **at: Place) -> xr.DataArray:
        """As `over_time`, the largest value over time; NaN for rows that diverged at any step.

        Raises:
          MissingData: as `over_time`.
        """
        rows = self._narrow(name).rows(keep, **at)
        values = rows[name]
        return values.max([time for time in TIMES if time in values.dims]).where(rows["diverged_at"] < 0)

    def _narrow(self, name: str) -> "Run":
        """With one variable only, so that a selection is cheap."""
        self[name]  # it was measured
        return dataclasses.replace(self, dataset=self.dataset[list(dict.fromkeys([name, "diverged_at"]))])

    def assign(self, **variables: xr.DataArray) -> "Run":
        """With more variables; the dots of their names are written as given."""
        return dataclasses.replace(self, dataset=self.dataset.assign(variables))


def as_run(run: Run | xr.Dataset) -> Run:
    """A dataset as a run without usual values: the middle of every axis."""
    return run if isinstance(run, Run) else Run(run)


class Runs(Mapping[str, Run]):
    """The runs of a study, by variant."""

    def __init__(self, datasets: Mapping[str, xr.Dataset], usual: Mapping[str, Place] | None = None):
        self._runs = {name: Run(dataset, usual or {}) for name, dataset in datasets.items()}
        self._absent: Mapping[str, str] = {}

    def __getitem__(self, variant: str) -> Run:
        """
        Raises:
          MissingData: it was not trained.
        """
        if variant not in self._runs:
            reason = f" ({self._absent[variant]})" if variant in self._absent else ""
            raise MissingData(f"variant {variant}{reason}")
        return self._runs[variant]

    def __contains__(self, variant) -> bool:
        if variant in self._absent:
            self[variant]
        return variant in self._runs

    def __iter__(self) -> Iterator[str]:
        for variant in self._absent:
            self[variant]
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def without(self, absent: Mapping[str, str]) -> "Runs":
        """The same runs, of a study whose other variants are not there yet.

        To ask for one of those, or for all variants in turn, raises `MissingData`: a number that is meant to be of all
        must not be of some.

        Args:
          absent: variant -> why it is not there.
        """
        known = Runs({})
        known._runs, known._absent = self._runs, absent
        return known

    def only(self) -> Run:
        """The run of a study that has one variant.

        Raises:
          MissingData: it was not trained.
        """
        if not self._runs:
            raise MissingData("any training")
        (run,) = self.values()
        return run

    def numbered(self, prefix: str) -> dict[int, Run]:
        """The runs of the variants `<prefix>_<number>`, by that number, ascending."""
        rest = {name.removeprefix(f"{prefix}_"): name for name in self if name.startswith(f"{prefix}_")}
        return {number: self[rest[str(number)]] for number in sorted(int(name) for name in rest if name.isdecimal())}

    def where(self, keep: Callable[[str, Run], bool]) -> "Runs":
        """The runs for which `keep(variant, run)` is true."""
        chosen = Runs({})
        chosen._runs = {name: run for name, run in self.items() if keep(name, run)}
        return chosen


def first_scores(names: Iterable[str], splits: Sequence[str]) -> list[str]:
    """Of a dataset's variables the first score of every split, or its loss where it has none."""
    found = []
    for split in splits:
        scores = sorted(name for name in map(str, names) if name.startswith(f"{split}."))
        found += sorted(scores, key=lambda name: name.endswith(".loss"))[:1]
    return found


def words(axis: str) -> str:
    """An axis's name as it is said: `weight decay`."""
    return axis.replace("_", " ")


def index_of(values: np.ndarray, wanted: Place) -> int | None:
    """Index of the value that is meant; None if it is not there."""
    wanted = wanted(values) if callable(wanted) else wanted
    same = np.isclose(values, wanted) if np.issubdtype(values.dtype, np.number) else values == wanted
    return int(np.flatnonzero(same)[0]) if same.any() else None


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, (int, float, np.number)) else str(getattr(value, "__name__", value))


def _healthy(values: xr.DataArray, diverged_at: xr.DataArray) -> xr.DataArray:
    """NaN where the row had diverged, or is not there."""
    if not {*diverged_at.dims} <= {*values.dims} or {*START_TIMES} & {*values.dims}:
        return values  # not of a row as it was trained
    healthy = diverged_at < 0
    for time in {*TIMES} & {*values.dims}:
        healthy = healthy | (values[time] < diverged_at)
    return values.where(healthy)
