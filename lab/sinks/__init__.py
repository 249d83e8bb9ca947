"""`export`: numbers and weights of trainings for other tools, each a sink in a module of its own."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

RUNS = 50  # rows that become runs of an experiment tracker without being asked for


class Sink(NamedTuple):
    """A tool that numbers or weights go to. Its module, `lab.sinks.<name>`, has `write(table, place)`.

    Attributes:
      then: what looks at it.
      place: file or folder in the folder `export` of the workdir; None: a project in the tool's own store.
      package: what it imports beyond this package's own requirements.
      extra: that brings the package.
      tracks: it shows a run a row, so that too many are no help.
      weights: it holds the parameters of each row in a folder, and no metrics.
    """

    then: str
    place: str | None = None
    package: str | None = None
    extra: str | None = None
    tracks: bool = False
    weights: bool = False


SINKS = {
    "csv": Sink("pandas.read_csv({place!r})", "table.csv"),
    "parquet": Sink("pandas.read_parquet({place!r})", "table.parquet", "pyarrow", "parquet"),
    "netcdf": Sink("xarray.open_dataset({place!r})", "dataset.nc"),
    "tensorboard": Sink("tensorboard --logdir={place}", "tensorboard", "tensorboardX", "tensorboard", tracks=True),
    "trackio": Sink("trackio show --project={place}", None, "trackio", "trackio", tracks=True),
    "wandb": Sink("wandb sync {place}/wandb/offline-run-*", "wandb", "wandb", "wandb", tracks=True),
    "safetensors": Sink(
        "lab.models.pretrained_files.read(folder), a folder a row",
        "safetensors",
        "safetensors",
        "pretrained",
        weights=True,
    ),
}


def export(
    workdir: str | Path,
    to: str,
    out: str | Path | None = None,
    rows: Sequence[int] | str | None = None,
    metrics: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> Path:
    """Writes numbers, or weights, of a training, or of a study's trainings, as another tool has them.

    `csv` and `parquet` hold one tidy table: a line for each row of the grid and each step at which anything was
    measured, with the columns `variant`, `row`, the grid's hyperparameters, `diverged_at`, `step`, and one a metric,
    empty where it was not measured. It is written row by row, so it may be larger than the memory. `netcdf` holds the
    Dataset of `lab.load`. `tensorboard`, `trackio` and `wandb` (offline) get a run a row; of more than `RUNS` rows that
    were not asked for they get one table of the last values. `safetensors` holds a folder a row with the parameters of
    its last snapshot in the form of the published checkpoint that its model is of: GPT-2, GPT-NeoX, Llama or Qwen-3.

    Args:
      workdir: a training's folder, or a study's.
      to: one of `SINKS`.
      out: file or folder to write, for `trackio` the name of a project; None: one in the folder `export` of the
        workdir, or named after it. A file is replaced; a folder or project must be new.
      rows: indices in the order of `lab.load`; None or "all": all of them.
      metrics: names of variables, or what stands before their dot (a split, a measurement); None: all that are not
        large, see `lab.series.of`; what was left out is said. Weights have none.
      variants: which trainings of a study; None: all. `netcdf` holds one.
      say: is given what a user should know of it, in lines.

    Returns:
      What was written: its path, or the project.

    Raises:
      ValueError: no such sink, row, metric or variant; or the package that it needs is not installed; or a model whose
        weights no published checkpoint could hold.
      WorkdirError: nothing to export, or a damaged file.
    """
    from lab import limits
    from lab.sinks import table

    if to not in SINKS:
        raise ValueError(f"--to={to}: one of {', '.join(SINKS)}{limits.nearest(to, SINKS)}")
    sink = SINKS[to]
    if sink.package is not None:
        try:
            importlib.import_module(sink.package)
        except ImportError as error:
            line = f"--to={to} needs the package {sink.package}: pip install 'gammalab[{sink.extra}]'"
            raise ValueError(line) from error
    if sink.weights and metrics is not None:
        raise ValueError(f"--metrics={','.join(metrics)}: --to={to} holds weights and no metrics; leave it out")
    read = table.read(workdir, rows, () if sink.weights else metrics, variants, everything=to == "netcdf")
    if rows is None and read.n_rows > RUNS and sink.weights:
        raise ValueError(f"{read.n_rows} rows are as many folders: --rows=all writes them, or name some")
    if rows is None and read.n_rows > RUNS and sink.tracks:
        say(f"{read.n_rows} rows: one table of their last values; --rows=all makes a run of each (or name some)")
        read = read.as_last()
    for name, size in read.left_out.items():
        say(f"left out: {name}, {size} numbers a row and step; --metrics={name} takes it, --to=netcdf has everything")
    place = Path(out) if out is not None else _place(Path(workdir), sink)
    adds = sink.weights or (sink.tracks and sink.place is not None)
    if adds and place.is_dir() and any(place.iterdir()):
        raise ValueError(f"{place}: holds something already, which would be mixed; delete it, or name another --out")
    importlib.import_module(f"lab.sinks.{to}").write(read, place)
    return place


def _place(workdir: Path, sink: Sink) -> Path:
    return Path(workdir.resolve().name) if sink.place is None else workdir / "export" / sink.place
