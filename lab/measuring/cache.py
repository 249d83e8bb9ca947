"""Caches results of a measurement in a workdir, by snapshot, row and precision."""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np

from lab.disk import measurements
from lab.disk.files import DamagedError
from lab.disk.workdir import Workdir
from lab.measuring.declare import PRECISIONS

KEYS = {"precision", "float64"}  # of a header, beside those of `measurements.write`


class Cache:
    """Results of one measurement.

    Attributes:
      outputs: snapshot -> its outputs, each (R, ...); NaN, or 0 in whole numbers, for rows that were not measured.
      level: snapshot -> (R,) int8: 0 for rows that were not measured, else 1 + the index of their precision in
        `PRECISIONS`.
      device_kinds: kinds of the devices that computed any of it, where that is known.
    """

    def __init__(self, n_rows: int):
        self.n_rows = n_rows
        self.outputs: dict[int, dict[str, np.ndarray]] = {}
        self.level: dict[int, np.ndarray] = {}
        self.device_kinds: set[str] = set()

    def add(self, step: int, rows: Sequence[int], outputs: Mapping[str, np.ndarray], precision: str) -> None:
        """Outputs of some rows, (len(rows), ...), at a snapshot."""
        if step not in self.level:
            self.level[step] = np.zeros(self.n_rows, np.int8)
            self.outputs[step] = {name: _nothing(values, self.n_rows) for name, values in outputs.items()}
        self.level[step][rows] = 1 + PRECISIONS.index(precision)
        for name, values in outputs.items():
            merged = self.outputs[step][name]
            merged = merged.astype(np.promote_types(merged.dtype, values.dtype))
            merged[rows] = values
            self.outputs[step][name] = merged

    def missing(self, step: int, rows: Sequence[int], precision: str) -> list[int]:
        """The rows without a result of at least this precision at a snapshot."""
        level_R = self.level.get(step, np.zeros(self.n_rows, np.int8))
        return [row for row in rows if level_R[row] < 1 + PRECISIONS.index(precision)]


def read(work: Workdir, name: str, identity: Mapping) -> Cache:
    """The results that the workdir holds of a measurement with this identity; empty if they are damaged.

    Args:
      identity: what its header must say for the numbers to mean what is asked for.
    """
    cached = Cache(len(work.grid))
    try:
        header, arrays = measurements.read(work, name)
    except DamagedError:
        return cached
    if not header.items() >= identity.items() or not header.keys() >= KEYS:
        return cached
    cached.device_kinds.update(header.get("device_kinds", ()))
    whole = {*work.snapshot_steps(), *work.pruned}
    for i, step in enumerate(header["snapshots"]):
        if step in whole:
            values = {name: a[i] if header["every_snapshot"] else a for name, a in arrays.items()}
            rows = header["rows"].get(str(step), list(range(cached.n_rows)))
            cached.add(step, rows, {name: a[rows] for name, a in values.items()}, header["precision"])
            cached.level[step][header["float64"].get(str(step), [])] = 1 + PRECISIONS.index("float64")
    return cached


def drop_other(work: Workdir, name: str, identity: Mapping) -> bool:
    """Drops results that mean something else than what is measured now in another folder; whether there were any."""
    with contextlib.suppress(DamagedError):
        if not measurements.read(work, name)[0].items() >= identity.items():
            measurements.drop(work, name)
            return True
    return False


def write(work: Workdir, name: str, identity: Mapping, cached: Cache, without_axis: bool) -> None:
    """Writes results to the workdir, in place of those that are there.

    Args:
      without_axis: it is of one snapshot only, and its arrays are written without an axis for it.

    Raises:
      SaveError: the disk is full or cannot be written to.
    """
    steps = sorted(cached.level)
    arrays = {output: np.stack([cached.outputs[step][output] for step in steps]) for output in cached.outputs[steps[0]]}
    if without_axis:
        arrays = {output: values[0] for output, values in arrays.items()}
    level_SxR = np.stack([cached.level[step] for step in steps])
    least = PRECISIONS[level_SxR[level_SxR > 0].min() - 1]
    better_SxR = level_SxR > 1 + PRECISIONS.index(least)
    header = {
        "snapshots": steps,
        "rows": {str(step): _where(has_R) for step, has_R in zip(steps, level_SxR > 0, strict=True) if not has_R.all()},
        "every_snapshot": not without_axis,
        "precision": least,
        "device_kinds": sorted(cached.device_kinds),
        "float64": {str(step): _where(has_R) for step, has_R in zip(steps, better_SxR, strict=True) if has_R.any()},
    }
    measurements.write(work, name, arrays, header | dict(identity))


def _where(has_R: np.ndarray) -> list[int]:
    return np.flatnonzero(has_R).tolist()


def _nothing(values: np.ndarray, n_rows: int) -> np.ndarray:
    empty = np.nan if np.issubdtype(values.dtype, np.inexact) else 0
    return np.full((n_rows, *values.shape[1:]), empty, values.dtype)
