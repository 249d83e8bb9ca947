"""`load`: everything a training and its analysis left, as one xarray Dataset."""

import contextlib
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from lab import config as configs
from lab import limits
from lab.disk import measurements
from lab.disk.files import DamagedError, WorkdirError
from lab.disk.metrics import STEP_METRICS, read_chunks
from lab.disk.workdir import EXTENSIONS, Workdir, find, united, variants_in
from lab.grid import Grid


def load(workdir: str | Path, variant: str | None = None, without: Container[str] = ()) -> xr.Dataset:
    """All metrics and measurements of one training.

    Args:
      workdir: a training's folder, or a study's folder with one training a variant.
      variant: which of them; may be left out where there is only one.
      without: measurements to leave out.

    Returns:
      A Dataset. Dimensions: `step` (evaluations), `train_step` (training steps), `snapshot`, and the grid's axes
      (`gamma`, `weight_decay`, `learning_rate`, `seed`, ...), or `row` where the grid is not a product. Variables:
      `train_loss` and `grad_norm` (train_step, ...), and `controlled` and `coefficient` where there is a controller;
      `<split>.<score>` (step, ...), `diverged_at` (...; -1 = healthy),
      `<measure>.<name>` (snapshot, ...), with `units`, `split` and `n_sequences` in its attributes.
      `dataset.lab.params(gamma=0.8, ...)` gives a row's parameters.

    Raises:
      WorkdirError: nothing to load, several variants and none named, or a missing or damaged file.
    """
    return load_work(find(workdir, variant), variant, without)


def load_work(work: Workdir, variant: str | None = None, without: Container[str] = ()) -> xr.Dataset:
    """`load` of a training that is held already: with the rows that `work` has, also where more end meanwhile."""
    over_time = _over_time(work.parts, without) if len(work.parts) > 1 else ()
    parts = [_rows_of(part, without, over_time) for part in work.parts]
    whole = parts[0]
    if len(parts) > 1:  # each has its rows in its own order
        try:
            whole = xr.concat(
                parts, "row", data_vars="minimal", coords="minimal", compat="override", join="outer",
                combine_attrs="no_conflicts",
            )  # fmt: skip
        except xr.MergeError as error:
            line = f"{work.path}: measured otherwise in {work.path / EXTENSIONS}; take it again for all rows by analyze"
            raise WorkdirError(f"{line} ({str(error).splitlines()[0]})") from error
        whole = whole.isel(row=work.union[1])
    dataset = _along_axes(whole, work.grid)
    dataset.attrs = {
        "workdir": str(work.path),
        "variant": variant or work.path.resolve().name,
        "config": configs.to_json(work.config),
    }
    return dataset


def load_all(workdir: str | Path, variant: str | None = None) -> xr.Dataset | xr.DataTree:
    """All numbers of a training as a Dataset; of a study's several variants, none of them named, a tree of all.

    Args:
      workdir: a training's folder, or a study's folder with one training a variant.
      variant: which of them.

    Returns:
      A Dataset, see `lab.disk.load.load`, or a DataTree, `tree["seen"].dataset`.

    Raises:
      WorkdirError: nothing to load, or a missing or damaged file.
    """
    found = variants_in(workdir)
    if variant is not None or len(found) == 1:
        return load(workdir, variant)
    return xr.DataTree.from_dict({name: load(workdir, name) for name in found}, name=Path(workdir).resolve().name)


def _rows_of(work: Workdir, without: Container[str], over_time: Container[str]) -> xr.Dataset:
    """Metrics and measurements of one folder, along `row`.

    Args:
      over_time: measurements that have an axis `snapshot`, if not here, then in another folder of the training.
    """
    task = work.experiment.task
    columns: dict[str, list] = {}
    for chunk in read_chunks(work):
        for name, values in chunk.items():
            columns.setdefault(name, []).append(values)
    steps = {name: np.concatenate(columns.pop(name)) for name in ("step", "train_step")}
    diverged_at = columns.pop("diverged_at")[-1]
    variables = {"diverged_at": ((), diverged_at)}
    for name, parts in columns.items():
        time = "train_step" if name in STEP_METRICS else "step"
        variables[name] = ((time,), np.concatenate(parts), task.dims.get(name.split(".")[-1], ()))
    coords = {**steps, **{name: np.array(values) for name, values in task.coords.items()}}
    dataset = _dataset(variables, coords)
    measures = [_measurement(work, name, name in over_time) for name in _measured(work, without)]
    return xr.merge([dataset, *measures], combine_attrs="no_conflicts", compat="no_conflicts", join="outer")


