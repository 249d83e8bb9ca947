"""Metrics on disk, and `load`: everything a training and its analysis left, as one xarray Dataset.

A metric keeps its row axis to disk: one npz file a chunk, (n, R) per metric, written under another name and renamed.
"""

from pathlib import Path

import numpy as np
import xarray as xr

from lab.engine import config as configs
from lab.engine.store import whole_file, write_json
from lab.engine.workdir import Workdir, WorkdirError, variants_in
from lab.grid import Grid

TRAIN_METRICS = ("train_loss", "grad_norm")  # one value a step; all others one an evaluation


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An npz file, complete or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        np.savez(file, **arrays)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """
    Raises:
      WorkdirError: the file is damaged (every member carries a checksum).
    """
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise WorkdirError(f"{path}: damaged ({error})") from error


def metric_files(folder: Path) -> list[Path]:
    """Chunks in order of their last step."""
    return sorted((path for path in folder.glob("*.npz") if path.stem.isdigit()), key=lambda path: int(path.stem))


def forget_after(folder: Path, step: int) -> None:
    """Deletes the chunks that end after `step`: training is about to write them again."""
    for path in metric_files(folder):
        if int(path.stem) > step:
            path.unlink()


def load(workdir: str | Path, variant: str | None = None) -> xr.Dataset:
    """All metrics and measurements of one training.

    Args:
      workdir: a training's folder, or a study's folder with one training a variant.
      variant: which of them; may be left out where there is only one.

    Returns:
      A Dataset. Dimensions: `step` (evaluations), `train_step` (training steps), `snapshot`, and the grid's axes
      (`gamma`, `weight_decay`, `learning_rate`, `seed`, ...), or `row` where the grid is not a product. Variables:
      `train_loss` and `grad_norm` (train_step, ...), `<split>.<score>` (step, ...), `diverged_at` (...; -1 = healthy),
      `<measure>.<name>` (snapshot, ...). `dataset.lab.params(gamma=0.8, ...)` gives a row's parameters.

    Raises:
      WorkdirError: nothing to load, several variants and none named, or a damaged file.
    """
    found = variants_in(workdir)
    if variant is None and len(found) == 1:
        (variant,) = found
    if variant not in found:
        raise WorkdirError(f"{workdir}: variant={variant!r}; choose one of {', '.join(found)}")
    work = found[variant]
    chunks = [read_npz(path) for path in metric_files(work.metrics)]
    if not chunks:
        raise WorkdirError(f"{work.path}: no metrics yet")

    task = work.experiment.task
    columns: dict[str, list] = {}
    for chunk in chunks:
        for name, values in chunk.items():
            columns.setdefault(name, []).append(values)
    steps = {name: np.concatenate(columns.pop(name)) for name in ("step", "train_step")}
    diverged_at = columns.pop("diverged_at")[-1]
    variables = {"diverged_at": ((), diverged_at)}
    for name, parts in columns.items():
        time = "train_step" if name in TRAIN_METRICS else "step"
        variables[name] = ((time,), np.concatenate(parts), task.dims.get(name.split(".")[-1], ()))
    coords = {**steps, **{name: np.array(values) for name, values in task.coords.items()}}
    dataset = _dataset(variables, coords, work.grid)
    measures = [_read_measure(work, path.stem) for path in sorted(work.analysis.glob("*.json"))]
    dataset = xr.merge([dataset, *measures], combine_attrs="no_conflicts", compat="no_conflicts", join="outer")
    dataset.attrs = {"workdir": str(work.path), "variant": variant, "config": configs.to_json(work.config)}
    return dataset


def write_measure(work: Workdir, name: str, arrays: dict[str, np.ndarray], header: dict) -> None:
    """`analysis/<name>.npz`, and `analysis/<name>.json` which says what it holds; the header last.

    Args:
      arrays: of shape (R, ...), or (snapshots, R, ...) where `header["every_snapshot"]`.
      header: `snapshots`, `every_snapshot`, `dims` (array -> names of its further axes), `coords`, `units`.
    """
    path = work.analysis / f"{name}.json"
    path.unlink(missing_ok=True)
    write_npz(path.with_suffix(".npz"), arrays)
    write_json(path, header)


def read_header(work: Workdir, name: str) -> dict | None:
    """What `write_measure` noted; None if the measurement is not there or not complete."""
    path = work.analysis / f"{name}.json"
    return work.read_json(f"analysis/{name}.json") if path.is_file() and path.with_suffix(".npz").is_file() else None


def _read_measure(work: Workdir, name: str) -> xr.Dataset:
    header = work.read_json(f"analysis/{name}.json")
    before = ("snapshot",) if header["every_snapshot"] else ()
    variables = {
        f"{name}.{output}": (before, values, tuple(header["dims"].get(output, ())))
        for output, values in read_npz(work.analysis / f"{name}.npz").items()
    }
    coords = {"snapshot": np.array(header["snapshots"])} | {d: np.array(v) for d, v in header["coords"].items()}
    dataset = _dataset(variables, coords, work.grid)
    for output, unit in header["units"].items():
        dataset[f"{name}.{output}"].attrs["units"] = unit
    return dataset


def _dataset(variables: dict, coords: dict, grid: Grid) -> xr.Dataset:
    """Unfolds the row axis of variables, given as (dims before it, values, dims after it), into the grid's axes."""
    if grid.axes is None:
        axes, shape = ("row",), (len(grid),)
        coords = coords | {name: ("row", np.array(column)) for name, column in grid.columns.items()}
    else:
        axes, shape = tuple(grid.axes), tuple(len(values) for values in grid.axes.values())
        coords = coords | {name: np.array(values) for name, values in grid.axes.items()}

    data = {}
    for name, (before, values, *after) in variables.items():
        n = len(before)
        values = values.reshape(*values.shape[:n], *shape, *values.shape[n + 1 :])
        data[name] = ((*before, *axes, *(after[0] if after else ())), values)
    used = {dim for dims, _ in data.values() for dim in dims}
    kept = {name: value for name, value in coords.items() if name in used or isinstance(value, tuple)}
    return xr.Dataset(data, kept)


@xr.register_dataset_accessor("lab")
class Rows:
    """`dataset.lab`: from a place in the Dataset to the row's model and parameters."""

    def __init__(self, dataset: xr.Dataset):
        self.work = Workdir(dataset.attrs["workdir"])

    @property
    def model(self):
        """The model, answering at every position."""
        model = self.work.experiment.model
        return model.clone(readout="all") if hasattr(model, "readout") else model

    @property
    def task(self):
        return self.work.experiment.task

    def row(self, **place) -> int:
        """Index of the only row with these hyperparameters (nearest value within 1e-6).

        Raises:
          ValueError: unknown hyperparameter, or no or several rows match.
        """
        columns = self.work.grid.columns
        for name in place:
            if name not in columns:
                raise ValueError(f"{name}: the grid has {', '.join(columns)}")
        matches = np.ones(len(self.work.grid), bool)
        for name, value in place.items():
            matches &= np.isclose(columns[name], value, rtol=1e-6, atol=0)
        (rows,) = np.nonzero(matches)
        if len(rows) != 1:
            free = {name: sorted(set(np.array(columns[name])[matches].tolist())) for name in columns}
            raise ValueError(f"{place}: {len(rows)} rows match; values to choose from: {free}")
        return int(rows[0])

    def params(self, step: int | None = None, **place):
        """Parameters of one row at a snapshot (default: the last)."""
        return self.work.params(step, self.row(**place))
