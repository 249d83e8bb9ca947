"""Grids: columns of equal length, one per hyperparameter, and the axes they came from."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from lab import limits

CORE = ("gamma", "weight_decay", "learning_rate", "seed")
GROUP_RATES = ("gamma_embed", "gamma_qk", "gamma_vo", "gamma_mlp", "gamma_head")
SIGMA = "sigma"  # in place of `gamma`, see `lab.init`
GROUP_SIGMAS = tuple(name.replace("gamma", SIGMA) for name in GROUP_RATES)
PERTURBATIONS = ("sam_radius", "weight_noise")  # see `lab.perturb`
KNOWN = CORE + GROUP_RATES + PERTURBATIONS + (SIGMA, *GROUP_SIGMAS)
NOT_NEGATIVE = ("weight_decay", "learning_rate", *PERTURBATIONS, SIGMA, *GROUP_SIGMAS)


@dataclasses.dataclass(frozen=True)
class Grid:
    """R rows of hyperparameters.

    Attributes:
      columns: name -> tuple of R numbers; `seed` holds non-negative integers, all others finite floats.
      axes: name -> distinct values, in order, when the rows are the full product of the axes (rows in C order, last
        axis fastest); None otherwise.
    """

    columns: Mapping[str, tuple]
    axes: Mapping[str, tuple] | None = None

    def __post_init__(self):
        for name in ("columns", "axes"):
            if (held := getattr(self, name)) is not None:
                object.__setattr__(self, name, {axis: tuple(map(_python, values)) for axis, values in held.items()})

    def __len__(self) -> int:
        return len(self.columns["seed"])

    def arrays(self) -> dict[str, np.ndarray]:
        """Columns as arrays of length R: `seed` int32, the rest float32."""
        return {
            name: np.asarray(column, np.int32 if name == "seed" else np.float32)
            for name, column in self.columns.items()
        }

    def row(self, index: int) -> dict:
        """One row's hyperparameters."""
        return {name: column[index] for name, column in self.columns.items()}

    def take(self, rows: Sequence[int]) -> "Grid":
        """The rows with these indices, in that order."""
        return Grid({name: tuple(column[row] for row in rows) for name, column in self.columns.items()})

    def seen_rows(self) -> list[tuple]:
        """The rows as the numbers that programs see, in the order of their names."""
        arrays = self.arrays()
        return list(zip(*(arrays[name].tolist() for name in sorted(arrays)), strict=True))

    def extended(self, name: str, values: Sequence) -> "Grid":
        """With more values of one hyperparameter, each beside every combination of the others.

        Those that are all there change nothing, so that what was asked for once may be asked for again.

        Raises:
          ValueError: no such hyperparameter, an impossible value, some values that are there and some that are not, or
            a grid whose rows do not have every value of it beside every combination of the others.
        """
        if name not in self.columns:
            hint = limits.nearest(name, self.columns) or "."
            raise ValueError(f"grid.{name}: not an axis of this grid{hint} There are {', '.join(self.columns)}")
        held = tuple(dict.fromkeys(self.columns[name]))
        known, values = _seen(name, held), _distinct(name, values, tuple(self.columns))
        there = [value for value, number in zip(values, _seen(name, values), strict=True) if number in known]
        others = [other for other in self.columns if other != name]
        beside = dict.fromkeys(zip(*(self.columns[other] for other in others), strict=True))
        rows = [(*others_row, value) for others_row in beside for value in values]
        added = Grid({column: tuple(row[i] for row in rows) for i, column in enumerate((*others, name))})
        if len(there) == len(values) and lacking(added, [self]) is None:
            return self
        if there and len(there) < len(values):
            said = ", ".join(f"{value:g}" for value in there)
            raise ValueError(f"grid.{name}={values}: {said} is there already; give the values that are to be added")
        if self.axes is not None:
            return product({**self.axes, name: _merged(self.axes[name], values)}, tuple(self.columns))
        if len(set(self.seen_rows())) != len(beside) * len(held):
            raise ValueError(
                f"grid.{name}={values}: the rows of this grid were given one by one, and not every {name} is beside "
                "every combination of the others; ask for the rows themselves, see lab.grid"
            )
        return concat(self, added)

    def to_json(self) -> dict:
        return {"columns": dict(self.columns), "axes": None if self.axes is None else dict(self.axes)}

    @staticmethod
    def from_json(data: Mapping) -> "Grid":
        axes = None if data["axes"] is None else {name: tuple(axis) for name, axis in data["axes"].items()}
        return Grid({name: tuple(column) for name, column in data["columns"].items()}, axes)


def product(axes: Mapping[str, Sequence], extra: Sequence[str] = ()) -> Grid:
    """Every combination of the axes' values, the last axis fastest.

    Args:
      axes: hyperparameter -> its values. The core ones (`gamma`, `weight_decay`, `learning_rate`, `seed`) must be
        there, group rates (`gamma_qk`, ...), `sam_radius` and `weight_noise` may. `sigma` is in place of `gamma`, which
        is left out then, or empty: `gamma=()`; `sigma_qk` in place of `gamma_qk`.
      extra: names of further hyperparameters that the study declares.

    Raises:
      ValueError: unknown or missing name, an empty axis, a repeated, non-numeric or impossible value.
    """
    axes = {name: _distinct(name, values, extra) for name, values in _without_rate(axes).items()}
    rows = list(itertools.product(*axes.values()))
    columns = {name: tuple(row[i] for row in rows) for i, name in enumerate(axes)}
    return Grid(_complete(columns), axes)