def _measured(work: Workdir, without: Container[str]) -> list[str]:
    return sorted(path.stem for path in work.analysis.glob("[!.]*.json") if path.stem not in without)


def _over_time(parts: Sequence[Workdir], without: Container[str]) -> set[str]:
    """Measurements that some folder has of every snapshot."""
    names = set()
    for part in parts:
        for name in _measured(part, without):
            with contextlib.suppress(DamagedError):  # told where it is read
                if part.read_json(f"analysis/{name}.json").get("every_snapshot"):
                    names.add(name)
    return names


def _measurement(work: Workdir, name: str, over_time: bool) -> xr.Dataset:
    try:
        header, arrays = measurements.read(work, name)
    except DamagedError as error:
        raise DamagedError(f"{error}; the analyze command takes it again (--measure={name})") from error
    if over_time and not header["every_snapshot"]:
        header, arrays = header | {"every_snapshot": True}, {output: values[None] for output, values in arrays.items()}
    before = ("snapshot",) if header["every_snapshot"] else ()
    has_SxR = np.ones((len(header["snapshots"]), len(work.grid)), bool)
    for i, step in enumerate(header["snapshots"]):
        if str(step) in header["rows"]:
            has_SxR[i] = np.isin(np.arange(len(work.grid)), header["rows"][str(step)])
    has = has_SxR if header["every_snapshot"] else has_SxR[0]
    variables = {
        f"{name}.{output}": (before, _with_gaps(values, has), tuple(header["dims"].get(output, ())))
        for output, values in arrays.items()
    }
    coords = {"snapshot": np.array(header["snapshots"])} | {d: np.array(v) for d, v in header["coords"].items()}
    dataset = _dataset(variables, coords)
    for output, unit in header["units"].items():
        dataset[f"{name}.{output}"].attrs |= {"units": unit} | _sequences(work, header) | _left_out(header)
    return dataset


def _sequences(work: Workdir, header: dict) -> dict:
    """Of how many sequences of which split a measurement is; nothing for one of the weights alone."""
    split, n, _ = header.get("batch", ("", 1, ""))
    if n == 1:
        return {}
    train_size = work.config.train_size if split == "train" else 0
    return {"split": split, "n_sequences": min(n, train_size or n)}


def _left_out(header: dict) -> dict:
    """What of the model a measurement does not cover."""
    return {"left_out": ", ".join(header["left_out"])} if "left_out" in header else {}


def _with_gaps(values, has):
    """Values, (S, R, ...) or (R, ...), with NaN for the rows that were not measured."""
    return values if has.all() else np.where(has.reshape(*has.shape, *(1,) * (values.ndim - has.ndim)), values, np.nan)


def _dataset(variables: dict, coords: dict) -> xr.Dataset:
    """Of variables given as (dims before the rows, values, dims after them)."""
    data = {
        name: ((*before, "row", *(after[0] if after else ())), values)
        for name, (before, values, *after) in variables.items()
    }
    used = {dim for dims, _ in data.values() for dim in dims}
    return xr.Dataset(data, {name: value for name, value in coords.items() if name in used})


def _along_axes(dataset: xr.Dataset, grid: Grid) -> xr.Dataset:
    """Unfolds the dimension `row` into the grid's axes, where it is a product."""
    if grid.axes is None:
        return dataset.assign_coords({name: ("row", np.array(column)) for name, column in grid.columns.items()})
    axes, shape = tuple(grid.axes), tuple(len(values) for values in grid.axes.values())
    data = {}
    for name, variable in dataset.data_vars.items():
        at = variable.dims.index("row")
        dims = (*variable.dims[:at], *axes, *variable.dims[at + 1 :])
        values = variable.values.reshape(*variable.shape[:at], *shape, *variable.shape[at + 1 :])
        data[name] = (dims, values, variable.attrs)
    return xr.Dataset(data, {**dataset.coords, **{name: np.array(values) for name, values in grid.axes.items()}})


