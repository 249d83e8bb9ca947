"""Checkpoints and snapshots: folders of orbax arrays with a manifest of hashes, renamed into place when complete.

Orbax restores a flipped bit silently and takes any numbered folder for a step. So every restore verifies the manifest.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from lab.disk import files, shard_files
from lab.disk.files import DamagedError, SaveError, read_json, write_json

MANIFEST = "manifest.json"


def save(folder: Path, step: int, tree, first: int = 0, parts: Sequence[int] = (0,)) -> None:
    """Writes a tree of host arrays to `folder/<step>`; an earlier save of it stays until this one is complete.

    Where several processes hold rows, each calls this with its own, and the first one completes the save when all have
    written theirs.

    Args:
      first: the row that `tree` starts with.
      parts: the first rows of all the processes; one that holds none does nothing.

    Raises:
      SaveError: it could not be written; nothing is left of it, and what was saved before is still there.
    """
    final, temporary = folder / str(step), folder / f".{step}.tmp"
    if jax.process_index() >= len(parts):
        return
    try:
        if jax.process_count() == 1:
            files.remove(temporary)
        temporary.mkdir(parents=True, exist_ok=True)
        shard_files.write(temporary, first, tree)
        if first == parts[0]:
            training = files.training_of(folder.parent)
            written = {str(first): shard_files.collect(temporary, first) for first in parts}
            manifest = {"step": step, "folder": folder.name, "training": training, "parts": written}
            write_json(temporary / MANIFEST, manifest)
            _replace(temporary, final)
    except Exception as error:  # orbax and tensorstore raise kinds of their own
        files.remove(temporary)
        raise SaveError(f"{final}: could not be written ({files.reason(error)}); {_newest_whole(folder)}") from error


def restore(folder: Path, step: int, like=None, rows: tuple[int, int] | None = None):
    """The tree saved at a step, as host arrays.

    Args:
      like: a tree of the expected structure, shapes and dtypes (namedtuples come back as such); None for plain dicts.
      rows: the first row wanted and the one after the last; None: all.

    Raises:
      DamagedError: a file is missing, added or altered, the save is another training's, or shapes or dtypes differ
        from `like`.
    """
    place = folder / str(step)
    manifest = verify(place)
    if like is not None:
        _refuse_other_leaves(place, manifest, like)
    parts = []
    for first, last in _row_ranges(manifest):
        start, stop = (0, last) if rows is None else rows
        if start < last and first < stop:
            held = shard_files.read(place, first, last, like)
            parts.append(take_rows(held, max(start - first, 0), stop - first))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def take_row(tree_R, row: int):
    """One row of a tree of host arrays."""
    return jax.tree.map(lambda leaf: leaf[row], tree_R)


def take_rows(tree_R, first: int, last: int):
    """Rows `first` to `last` - 1 of a tree of host arrays."""
    return jax.tree.map(lambda leaf: leaf[first:last], tree_R)


def join(trees_R: Sequence, order: np.ndarray):
    """The rows of several trees of host arrays, counted one after the other, in this order."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *trees_R)


def newest_whole(folder: Path, like, report: Callable[[str], None], newest: int | None = None) -> int | None:
    """The step of the newest save that verifies; damaged ones are reported and set aside as `damaged-<step>`.

    Args:
      newest: the last step before which nothing is missing, see `verify.sound_until`; None: nothing is missing. Later
        saves are set aside too, however whole they are. Training promises the same bytes as if it had never been
        interrupted, in its metrics and snapshots too: continuing behind a hole would leave the hole, so it is trained
        again, and the later saves with it.
    """
    for step in reversed(files.steps(folder)):
        if newest is not None and step > newest:
            report(f"checkpoint {step} is whole, but not all that was recorded before it; set aside, to train it again")
        else:
            try:
                _refuse_other_leaves(folder / str(step), verify(folder / str(step)), like)
                return step
            except DamagedError as error:
                report(f"checkpoint {step} is damaged ({error}); set aside, trying an older one")
        files.set_aside(folder / str(step))
    return None


def keep_newest(folder: Path, count: int) -> None:
    """Deletes all but the newest `count` saves; folders without their manifest are not counted and not touched."""
    saved = [step for step in files.steps(folder) if _has_manifest(folder / str(step))]
    for step in saved[:-count]:
        drop(folder, step)


def drop(folder: Path, step: int) -> None:
    """Deletes a save."""
    (folder / str(step)).rename(folder / f".{step}.tmp")  # half deleted, it must not look like a damaged save
    files.remove(folder / f".{step}.tmp")


def tidy(folder: Path) -> None:
    """Clears a folder, of saves or of files, of what was cut short there: it is as if it had not been begun."""
    for path in folder.glob(".*.tmp"):
        files.remove(path)
    for path in folder.glob(".*.old"):
        final = folder / path.name[1 : -len(".old")]
        if final.exists():
            files.remove(path)
        else:
            path.rename(final)


def verify(place: Path) -> dict:
    """Compares a folder with its manifest, and returns that.

    Raises:
      DamagedError: naming the first difference.
    """
    manifest = read_json(place / MANIFEST)
    if not _is_of(manifest, place):
        held = f"step {manifest.get('step')} of {manifest.get('folder')}"
        raise DamagedError(f"{place}: holds {held}, it was renamed or copied here")
    files.refuse_other_training(place, place.parent.parent, manifest["training"])
    listed = {name: written for rows in manifest["parts"].values() for name, written in rows["files"].items()}
    found = shard_files.hashes(place)
    found.pop(MANIFEST, None)
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            raise DamagedError(f"{place}: {name} is missing")
        if listed.get(name) != found[name]:
            raise DamagedError(f"{place}: {name} is not what was written")
    return manifest


def _replace(temporary: Path, final: Path) -> None:
    """Puts a complete save in place of an earlier one; killed in between, that one is left for `tidy` to bring back."""
    before = final.with_name(f".{final.name}.old")
    if not final.exists():
        temporary.rename(final)
        return
    files.remove(before)
    final.rename(before)
    try:
        temporary.rename(final)
    except OSError:
        before.rename(final)
        raise
    files.remove(before)


def _newest_whole(folder: Path) -> str:
    for step in reversed(files.steps(folder)):
        with contextlib.suppress(DamagedError):
            verify(folder / str(step))
            return f"the newest whole one is {step}"
    return "there is no earlier one"


def _is_of(manifest: dict, place: Path) -> bool:
    return [str(manifest.get("step")), manifest.get("folder")] == [place.name, place.parent.name]


def _has_manifest(place: Path) -> bool:
    try:
        return _is_of(read_json(place / MANIFEST), place)
    except DamagedError:
        return False


def _row_ranges(manifest: dict) -> list[tuple[int, int]]:
    """First row of every part and the one after its last, in order."""
    firsts = sorted(map(int, manifest["parts"]))
    n_last = next(iter(manifest["parts"][str(firsts[-1])]["leaves"].values()))[0][0]
    return list(itertools.pairwise([*firsts, firsts[-1] + n_last]))


def _refuse_other_leaves(place: Path, manifest: dict, like) -> None:
    n_rows, some = _row_ranges(manifest)[-1][1], next(iter(manifest["parts"].values()))
    held = {name: [[n_rows, *shape[1:]], dtype] for name, (shape, dtype) in some["leaves"].items()}
    if held != shard_files.leaves(like):
        raise DamagedError(f"{place}: holds arrays of other names, shapes or dtypes than this training's")