def zipped(columns: Mapping[str, Sequence], extra: Sequence[str] = ()) -> Grid:
    """Rows given column by column: row i takes the i-th value of each.

    Rows with a rate and rows with a standard deviation make one grid: of `gamma` and `sigma` (and of `gamma_qk` and
    `sigma_qk`, ...) one is then 0 in every row, and the other counts.

    Raises:
      ValueError: as `product`, and when the columns' lengths differ.
    """
    columns = {name: _values(name, values, extra) for name, values in _without_rate(columns).items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"zipped grid: columns must have equal lengths, got {lengths}")
    return Grid(_complete(columns))


def concat(first: Grid, *others: Grid) -> Grid:
    """The rows of several grids with the same hyperparameters, one after the other."""
    grids = (first, *others)
    names = [tuple(grid.columns) for grid in grids]
    if any(set(other) != set(names[0]) for other in names):
        raise ValueError(f"concat: grids must have the same hyperparameters, got {names}")
    return Grid({name: sum((tuple(grid.columns[name]) for grid in grids), ()) for name in names[0]})


def lacking(asked: Grid, held: Sequence[Grid]) -> Grid | None:
    """The rows of a grid that none of the others holds, their numbers spelled as there; None where none lacks."""
    there = Counter(key for grid in held for key in grid.seen_rows())
    absent = []
    for row, key in enumerate(asked.seen_rows()):
        there[key] -= 1
        if there[key] < 0:
            absent.append(row)
    columns = {}
    for name, column in asked.take(absent).columns.items():
        values = [value for grid in held for value in grid.columns[name]]
        spelled = dict(zip(_seen(name, values), values, strict=True))
        seen = zip(_seen(name, column), column, strict=True)
        columns[name] = tuple(spelled.get(number, value) for number, value in seen)
    return Grid(columns) if absent else None


def have_common_rows(one: Grid, other: Grid) -> bool:
    return not set(one.seen_rows()).isdisjoint(other.seen_rows())


def union(grids: Sequence[Grid]) -> tuple[Grid, np.ndarray]:
    """The rows of several grids as one: a product, if the first is one and all together are.

    An axis of the first whose values ascend goes on ascending; of all others the new values come last.

    Returns:
      The grid, and the number that each of its rows has where the grids' rows are counted one after the other.
    """
    together = concat(*grids)
    if grids[0].axes is not None:
        axes = {name: _merged(values, together.columns[name]) for name, values in grids[0].axes.items()}
        place = {row: i for i, row in enumerate(zip(*(together.columns[name] for name in axes), strict=True))}
        order = [place.get(row, -1) for row in itertools.product(*axes.values())]
        if len(order) == len(place) == len(together):  # then none lacks
            return Grid(together.take(order).columns, axes), np.array(order)
    return together, np.arange(len(together))


def _merged(axis: Sequence, values: Sequence) -> tuple:
    """An axis with more values: in order where it was, else with those that it lacks behind."""
    merged = tuple(dict.fromkeys((*axis, *values)))
    return tuple(sorted(merged)) if list(axis) == sorted(axis) else merged


def _seen(name: str, values: Sequence) -> list:
    """Values of a hyperparameter as the numbers that programs see."""
    return Grid({"seed": (), name: tuple(values)}).arrays()[name].tolist()


def _distinct(name: str, values: Sequence, extra: Sequence[str]) -> tuple:
    values = _values(name, values, extra)
    if len(set(values)) < len(values):
        raise ValueError(f"grid.{name}={values}: a value is repeated")
    return values


def _values(name: str, values: Sequence, extra: Sequence[str]) -> tuple:
    known = (*KNOWN, *extra)
    if name not in known:
        hint = limits.nearest(name, known) or "."
        raise ValueError(f"grid.{name}: unknown hyperparameter{hint} Known: {', '.join(known)}")
    if not isinstance(values, (tuple, list, np.ndarray)) or len(values) == 0:
        raise ValueError(f"grid.{name}={values!r}: expected a non-empty tuple of numbers")
    for value in values:
        if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
            raise ValueError(f"grid.{name}={values!r}: {value!r} is not a number")
        if not math.isfinite(value):
            raise ValueError(f"grid.{name}={values!r}: {value!r} is not finite")
        if name == "seed" and (value != int(value) or not 0 <= value < limits.SEED_BOUND):
            raise ValueError(f"grid.seed={values!r}: {value!r} is not an integer in [0, 2^31)")
        if name in NOT_NEGATIVE and value < 0:
            raise ValueError(f"grid.{name}={values!r}: {value!r} is negative")
    return tuple(int(value) if name == "seed" else float(value) for value in values)


def _python(value):
    """A number of NumPy's as one of Python's, which JSON knows."""
    return value.item() if isinstance(value, np.generic) else value


def _without_rate(given: Mapping) -> dict:
    """Without an empty `gamma` beside `sigma`: what a config says that takes the one in place of the other."""
    replaced = SIGMA in given and not np.size(given.get("gamma", ()))
    return {name: values for name, values in given.items() if not (replaced and name == "gamma")}


def _complete(columns: Mapping[str, tuple]) -> dict[str, tuple]:
    for rate, std in zip(("gamma", *GROUP_RATES), (SIGMA, *GROUP_SIGMAS), strict=True):
        pairs = zip(columns.get(rate, ()), columns.get(std, ()), strict=False)  # none where a name is not there
        if any(bool(gamma) == bool(sigma) for gamma, sigma in pairs):
            hint = "; grid.gamma=() leaves it out" if std == SIGMA else ""
            raise ValueError(
                f"grid.{std}: beside grid.{rate}, and only one of them decides the initial weights{hint}, or in every "
                "row one of them is 0 (rows one by one, see lab.grid.zipped)"
            )
    missing = [name for name in CORE if name not in columns and (name != "gamma" or SIGMA not in columns)]
    if missing:
        raise ValueError(f"grid lacks {', '.join(missing)}: every row needs {', '.join(CORE)}")
    return dict(columns)
