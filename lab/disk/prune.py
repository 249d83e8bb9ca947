"""Drops checkpoints and snapshots of a training by rule, and notes which, so that nothing misses them."""

import contextlib
from pathlib import Path

from lab import schedule
from lab.disk import files, store, verify
from lab.disk.files import WorkdirError
from lab.disk.lock import locked
from lab.disk.workdir import Workdir

SNAPSHOTS = ("all", "log", "last")


def prune(
    work: Workdir, checkpoints: int | None = None, snapshots: str = "all", dry_run: bool = False
) -> list[tuple[Path, int]]:
    """Drops all but the newest checkpoints and the chosen snapshots; returns what it dropped, and the bytes of each.

    Training continues, `verify` finds everything as it was written, and measurements that were taken stay. The first
    and the last snapshot are always kept: measurements compare with the one, variants start from the other.

    Args:
      checkpoints: how many to keep, at least 1; None: all.
      snapshots: which to keep: `all`, a `log`-spaced part, or the `last` (beside the first).
      dry_run: drop nothing.

    Raises:
      ValueError: another rule, or no checkpoint would be left to continue from.
      WorkdirError: something is damaged, or another process is at work here; nothing was dropped.
      SaveError: the folder cannot be written to.
    """
    if snapshots not in SNAPSHOTS:
        raise ValueError(f"snapshots={snapshots!r}: one of {', '.join(SNAPSHOTS)}")
    if checkpoints is not None and checkpoints < 1:
        raise ValueError(f"keep {checkpoints} checkpoints: at least 1, training continues from the last one")
    if damages := verify.damages(work):
        raise WorkdirError(f"nothing was dropped, for something is damaged: {damages[0]}")
    folders = [Workdir(work.path), *work.extensions]  # all of them, or some rows would keep what others lack
    with contextlib.ExitStack() as stack:
        for folder in () if dry_run else folders:
            stack.enter_context(locked(folder.path))
        return [dropped for folder in folders for dropped in _prune(folder, checkpoints, snapshots, dry_run)]


def _prune(work: Workdir, checkpoints: int | None, snapshots: str, dry_run: bool) -> list[tuple[Path, int]]:
    due = _due(work, checkpoints, snapshots)
    dropped = _sized(work, due)
    if dry_run:
        return dropped
    if due[work.snapshots]:
        noted = {*Workdir(work.path).pruned, *due[work.snapshots]}
        files.write_json(work.path / files.PRUNED, {"snapshots": sorted(noted)})
    for folder, steps in due.items():
        for step in steps:
            store.drop(folder, step)
    return dropped


def _due(work: Workdir, checkpoints: int | None, snapshots: str) -> dict[Path, list[int]]:
    """Folder -> the steps to drop there."""
    saved, taken = files.steps(work.checkpoints), work.snapshot_steps()
    kept = {*taken[:1], *schedule.chosen(taken, snapshots)} if taken else set()
    return {
        work.checkpoints: [] if checkpoints is None else saved[:-checkpoints],
        work.snapshots: [step for step in taken if step not in kept],
    }


def _sized(work: Workdir, due: dict[Path, list[int]]) -> list[tuple[Path, int]]:
    places = [folder / str(step) for folder, steps in due.items() for step in steps]
    return [(place, sum(path.stat().st_size for path in place.rglob("*") if path.is_file())) for place in places]
