"""Measurements on disk: `analysis/<name>.npz` holds the arrays, `analysis/<name>.json` describes them."""

import numpy as np

from lab.disk import files
from lab.disk.files import DamagedError, npz_hash, read_json, read_npz, write_json, write_npz
from lab.disk.workdir import Workdir

HEADER = ("snapshots", "rows", "every_snapshot", "dims", "coords", "units")  # what says how a measurement is read


def write(work: Workdir, name: str, arrays: dict[str, np.ndarray], header: dict) -> None:
    """`analysis/<name>.npz`, and `analysis/<name>.json` which says what it holds; the header last.

    Args:
      arrays: of shape (R, ...), or (snapshots, R, ...) where `header["every_snapshot"]`.
      header: `HEADER` and what else there is to say: `snapshots`, `rows` (for snapshots of which not all rows were
        measured: which were), `every_snapshot`, `dims` (array -> names of its further axes), `coords`, `units`.
    """
    path = work.analysis / f"{name}.json"
    files.remove(path)
    write_json(path, header | {"npz": write_npz(path.with_suffix(".npz"), arrays)})


def drop(work: Workdir, name: str) -> None:
    for suffix in (".json", ".npz"):
        files.remove(work.analysis / f"{name}{suffix}")


def read(work: Workdir, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays, as given to `write`.

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
