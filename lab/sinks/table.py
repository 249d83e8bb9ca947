"""A tidy table of trainings: a line for each row of the grid and each step at which anything was measured."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from lab import series
from lab.disk.files import WorkdirError
from lab.disk.load import load_work
from lab.disk.workdir import Workdir, variants_in
from lab.grid import Grid

LINES = 50_000  # of a block, about


@dataclasses.dataclass(frozen=True)
class Training:
    """The chosen rows and series of one training.

    Attributes:
      dataset: of `lab.load`, with all rows and the chosen variables.
      grid: all its rows.
      rows: indices in the order of `lab.load`.
    """

    variant: str
    dataset: xr.Dataset
    grid: Grid
    rows: tuple[int, ...]
    series: Mapping[str, series.Series]

    @property
    def config(self) -> dict:
        """All but the grid."""
        return {name: value for name, value in self.dataset.attrs["config"].items() if name != "grid"}

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Hyperparameter -> (R,): `seed` as whole numbers, all others float64."""
        columns = self.grid.columns.items()
        return {name: np.array(values, int if name == "seed" else float) for name, values in columns}

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """(N,): the steps that have a line; the last evaluation where no chosen series has time."""
        steps = [one.steps for one in self.series.values() if one.steps is not None]
        return np.unique(np.concatenate(steps or [self.dataset["step"].values[-1:]]))

    def lines(self, rows: Sequence[int]) -> pd.DataFrame:
        """The lines of some rows, row by row."""
        n, rows = len(self.steps), list(rows)
        index = {"variant": self.variant, "row": np.repeat(rows, n)}
        index |= {name: np.repeat(column[rows], n) for name, column in self.columns.items()}
        numbers = {name: one.at(self.steps, rows).reshape(-1) for name, one in self.series.items()}
        return pd.DataFrame(index | {"step": np.tile(self.steps, len(rows))} | numbers)

    def last(self) -> pd.DataFrame:
        """A line for each row: of every series the last number."""
        rows = list(self.rows)
        index = {"variant": self.variant, "row": rows} | {name: column[rows] for name, column in self.columns.items()}
        return pd.DataFrame(index | {name: one.last()[rows] for name, one in self.series.items()})


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """One row as experiment trackers have it: a name, settings, and numbers step by step."""

    training: Training
    row: int

    @property
    def name(self) -> str:
        """Variant, row, and the hyperparameters that the grid varies."""
        varied = [f"{name}={self.hparams[name]:g}" for name, held in self.training.columns.items() if np.ptp(held) > 0]
        return f"{self.training.variant}/{','.join([f'row-{self.row:03}', *varied])}"

    @property
    def hparams(self) -> dict[str, float]:
        return {name: column[self.row].item() for name, column in self.training.columns.items()}

    @property
    def config(self) -> dict:
        diverged_at = int(self.training.series["diverged_at"].values[self.row])
        return {**self.hparams, "row": self.row, "diverged_at": diverged_at, "config": self.training.config}

    def __iter__(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and its numbers, where there are any; NaN is none."""
        series_over_time = {name: one for name, one in self.training.series.items() if one.steps is not None}
        steps = self.training.steps
        values = {name: one.at(steps, [self.row])[0].tolist() for name, one in series_over_time.items()}
        for i, step in enumerate(steps.tolist()):
            numbers = {name: column[i] for name, column in values.items() if column[i] == column[i]}
            if numbers:
                yield step, numbers


@dataclasses.dataclass(frozen=True)
class Table:
    """
    Attributes:
      name: of the workdir.
      left_out: variables that are too large, with their numbers a row and step.
      row_by_row: whether a tracker gets a run a row; else one table of the last values.
    """

    name: str
    trainings: tuple[Training, ...]
    left_out: Mapping[str, int]
    row_by_row: bool = True

    @property
    def n_rows(self) -> int:
        return sum(len(training.rows) for training in self.trainings)

    def as_last(self) -> "Table":
        return dataclasses.replace(self, row_by_row=False)

    def runs(self) -> Iterator[TrackedRun]:
        """None where there is one table instead."""
        for training in self.trainings if self.row_by_row else ():
            for row in training.rows:
                yield TrackedRun(training, row)

    def last(self) -> pd.DataFrame | None:
        """A line for each row of each training; None where each row is a run."""
        if self.row_by_row:
            return None
        return self._same_columns(pd.concat([training.last() for training in self.trainings]))

    def blocks(self) -> Iterator[pd.DataFrame]:
        """The lines, some rows at a time, all with the same columns of the same types."""
        for training in self.trainings:
            width = max(1, LINES // len(training.steps))
            for begin in range(0, len(training.rows), width):
                yield self._same_columns(training.lines(training.rows[begin : begin + width]))

    @functools.cached_property
    def _types(self) -> dict[str, np.dtype]:
        """Of every column that any training has; what one of them lacks is NaN there."""
        whole, single, double = np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.float64)
        types = {"row": whole}
        types |= {name: double for training in self.trainings for name in training.columns}
        types |= {"seed": whole, "step": whole, "diverged_at": whole}
        for training in self.trainings:
            for name, one in training.series.items():
                if name != "diverged_at":
                    types[name] = single if one.dtype == single and types.get(name, single) == single else double
        return types

    def _same_columns(self, lines: pd.DataFrame) -> pd.DataFrame:
        types = {name: dtype for name, dtype in self._types.items() if name != "step" or name in lines}
        return lines.reindex(columns=["variant", *types]).astype(types)


def read(
    workdir: str | Path,
    rows: Sequence[int] | str | None,
    metrics: Sequence[str] | None,
    variants: Sequence[str] | None,
    everything: bool = False,
) -> Table:
    """See `lab.sinks.export`; with `everything` no variable is too large."""
    works = variants_in(workdir)
    for variant in variants or ():
        if variant not in works:
            raise WorkdirError(f"{workdir}: no variant {variant!r}; there are {', '.join(works)}")
    trainings, left_out = [], {}
    for variant in variants or works:
        work = works[variant]
        dataset = load_work(work)
        found, large = ({}, {}) if everything else series.of(dataset, metrics)
        kept = dataset if metrics is None else dataset[series.chosen(dataset, metrics)]
        trainings.append(Training(variant, kept, work.grid, _rows(work, rows), found))
        left_out |= large
    return Table(Path(workdir).resolve().name, tuple(trainings), left_out)


def _rows(work: Workdir, rows: Sequence[int] | str | None) -> tuple[int, ...]:
    there = range(len(work.grid))
    if rows is None or rows == "all":
        return tuple(there)
    for row in rows:
        if row not in there:
            raise ValueError(f"row {row}: {work.path} has rows 0 to {len(there) - 1}")
    return tuple(dict.fromkeys(rows))