@xr.register_dataset_accessor("lab")
class Rows:
    """`dataset.lab`: from a place in the Dataset to the row's model and parameters, and to tables.

    What was selected counts as given: `dataset.isel(seed=1).lab.params(gamma=0.8, ...)`.
    """

    def __init__(self, dataset: xr.Dataset):
        self.dataset = dataset
        self.work = united(dataset.attrs["workdir"])

    @property
    def model(self):
        """The model, answering at every position."""
        model = self.work.experiment.model
        return model.clone(readout="all") if hasattr(model, "readout") else model

    @property
    def task(self):
        return self.work.experiment.task

    def row(self, **place) -> int:
        """Index of the only row of the Dataset with these hyperparameters (nearest value within 1e-6).

        Raises:
          ValueError: unknown hyperparameter, or no or several rows match; says what there is to choose from.
        """
        columns = self.work.grid.columns
        for name in place:
            if name not in columns:
                raise ValueError(f"{name}: the grid has {', '.join(columns)}")
        matches = self._selected()
        there = {name: _values(columns[name], matches) for name in columns}
        for name, value in place.items():
            matches &= np.isclose(columns[name], value, rtol=1e-6, atol=0)
        (rows,) = np.nonzero(matches)
        if len(rows) == 1:
            return int(rows[0])
        if len(rows):
            choose = {name: _values(columns[name], matches) for name in columns}
            choose = {name: values for name, values in choose.items() if len(values) > 1}
        else:
            choose = {name: sorted(there[name], key=lambda v, near=near: abs(v - near)) for name, near in place.items()}
        raise ValueError(f"{place}: {len(rows)} rows match; values to choose from: {choose}")

    def params(self, step: int | None = None, **place):
        """Parameters of one row at a snapshot: of `step`, else of the selected `snapshot` or `step`, else the last.

        Raises:
          ValueError: as `row`.
          WorkdirError: no such snapshot, or it is damaged.
        """
        if step is None:
            times = (self.dataset.coords[name] for name in ("snapshot", "step") if name in self.dataset.coords)
            step = next((int(time) for time in times if time.ndim == 0), None)
        return self.work.params(step, self.row(**place))

    def frame(self, *names: str) -> pd.DataFrame:
        """Variables as one long table, a line for each number: its coordinates, `name` and `value`.

        Each variable has a line for every combination of its own dimensions and none of another's, so the table is as
        long as the numbers are many; coordinates that a variable does not have are missing (NaN) in its lines.

        Raises:
          ValueError: no name, or none of the Dataset's variables.
        """
        for name in names:
            if name not in self.dataset.data_vars:
                known = [*map(str, self.dataset.data_vars)]
                hint = limits.nearest(name, known) or "."
                raise ValueError(f"no variable {name!r}{hint} There are {', '.join(known)}")
        if not names:
            raise ValueError(f"which variables? There are {', '.join(map(str, self.dataset.data_vars))}")
        parts = []
        for name in names:
            values = self.dataset[name]
            table = (values if values.ndim else values.expand_dims("line")).to_dataframe(name="value").reset_index()
            parts.append(table.drop(columns="line", errors="ignore").assign(name=name))
        table = pd.concat(parts, ignore_index=True)
        first = ["name", *(column for column in table.columns if column not in ("name", "value"))]
        return table[[*first, "value"]]

    def _selected(self) -> np.ndarray:
        """(R,) bool: the rows of the grid that are still in the Dataset."""
        columns, coords = self.work.grid.columns, self.dataset.coords
        in_step = [name for name in columns if name in coords and coords[name].dims == ("row",)]
        alone = [[name] for name in columns if name in coords and name not in in_step]
        selected_R = np.ones(len(self.work.grid), bool)
        for names in [*alone, *([in_step] if in_step else [])]:  # rows of a grid that is no product go together
            ours_RxN = np.array([columns[name] for name in names], float).T
            there_SxN = np.array([np.atleast_1d(coords[name].values) for name in names], float).T
            same_RxSxN = np.isclose(ours_RxN[:, None], there_SxN[None], rtol=1e-6, atol=0)
            selected_R &= same_RxSxN.all(axis=2).any(axis=1)
        return selected_R


def _values(column: tuple, chosen_R: np.ndarray) -> list:
    """The distinct values of the chosen rows, ascending."""
    return sorted({value for value, is_chosen in zip(column, chosen_R, strict=True) if is_chosen})
