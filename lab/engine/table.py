"""Metrics on disk, and `load`: everything a training and its analysis left, as one xarray Dataset.

A metric keeps its row axis to disk: one npz file a chunk, (n, R) per metric, named after the step at which it ends.
"""

from collections.abc import Container
from pathlib import Path

import numpy as np
import xarray as xr

from lab.engine import config as configs
from lab.engine import schedule, store
from lab.engine.files import DamagedError, WorkdirError, is_step, npz_hash, read_json, read_npz, write_json, write_npz
from lab.engine.workdir import Workdir, variants_in
from lab.grid import Grid

HEADER = ("snapshots", "rows", "every_snapshot", "dims", "coords", "units")  # what says how a measurement is read
TRAIN_METRICS = ("train_loss", "grad_norm")  # one value a step; all others one an evaluation


def metric_files(folder: Path) -> list[Path]:
    """Chunks in order of their last step."""
    return sorted((path for path in folder.glob("*.npz") if is_step(path.stem)), key=lambda path: int(path.stem))


def forget_after(folder: Path, step: int) -> None:
    """Deletes the chunks that end after `step`: training is about to write them again."""
    for path in metric_files(folder):
        if int(path.stem) > step:
            path.unlink()


def read_chunk(path: Path, steps: range, evaluated: bool) -> dict[str, np.ndarray]:
    """One chunk's metrics.

    Args:
      steps: the training steps it should hold, to the one it is named after.
      evaluated: whether it should end with an evaluation.

    Raises:
      DamagedError: the file is missing or damaged, or is another chunk.
    """
    chunk = read_npz(path)
    held = [chunk[name].tolist() if name in chunk else [] for name in ("train_step", "step")]
    if held != [list(steps), [steps.stop] * evaluated]:
        raise DamagedError(f"{path}: holds other steps than its name says, it was renamed or copied here")
    return chunk


def read_chunks(work: Workdir) -> list[dict[str, np.ndarray]]:
    """The metrics of every chunk up to the newest, so that each step and each evaluation is there once.

    Raises:
      WorkdirError: no metrics yet.
      DamagedError: one is missing or damaged; the message says which steps.
    """
    chunks = schedule.chunks(work.config)
    _, evaluated, _ = schedule.boundaries(work.config)
    there = {int(path.stem) for path in metric_files(work.metrics)}
    reached = max(chunks.keys() & (there | {*store.steps(work.checkpoints)}), default=-1)
    if reached < 0:
        raise WorkdirError(f"{work.path}: no metrics yet")
    due = {end: steps for end, steps in chunks.items() if end <= reached}
    gap = [f"{end}.npz ({_text(due[end])})" for end in due if end not in there]
    if gap:
        raise DamagedError(f"{work.metrics}: missing {', '.join(gap)}; running the train command again repairs it")
    if there - due.keys():
        raise DamagedError(f"{work.metrics / str(min(there - due.keys()))}.npz: no chunk of this training ends there")
    return [read_chunk(work.metrics / f"{end}.npz", steps, end in evaluated) for end, steps in due.items()]


def load(workdir: str | Path, variant: str | None = None, without: Container[str] = ()) -> xr.Dataset:
    """All metrics and measurements of one training.

    Args:
      workdir: a training's folder, or a study's folder with one training a variant.
      variant: which of them; may be left out where there is only one.
      without: measurements to leave out.

    Returns:
      A Dataset. Dimensions: `step` (evaluations), `train_step` (training steps), `snapshot`, and the grid's axes
      (`gamma`, `weight_decay`, `learning_rate`, `seed`, ...), or `row` where the grid is not a product. Variables:
      `train_loss` and `grad_norm` (train_step, ...), `<split>.<score>` (step, ...), `diverged_at` (...; -1 = healthy),
      `<measure>.<name>` (snapshot, ...). `dataset.lab.params(gamma=0.8, ...)` gives a row's parameters.

    Raises:
      WorkdirError: nothing to load, several variants and none named, or a missing or damaged file.
    """
    work = find(workdir, variant)

    task = work.experiment.task
    columns: dict[str, list] = {}
    for chunk in read_chunks(work):
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
    names = sorted(path.stem for path in work.analysis.glob("[!.]*.json") if path.stem not in without)
    measures = [_measurement(work, name) for name in names]
    dataset = xr.merge([dataset, *measures], combine_attrs="no_conflicts", compat="no_conflicts", join="outer")
    dataset.attrs = {
        "workdir": str(work.path),
        "variant": variant or work.path.name,
        "config": configs.to_json(work.config),
    }
    return dataset


def find(workdir: str | Path, variant: str | None = None) -> Workdir:
    """One training of a study's folder; `variant` may be left out where there is only one.

    Raises:
      WorkdirError: there is none, or several and none named.
    """
    found = variants_in(workdir)
    if variant is None and len(found) == 1:
        (variant,) = found
    if variant not in found:
        raise WorkdirError(f"{workdir}: variant={variant!r}; choose one of {', '.join(found)}")
    return found[variant]


def write_measure(work: Workdir, name: str, arrays: dict[str, np.ndarray], header: dict) -> None:
    """`analysis/<name>.npz`, and `analysis/<name>.json` which says what it holds; the header last.

    Args:
      arrays: of shape (R, ...), or (snapshots, R, ...) where `header["every_snapshot"]`.
      header: `HEADER` and what else there is to say: `snapshots`, `rows` (for snapshots of which not all rows were
        measured: which were), `every_snapshot`, `dims` (array -> names of its further axes), `coords`, `units`.
    """
    path = work.analysis / f"{name}.json"
    path.unlink(missing_ok=True)
    write_json(path, header | {"npz": write_npz(path.with_suffix(".npz"), arrays)})


def read_measure(work: Workdir, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays, as given to `write_measure`.

    Raises:
      DamagedError: one of the two is missing or damaged, they are not of the same measurement, or an earlier version
        of this package wrote them.
    """
    path = work.analysis / f"{name}.json"
    header, arrays = read_json(path), read_npz(path.with_suffix(".npz"))
    if header.pop("npz", None) != npz_hash(path.with_suffix(".npz")):
        raise DamagedError(f"{path}: describes another {name}.npz than the one beside it")
    for entry in HEADER:
        if entry not in header:
            raise DamagedError(f"{path}: says nothing of {entry!r}, an earlier version wrote it")
    return header, arrays


def _measurement(work: Workdir, name: str) -> xr.Dataset:
    try:
        header, arrays = read_measure(work, name)
    except DamagedError as error:
        raise DamagedError(f"{error}; the analyze command takes it again (--measure={name})") from error
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
    dataset = _dataset(variables, coords, work.grid)
    for output, unit in header["units"].items():
        dataset[f"{name}.{output}"].attrs["units"] = unit
    return dataset


def _with_gaps(values, has):
    """Values, (S, R, ...) or (R, ...), with NaN for the rows that were not measured."""
    return values if has.all() else np.where(has.reshape(*has.shape, *(1,) * (values.ndim - has.ndim)), values, np.nan)


def _text(steps: range) -> str:
    return f"steps {steps.start} to {steps.stop}" if steps else f"the evaluation at {steps.stop}"


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
