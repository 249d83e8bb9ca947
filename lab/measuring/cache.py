"""What a workdir holds of a measurement: of which snapshots and rows, and how exactly each was measured."""

from collections.abc import Mapping, Sequence

import numpy as np

from lab.disk import measurements
from lab.disk.files import DamagedError
from lab.disk.workdir import Workdir
from lab.measuring.declare import PRECISIONS

KEYS = {"precision", "float64"}  # of a header, beside those of `measurements.write`


class Cache:
    """A measurement so far.

    Attributes:
      outputs: snapshot -> its outputs, each (R, ...); NaN, or 0 in whole numbers, for rows that were not measured.
      exact: snapshot -> (R,) int8: 0 for rows that were not measured, else 1 + the place of theirs in `PRECISIONS`.
    """

    def __init__(self, n_rows: int):
        self.n_rows = n_rows
        self.outputs: dict[int, dict[str, np.ndarray]] = {}
        self.exact: dict[int, np.ndarray] = {}

    def add(self, step: int, rows: Sequence[int], outputs: Mapping[str, np.ndarray], precision: str) -> None:
        """Outputs of some rows, (len(rows), ...), at a snapshot."""
        if step not in self.exact:
            self.exact[step] = np.zeros(self.n_rows, np.int8)
            self.outputs[step] = {name: _nothing(values, self.n_rows) for name, values in outputs.items()}
        self.exact[step][rows] = 1 + PRECISIONS.index(precision)
        for name, values in outputs.items():
            held = self.outputs[step][name]
            held = held.astype(np.promote_types(held.dtype, values.dtype))
            held[rows] = values
            self.outputs[step][name] = held

    def missing(self, step: int, rows: Sequence[int], precision: str) -> list[int]:
        """Those of the rows that are not held at a snapshot, or less exactly than that."""
        exact_R = self.exact.get(step, np.zeros(self.n_rows, np.int8))
        return [row for row in rows if exact_R[row] < 1 + PRECISIONS.index(precision)]


def read(work: Workdir, name: str, identity: Mapping) -> Cache:
    """What the workdir holds of a measurement with this identity, of the snapshots that are there; nothing if damaged.

    Args:
      identity: what its header must say for the numbers to mean what is asked for.
    """
    held = Cache(len(work.grid))
    try:
        header, arrays = measurements.read(work, name)
    except DamagedError:
        return held
    if not header.items() >= identity.items() or not header.keys() >= KEYS:
        return held
    whole = set(work.snapshot_steps())
    for i, step in enumerate(header["snapshots"]):
        if step in whole:
            values = {name: a[i] if header["every_snapshot"] else a for name, a in arrays.items()}
            rows = header["rows"].get(str(step), list(range(held.n_rows)))
            held.add(step, rows, {name: a[rows] for name, a in values.items()}, header["precision"])
            held.exact[step][header["float64"].get(str(step), [])] = 1 + PRECISIONS.index("float64")
    return held


def write(work: Workdir, name: str, identity: Mapping, held: Cache, without_axis: bool) -> None:
    """Puts a measurement in the workdir in place of what is there.

    Args:
      without_axis: it is of one snapshot only, and its arrays are written without an axis for it.

    Raises:
      SaveError: the disk is full or cannot be written to.
    """
    steps = sorted(held.exact)
    arrays = {output: np.stack([held.outputs[step][output] for step in steps]) for output in held.outputs[steps[0]]}
    if without_axis:
        arrays = {output: values[0] for output, values in arrays.items()}
    held_SxR = np.stack([held.exact[step] for step in steps])
    least = PRECISIONS[held_SxR[held_SxR > 0].min() - 1]
    better_SxR = held_SxR > 1 + PRECISIONS.index(least)
    header = {
        "snapshots": steps,
        "rows": {str(step): _where(has_R) for step, has_R in zip(steps, held_SxR > 0, strict=True) if not has_R.all()},
        "every_snapshot": not without_axis,
        "precision": least,
        "float64": {str(step): _where(has_R) for step, has_R in zip(steps, better_SxR, strict=True) if has_R.any()},
    }
    measurements.write(work, name, arrays, header | dict(identity))


def _where(has_R: np.ndarray) -> list[int]:
    return np.flatnonzero(has_R).tolist()


def _nothing(values: np.ndarray, n_rows: int) -> np.ndarray:
    empty = np.nan if np.issubdtype(values.dtype, np.inexact) else 0
    return np.full((n_rows, *values.shape[1:]), empty, values.dtype)
