"""`diff`: what differs between two trainings, and how far their numbers are apart."""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lab import config_json, families, series
from lab.analysis import statistics
from lab.disk.files import WorkdirError
from lab.disk.load import load_work
from lab.disk.workdir import Workdir, variants_in
from lab.grid import Grid

NO_SETTING = ("command",)  # of config.json: what differs between any two
COLUMNS = ("metric", "step", "since", "n", "missing", "a", "b", "median", "low", "high", "coverage")
SHOWN = 8  # names or values of a list that a line shows


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two trainings, A and B.

    Attributes:
      settings: a line for each entry of config.json (config, versions, numerics, devices) that differs, but the grid.
        An option that is newer than one of them has its default there.
      grid: how many rows both have, and a line for the values of each hyperparameter that only one has.
      remarks: what only one has, and what could not be compared and why.
      same: the metrics that are equal in every bit, at every step and in every row that both have.
      table: a line for each other metric and place of the grid, all seeds there together, at the last step that both
        have: `metric`, `step`, `since` (the first step at which any row differs), the place, `n` (seeds), `missing`
        (seeds without a number in A or B, e.g. diverged), the medians `a` and `b`, and of the difference B - A, seed by
        seed, its `median` and the order-statistic interval of that, `low` to `high`, with its `coverage`.
    """

    settings: list[str]
    grid: list[str]
    remarks: list[str]
    same: list[str]
    table: pd.DataFrame

    def __str__(self) -> str:
        """In lines; what has several numbers a row is one metric here."""
        apart = {*map(_variable, self.table.metric)}
        same = [name for name in dict.fromkeys(map(_variable, self.same)) if name not in apart]
        sections = {
            "settings": self.settings or ["no difference"],
            "grid": self.grid,
            "metrics, A -> B": [*([f"equal at every step: {_list(same)}"] if same else []), *self._apart()],
            "also": self.remarks,
        }
        return "\n".join(
            f"{title}:\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections.items() if lines
        )

    def _apart(self) -> Iterator[str]:
        places = [name for name in self.table if name not in COLUMNS]
        for variable, lines in self.table.groupby(self.table.metric.map(_variable), sort=False):
            step, since = lines.step.max(), lines.since.min()
            at = variable if pd.isna(step) else f"{variable} at step {step}, differs from step {since} on"
            known = lines[lines.n > 0]
            if known.empty:
                yield f"{at}; no row has a number in both"
                continue
            n_apart = int(((known.low > 0) | (known.high < 0)).sum())
            by_chance = (1 - known.coverage).sum()
            yield f"{at}; the interval leaves out 0 at {n_apart} of {len(known)} places (by chance {by_chance:.1f})"
            far = known.loc[known["median"].abs().idxmax()]
            where = ", ".join([far.metric] * (far.metric != variable) + [f"{name}={far[name]:g}" for name in places])
            interval = f"[{far.low:+.3g}, {far.high:+.3g}] ({far.coverage:.0%}, seeds: {far.n})"
            where = f" at {where}" if where else ""
            yield f"  farthest{where}: {far.a:.4g} -> {far.b:.4g}, by {far['median']:+.3g} {interval}"


@dataclasses.dataclass(frozen=True)
class Differences:
    """Of two folders; `print` shows them.

    Attributes:
      trainings: variant -> `Difference`, of those that both folders have.
      alone: a line for the variants that only one has.
    """

    trainings: Mapping[str, Difference]
    alone: list[str]

    @property
    def table(self) -> pd.DataFrame:
        """The tables of all trainings, with a column `variant` before."""
        tables = [found.table.assign(variant=name) for name, found in self.trainings.items()]
        table = pd.concat(tables or [pd.DataFrame(columns=["variant", *COLUMNS])], ignore_index=True)
        return table[["variant", *(name for name in table if name != "variant")]]

    def to_json(self) -> dict:
        """As JSON has it: `alone`, and `variants`, each with the attributes of a `Difference`; null where there is
        no number.
        """
        variants = {}
        for name, found in self.trainings.items():
            lines = found.table.to_json(orient="records", double_precision=15)
            variants[name] = vars(found) | {"table": json.loads(lines)}
        return {"alone": self.alone, "variants": variants}

    def __str__(self) -> str:
        if len(self.trainings) == 1 and not self.alone:
            return "\n".join(map(str, self.trainings.values()))
        lines = list(self.alone)
        for name, found in self.trainings.items():
            lines += [f"variant {name}", *(f"  {line}" for line in str(found).split("\n"))]
        return "\n".join(lines)

    __repr__ = __str__


def diff(a: str | Path, b: str | Path) -> Differences:
    """Compares two trainings, or those of two studies that have the same name; rows are matched by hyperparameters.

    Nothing is refused but a folder without any training: what only one has, or what cannot be read, is said.

    Raises:
      WorkdirError: there is no training in one of the folders.
    """
    works_a, works_b = variants_in(a), variants_in(b)
    if len(works_a) == len(works_b) == 1:  # whatever their names
        works_b = dict(zip(works_a, works_b.values(), strict=True))
    lines = []
    for side, mine, other in (("A", works_a, works_b), ("B", works_b, works_a)):
        if alone := [name for name in mine if name not in other]:
            lines.append(f"only in {side}: variant {', '.join(alone)}")
    return Differences({name: compare(work, works_b[name]) for name, work in works_a.items() if name in works_b}, lines)


def compare(a: Workdir, b: Workdir) -> Difference:
    """The `Difference` of two trainings."""
    settings, grid, remarks, same, lines = [], [], [], [], []
    try:
        settings = _settings(a, b)
        rows_a, rows_b, grid = _rows_of_both(a.grid, b.grid)
        (series_a, large_a), (series_b, large_b) = (series.of(load_work(work)) for work in (a, b))
        remarks = _alone([*series_a, *large_a], [*series_b, *large_b])
        remarks += [f"not compared, for its size: {name}" for name in large_a if name in large_b]
        if len(rows_a):
            remarks += _diverged(series_a.pop("diverged_at").values[rows_a], series_b.pop("diverged_at").values[rows_b])
            places = _places(a.grid, rows_a)
            for name in (name for name in series_a if name in series_b):
                found = _compare(series_a[name], series_b[name], rows_a, rows_b, places)
                if found is None:
                    same.append(name)
                elif not found:
                    remarks.append(f"not compared, no step in common: {name}")
                else:
                    lines += [{"metric": name, **line} for line in found]
    except (WorkdirError, ValueError) as error:
        remarks.append(f"not compared: {error}")
    table = pd.DataFrame(lines) if lines else pd.DataFrame(columns=list(COLUMNS))
    return Difference(settings, grid, remarks, same, table.astype({"step": "Int64", "since": "Int64"}))


def _settings(a: Workdir, b: Workdir) -> list[str]:
    return config_json.differences(*(_identity(work) for work in (a, b)))


def _identity(work: Workdir) -> dict:
    """What config.json says of a training, all options of its task, model and optimizer among it, but the grid."""
    held = {name: value for name, value in work.read_json("config.json").items() if name not in NO_SETTING}
    config = work.config
    with contextlib.suppress(ValueError):  # a class of the user's that is not here any more: as it was written
        work.bring_back()
        config = families.completed(config)
    return held | {"config": {name: value for name, value in config_json.to_json(config).items() if name != "grid"}}


def _rows_of_both(a: Grid, b: Grid) -> tuple[list[int], list[int], list[str]]:
    """The rows with equal hyperparameters, as training sees them, in A and in B; and what to say of the grids."""
    names = [name for name in a.columns if name in b.columns]
    keys = [list(zip(*(grid.arrays()[name].tolist() for name in names), strict=True)) for grid in (a, b)]
    counts = [Counter(side) for side in keys]
    place = {key: row for row, key in enumerate(keys[1])}
    pairs = [(row, place[key]) for row, key in enumerate(keys[0]) if counts[0][key] == counts[1][key] == 1]
    n_alone = [sum(key not in other for key in mine) for mine, other in ((keys[0], counts[1]), (keys[1], counts[0]))]
    lines = [f"{len(pairs)} rows in both, {n_alone[0]} only in A, {n_alone[1]} only in B"]
    if alike := sum(counts[0][key] > 1 or counts[1][key] > 1 for key in counts[0] if key in counts[1]):
        lines.append(f"{alike} times several rows have the same {', '.join(names)}: not compared")
    for side, mine, other in (("A", a.columns, b.columns), ("B", b.columns, a.columns)):
        for name, column in mine.items():
            if alone := sorted({*column} - {*other.get(name, ())}):
                lines.append(f"{name}: only in {side} {_list(alone)}")
    return [row for row, _ in pairs], [row for _, row in pairs], lines


def _alone(a: Sequence[str], b: Sequence[str]) -> list[str]:
    sides = {"A": [name for name in a if name not in b], "B": [name for name in b if name not in a]}
    return [f"only in {side}: {_list(names)}" for side, names in sides.items() if names]


def _diverged(a_R: np.ndarray, b_R: np.ndarray) -> list[str]:
    only = {"A": int(((a_R >= 0) & (b_R < 0)).sum()), "B": int(((a_R < 0) & (b_R >= 0)).sum())}
    return [f"rows that diverged only in {side}: {n}" for side, n in only.items() if n]


def _places(grid: Grid, rows: Sequence[int]) -> list[tuple[dict[str, float], list[int]]]:
    """The places of the grid that these rows are at, whatever their seed, and which of them are there."""
    columns = {name: [values[row] for row in rows] for name, values in grid.columns.items()}
    varied = [name for name, values in columns.items() if name != "seed" and len({*values}) > 1]
    groups: dict[tuple, list[int]] = {}
    for i in range(len(rows)):
        groups.setdefault(tuple(columns[name][i] for name in varied), []).append(i)
    return [(dict(zip(varied, place, strict=True)), group) for place, group in groups.items()]


def _compare(
    a: series.Series, b: series.Series, rows_a: Sequence[int], rows_b: Sequence[int], places: list
) -> list[dict] | None:
    """Lines of the table, one a place; None where all numbers are equal; empty where no step is in both."""
    step = since = None
    if a.steps is None or b.steps is None:
        if a.steps is not b.steps:
            return []
        a_R, b_R = a.values[rows_a], b.values[rows_b]
        if np.array_equal(a_R, b_R, equal_nan=True):
            return None
    else:
        steps_T, at_a, at_b = np.intersect1d(a.steps, b.steps, return_indices=True)
        a_TxR, b_TxR = a.values[np.ix_(at_a, rows_a)], b.values[np.ix_(at_b, rows_b)]
        if not len(steps_T):
            return []
        (differ,) = np.nonzero(((a_TxR != b_TxR) & ~(np.isnan(a_TxR) & np.isnan(b_TxR))).any(axis=1))
        if not len(differ):
            return None
        (measured,) = np.nonzero(~np.isnan(a_TxR + b_TxR).all(axis=1))  # of a snapshot maybe other rows in A than in B
        last = measured[-1] if len(measured) else -1
        step, since, a_R, b_R = int(steps_T[last]), int(steps_T[differ[0]]), a_TxR[last], b_TxR[last]
    return [{"step": step, "since": since, **place, **_apart(a_R[group], b_R[group])} for place, group in places]


def _apart(a_S: np.ndarray, b_S: np.ndarray) -> dict[str, float]:
    """How far the numbers of the same seeds are apart."""
    a_S, b_S = a_S.astype(float), b_S.astype(float)
    known_S = np.isfinite(a_S) & np.isfinite(b_S)
    counts = {"n": int(known_S.sum()), "missing": int((~known_S).sum())}
    if not known_S.any():
        return counts | dict.fromkeys(COLUMNS[5:], np.nan)
    a_S, b_S = a_S[known_S], b_S[known_S]
    medians = {"a": np.median(a_S), "b": np.median(b_S), "median": np.median(b_S - a_S)}
    return counts | medians | statistics.median_interval(b_S - a_S)._asdict()


def _variable(metric: str) -> str:
    """Of `norm.size[query]` it is `norm.size`."""
    return metric.split("[")[0]


def _list(values: Sequence) -> str:
    more = f", and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values[:SHOWN]) + more
