"""Extends trainings: rows that a training lacks are trained in a folder of their own in its folder."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_collections

from lab import config as configs
from lab import families
from lab import grid as grids
from lab.disk.files import DamagedError, WorkdirError
from lab.disk.provenance import provenance
from lab.disk.workdir import EXTENSIONS, Workdir
from lab.engine import plan, shard
from lab.engine.plan import Plan
from lab.grid import Grid

AS_WIDE = "as wide as those that were there"
SAME_BITS = "at this width their bits are those that they would have from the beginning"

Part = tuple[ml_collections.ConfigDict, Workdir, Grid]  # config, folder and rows of one folder


def parts(work: Workdir, config: ml_collections.ConfigDict, grid: Grid) -> list[Part]:
    """The folders that rows are in, or are to be trained in: the training's own, then its extensions in order.

    Where the folder holds the same training of fewer rows, those that are in no folder get one more. All others keep
    the config and the rows that they have. A folder that holds another training is left to be refused.

    Raises:
      ValueError: several processes have joined; or a row is asked for once more than it is there.
      WorkdirError: it is not known which rows a folder holds.
    """
    extensions = work.extensions
    try:
        held = work.config, work.grid
    except DamagedError as error:
        if any(len(grids.lacking(part.grid, [grid]) or ()) < len(part.grid) for part in extensions):
            raise WorkdirError(f"{error}; first train the rows that it began with, none of the added ones") from error
        return [(config, work, grid)]
    if not _is_held(held, config, grid):
        return [(config, work, grid)]
    found = [(held[0], work, held[1])]
    found.extend((held[0], part, _rows_of(part)) for part in extensions)
    if (missing := grids.lacking(grid, [rows for _, _, rows in found])) is not None:
        if any(grids.have_common_rows(missing, rows) for _, _, rows in found):
            raise ValueError(f"{work.path}: some rows are there and asked for once more; those to be added must be new")
        number = int(extensions[-1].path.name) + 1 if extensions else 1
        found.append((held[0], Workdir(work.path / EXTENSIONS / str(number)), missing))
    if len(found) > 1 and jax.process_count() > 1:
        raise ValueError(f"{work.path}: rows are added to a training by one process alone, not by several that joined")
    return found


def larger_grid(work: Workdir, axes: Mapping[str, Sequence]) -> Grid:
    """All rows of a training, with more values of some axes; raises as `Grid.extended`, WorkdirError for lost rows."""
    grid, _ = grids.union([Workdir(work.path).grid, *map(_rows_of, work.extensions)])
    for name, values in axes.items():
        grid = grid.extended(name, values)
    return grid


def _rows_of(part: Workdir) -> Grid:
    try:
        return part.grid
    except DamagedError as error:
        raise WorkdirError(f"{error}; move {part.path} away to train its rows again") from error


def recall_plan(work: Workdir, n_rows: int, report: Callable[[str], None]) -> Plan | None:
    """The plan of the training that is extended, for some more rows: as wide as its blocks were.

    It is noted as theirs, if it was made for devices like these. None where there is none, or nothing is extended.
    """
    main = work.extends
    held = None if main is None else plan.recall(main.path)
    if held is None or held.devices != plan.device_names():
        return held
    data_devices, n_held = main.config.data_devices, len(main.grid)
    theirs = shard.layout(shard.run_mesh(n_held, data_devices), n_held, held.width, held.row_batches)
    rows_each = math.ceil(n_rows / shard.run_mesh(n_rows, data_devices).shape["run"])
    row_batches = math.ceil(rows_each / theirs.rows_each)
    ours = dataclasses.replace(held, width=theirs.width, row_batches=row_batches, reason=AS_WIDE)
    plan.record(work.path, ours)
    changed = configs.differences(main.read_json("config.json").get("versions", {}), provenance()["versions"])
    bits = f"they agree up to rounding, for other versions made those: {'; '.join(changed)}" if changed else SAME_BITS
    report(f"{work.path}: {n_rows} more rows of {main.path}; {bits}")
    return ours


def _is_held(held: tuple[ml_collections.ConfigDict, Grid], config: ml_collections.ConfigDict, grid: Grid) -> bool:
    """Whether all rows of a training are among those asked for, and nothing else of it differs."""
    ours, theirs = ({**configs.to_json(families.completed(one)), "grid": None} for one in (held[0], config))
    same = not configs.differences(ours, theirs) and held[1].columns.keys() == grid.columns.keys()
    return same and grids.lacking(held[1], [grid]) is None
