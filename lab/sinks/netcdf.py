"""The Dataset of `lab.load` as a netCDF 3 file, which every reader of netCDF knows; its config is an attribute."""

import json
from pathlib import Path

from lab.disk import files
from lab.sinks.table import Table


def write(table: Table, place: Path) -> None:
    """
    Raises:
      ValueError: several trainings: a Dataset is of one.
    """
    if len(table.trainings) > 1:
        names = ", ".join(training.variant for training in table.trainings)
        raise ValueError(f"--to=netcdf holds one training; --variants= one of {names}")
    (training,) = table.trainings
    dataset, axes = training.dataset, training.dataset["diverged_at"].dims
    if len(training.rows) < dataset["diverged_at"].size:
        flat = dataset if axes == ("row",) else dataset.stack(row=axes).reset_index("row")
        dataset = flat.isel(row=list(training.rows)).assign_coords(row=list(training.rows))
    config = json.dumps(training.dataset.attrs["config"])
    with files.writing(place) as temporary:
        dataset.assign_attrs(config=config).to_netcdf(temporary, engine="scipy")
