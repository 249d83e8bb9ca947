"""Checkpoints and snapshots: orbax arrays, each folder with a manifest of hashes, renamed into place when complete.

Orbax alone restores a flipped bit silently and takes any numbered folder for a step, so nothing is read here that its
manifest does not vouch for.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from lab.tree import named_leaves

MANIFEST = "manifest.json"


class DamagedError(Exception):
    """A folder whose files are not those its manifest lists."""


@contextlib.contextmanager
def whole_file(path: Path):
    """A binary file to write to, that takes its name when it is complete and on disk, and not before."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value) -> None:
    """JSON, complete or not there at all."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def save(folder: Path, step: int, tree) -> None:
    """Writes a tree of host arrays to `folder/<step>`; an earlier save of it stays until this one is complete."""
    final, temporary = folder / str(step), folder / f".{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(temporary.absolute() / "arrays", tree)
    write_json(temporary / MANIFEST, {"step": step, "leaves": _leaves(tree), "files": _hashes(temporary)})
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)


def restore(folder: Path, step: int, like=None):
    """The tree saved at a step, as host arrays.

    Args:
      like: a tree of the expected structure, shapes and dtypes (namedtuples come back as such); None for plain dicts.

    Raises:
      DamagedError: a file is missing, added or altered, or shapes or dtypes differ from `like`.
    """
    place = folder / str(step)
    manifest = verify(place)
    if manifest.get("step") != step:
        raise DamagedError(f"{place}: holds step {manifest.get('step')}, it was renamed or copied here")
    if like is not None and manifest["leaves"] != _leaves(like):
        raise DamagedError(f"{place}: holds arrays of other names, shapes or dtypes than this training's")
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = place.absolute() / "arrays"
        wanted = checkpointer.metadata(arrays).item_metadata.tree if like is None else like
        return jax.device_get(checkpointer.restore(arrays, jax.tree.map(_abstract, wanted)))


def take_row(tree_R, row: int):
    """One row of a tree of host arrays."""
    return jax.tree.map(lambda leaf: leaf[row], tree_R)


def steps(folder: Path) -> list[int]:
    """Steps saved in a folder, oldest first; unfinished saves and foreign names are not among them."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def restore_newest(folder: Path, like, report) -> tuple[int, object] | None:
    """Step and tree of the newest save that verifies; damaged ones are reported and set aside as `damaged-<step>`."""
    for step in reversed(steps(folder)):
        try:
            return step, restore(folder, step, like)
        except DamagedError as error:
            report(f"checkpoint {step} is damaged ({error}); set aside, trying an older one")
            aside = folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(step)).rename(aside)
    return None


def keep_newest(folder: Path, count: int) -> None:
    """Deletes all but the newest `count` saves."""
    for step in steps(folder)[:-count]:
        shutil.rmtree(folder / str(step))


def verify(place: Path) -> dict:
    """Compares a folder with its manifest, and returns that.

    Raises:
      DamagedError: naming the first difference.
    """
    try:
        manifest = json.loads((place / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{place}: no readable {MANIFEST}") from error
    found = _hashes(place)
    for name in sorted(files.keys() | found.keys()):
        if name not in found:
            raise DamagedError(f"{place}: {name} is missing")
        if files.get(name) != found[name]:
            raise DamagedError(f"{place}: {name} is not what was written")
    return manifest


def _hashes(place: Path) -> dict[str, str]:
    files = (path for path in sorted(place.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _leaves(tree) -> dict[str, list]:
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in named_leaves(tree).items()}


def _abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
