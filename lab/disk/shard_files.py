"""Per-process shards of a checkpoint, with a hash of every file.

A single process writes its rows with orbax. Of several processes each writes its rows as npz, since orbax writes host
arrays in the first process only.
"""

import contextlib
import hashlib
import logging
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from lab.disk import files
from lab.disk.files import DamagedError
from lab.tree import map_named, named_leaves

SPEAKERS = ("absl", "asyncio")  # loggers by which a failed save speaks
PATIENCE = 600  # seconds that a save waits for the part of another process


def write(place: Path, first: int, tree) -> None:
    """Writes a tree of host arrays, whose first row is `first`, into the folder of a save, for `collect`."""
    part = f"rows-{first}" if jax.process_count() == 1 else f"rows-{first}.npz"
    if jax.process_count() == 1:
        with _quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(place.absolute() / part, tree)
    else:
        files.write_npz(place / part, named_leaves(tree))
    files.write_json(place / f"{first}.json", {"leaves": leaves(tree), "files": hashes(place, part)})


def collect(place: Path, first: int) -> dict:
    """What `write` wrote, perhaps in another process: shapes and dtypes of its `leaves`, hashes of its `files`.

    Raises:
      TimeoutError: that process did not.
    """
    path, deadline = place / f"{first}.json", time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rows from {first} on did not come from their process within {PATIENCE} s")
        time.sleep(0.02)
    written = files.read_json(path)
    files.remove(path)
    return written


def read(place: Path, first: int, last: int, like):
    """The rows `first` to `last` - 1, as host arrays.

    Args:
      like: a tree of the structure wanted, with leading row axis; None for plain dicts.
    """
    path = place.absolute() / f"rows-{first}"
    if not path.is_dir():
        arrays = files.read_npz(path.with_suffix(".npz"))
        nested = traverse_util.unflatten_dict(arrays, sep="/")
        return nested if like is None else map_named(lambda name, _: arrays[name], like)

    def abstract(leaf):
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct((last - first, *leaf.shape[1:]), leaf.dtype, sharding=here)

    with _alone() as checkpointer:
        wanted = checkpointer.metadata(path).item_metadata.tree if like is None else like
        return jax.device_get(checkpointer.restore(path, jax.tree.map(abstract, wanted)))


def hashes(place: Path, top: str = "*") -> dict[str, str]:
    """Of every file in a folder and below, by its path there; only of what matches `top` there."""
    found = {}
    below = (path for entry in place.glob(top) for path in ([entry] if entry.is_file() else entry.rglob("*")))
    for path in sorted(below):
        if path.is_file():
            try:
                with path.open("rb") as file:
                    found[str(path.relative_to(place))] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DamagedError(f"{path}: cannot be read ({files.reason(error)})") from error
    return found


def leaves(tree) -> dict[str, list]:
    """Shape and dtype of every leaf, by name."""
    return {name: [list(leaf.shape), str(np.dtype(leaf.dtype))] for name, leaf in named_leaves(tree).items()}


def _alone() -> ocp.Checkpointer:
    """Orbax for this process, which waits for no other."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(me, {me}, f"process-{me}")
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


@contextlib.contextmanager
def _quiet_orbax():
    """A full disk raises one error; beside it, orbax's threads log a page of traceback, and so does, maybe long after,
    every write that was still going on, or asyncio in its name: those stay unheard after a failure.
    """
    heard, before = sys.unraisablehook, {name: logging.getLogger(name).disabled for name in SPEAKERS}
    for name in SPEAKERS:
        logging.getLogger(name).disabled = True
    sys.unraisablehook = lambda told: None if str(told.exc_value) == "Event loop is closed" else heard(told)
    yield
    sys.unraisablehook = heard
    for name, disabled in before.items():
        logging.getLogger(name).disabled = disabled
