"""Initial weights of a training: drawn anew, or the final weights of rows of another training.

`config.start.variant` names the other one, the *source*, in the folder beside. Row i starts from the row of the source
whose hyperparameters are: those that `start.row` names, as it says; every other column of the source's grid, as row i
has it. Numbers are compared as programs see them, in float32. Moments of the optimizer and steps start anew.
"""

import functools
import hashlib
from pathlib import Path

import jax
import ml_collections
import numpy as np

from lab import config as configs
from lab import limits, schedule
from lab.disk import metrics, store
from lab.disk.files import DamagedError, WorkdirError
from lab.disk.workdir import Workdir, united
from lab.engine import step as steps
from lab.grid import Grid
from lab.tree import named_leaves

Planned = tuple[ml_collections.ConfigDict, Grid]


def check(path: Path, config: ml_collections.ConfigDict, grid: Grid, source: Planned | None) -> None:
    """Refuses what no training of the source could make possible; it need not be trained yet.

    Args:
      path: of the new training's folder.
      source: its config and grid; None: those in its folder.

    Raises:
      ValueError: a row that no or several rows of the source match, or other parameters than the source's.
      WorkdirError: there is no such training.
    """
    if not config.start.variant:
        return
    if source is None:
        held = _source(path, config)
        if not (held.path / "config.json").is_file():
            raise WorkdirError(
                f"start.variant={config.start.variant!r}: no training in {held.path}; train that variant first"
            )
        source = held.config, held.grid
    matched(config.start, grid, source[1])
    ours, theirs = _parameters(config, grid), _parameters(*source)
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"start.variant={config.start.variant!r}: {name} is {theirs.get(name, 'absent')} there and "
                f"{ours.get(name, 'absent')} here; a start needs equal parameters"
            )


def matched(start: ml_collections.ConfigDict, grid: Grid, source: Grid) -> list[int]:
    """The source's row for every row of a grid; see the head of this module.

    Raises:
      ValueError: `start.row` names what the source's grid does not have; a column of the source's that neither it nor
        the grid has; a row that no row of the source matches, or several.
    """
    said, has = f"start.variant={start.variant!r}", _values(source)
    for name in start.row:
        if name not in source.columns:
            hint = limits.nearest(name, source.columns)
            raise ValueError(f"start.row.{name}: no axis of {start.variant}, which has {has}{hint}")
    for name in source.columns:
        if name not in start.row and name not in grid.columns:
            raise ValueError(f"start.row lacks {name}: this grid has no such axis, and {start.variant} has {has}")

    places: dict[tuple, list[int]] = {}
    for row, values in enumerate(_rows(source, tuple(source.columns))):
        places.setdefault(values, []).append(row)
    given = {name: (value,) * len(grid) for name, value in start.row.items()}
    wanted = _rows(Grid(dict(grid.columns) | given), tuple(source.columns))
    for row, values in enumerate(wanted):
        if len(places.get(values, ())) != 1:
            asked = ", ".join(f"{name} {value:.6g}" for name, value in zip(source.columns, values, strict=True))
            found = f"{len(places.get(values, ()))} rows of {start.variant} have {asked}"
            raise ValueError(f"{said}: for row {row} exactly one must match, {found}; it has {has}")
    return [places[values][0] for values in wanted]


def weights(path: Path, config: ml_collections.ConfigDict, grid: Grid, first: int, last: int) -> dict:
    """Where the rows `first` to `last` - 1 start, as fields of `RowState`, host arrays with leading row axis.

    Empty where they are drawn anew. Else `params`: the source's last, of its last snapshot; and `diverged_at`, int32:
    -1, but 0 where the source's row had diverged. Its weights are those of before it did, so a training from there
    would look sound and be none: the row is frozen, and shows as diverged from its start on.

    Raises:
      ValueError: as `matched`.
      WorkdirError: the source is not trained to its end, or damaged.
    """
    if not config.start.variant:
        return {}
    source = _source(path, config)
    if line := waits_for(path, config):
        raise WorkdirError(f"{path} {line}; train that variant first")
    total = source.config.steps
    parts, places = [], []
    for part, where, rows in source.by_part(matched(config.start, grid, source.grid)[first:last]):
        try:
            held = store.restore(part.snapshots, total, rows=(int(rows.min()), int(rows.max()) + 1))
            chunk = metrics.read_chunk(part.metrics / f"{total}.npz", schedule.chunks(part.config)[total], True)
        except DamagedError as error:
            raise DamagedError(f"{error}; the train command makes it again") from error
        diverged_at = np.where(chunk["diverged_at"][rows] < 0, -1, 0).astype(np.int32)
        parts.append({"params": store.take_row(held, rows - rows.min()), "diverged_at": diverged_at})
        places.append(where)
    return parts[0] if len(parts) == 1 else store.join(parts, np.argsort(np.concatenate(places)))


def waits_for(path: Path, config: ml_collections.ConfigDict) -> str:
    """What is to be said of a training that cannot start, since its source is not trained to its end; else empty."""
    if not config.start.variant or (source := _source(path, config)).trained():
        return ""
    return f"starts from {source.path}, which is not trained to its end"


def identity(path: Path, config: ml_collections.ConfigDict, grid: Grid) -> dict[str, str]:
    """What config.json keeps of where a training starts: a hash of all its `weights`; empty where drawn anew.

    Of numbers and not of files, so that a source that is trained again, to the same bytes, is the same.

    Raises:
      ValueError, WorkdirError: as `weights`.
    """
    found = weights(path, config, grid, 0, len(grid))
    if not found:
        return {}
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(found).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape} ".encode() + np.ascontiguousarray(leaf).tobytes())
    return {"weights": digest.hexdigest()}


def refuse_other(work: Workdir) -> None:
    """
    Raises:
      WorkdirError: the source is not what this training started from; nothing is said where it is not trained.
    """
    if waits_for(work.path, work.config):
        return
    try:
        now = identity(work.path, work.config, work.grid)
    except ValueError:  # trained again with another grid, or another model
        now = {}
    if configs.differences(work.started_from, now):
        source = _source(work.path, work.config).path
        raise WorkdirError(f"{work.path} started from other weights than {source} ends with now; use another workdir")


def _source(path: Path, config: ml_collections.ConfigDict) -> Workdir:
    work = Workdir(path)
    return united((work.extends or work).path.parent / config.start.variant)


def _parameters(config: ml_collections.ConfigDict, grid: Grid) -> dict[str, str]:
    """Shape and dtype of every parameter of a row, by name."""
    drawn = jax.eval_shape(functools.partial(steps.start, configs.experiment(config)), grid.row(0)).params
    return {name: f"{leaf.shape} {leaf.dtype}" for name, leaf in named_leaves(drawn).items()}


def _rows(grid: Grid, names: tuple[str, ...]) -> list[tuple]:
    """The rows of a grid as the numbers that programs see."""
    arrays = grid.arrays()
    return list(zip(*(arrays[name].tolist() for name in names), strict=True))


def _values(grid: Grid) -> str:
    """What there is to choose from."""
    return ", ".join(f"{name} {sorted(set(column))}" for name, column in grid.columns.items())
