"""Verifies a training's folder: every file is there and is what was written."""

import functools
from collections.abc import Callable, Container
from pathlib import Path

from lab import schedule
from lab.disk import files, measurements, metrics, store
from lab.disk.files import DamagedError
from lab.disk.workdir import Workdir, refuse_foreign, refuse_repeated


def damages(work: Workdir) -> list[str]:
    """One line for every file or folder that is damaged or missing; empty if all is whole.

    Every byte counts: JSON files are compared with what their hash signs, checkpoints and snapshots with their
    manifests, metrics and measurements with their seals, and all of them with the training of this folder. What the
    config promises up to where the training came must be there. A folder of measurements that is gone altogether is
    no damage: nothing says that anything was measured. The rows that were added to a training are looked at, too.
    """
    work = Workdir(work.path)  # a new one, without what was read and cached before
    identity = _identity_damages(work)
    lines = [*identity.values()]
    held = {} if "config.json" in identity else work.data_hashes
    if not any(name in identity for name in files.IDENTITY):
        damaged = _damaged(work)
        lines += damaged.values()
        lines += [f"{path} is missing; the train command makes it again" for path in _missing(work, damaged)]
    else:  # nothing tells which steps should be here
        lines += [_damage(store.verify, place) for place in _saves(work)]
        lines += [_damage(files.read_npz, path) for path in metrics.metric_files(work.metrics)]
    lines += [_damage(functools.partial(measurements.read, work), name) for name in _measured(work)]
    lines += [_damage(functools.partial(_check_kept, work), name) for name in held]
    if not identity:
        lines += [_damage(refuse_foreign, part) for part in work.extensions if (part.path / "config.json").is_file()]
    for i, part in enumerate(work.extensions):
        found = damages(part)
        if not found and not identity:
            found = [_damage(functools.partial(refuse_repeated, others=[work, *work.extensions[:i]]), part)]
        lines += found
    return list(dict.fromkeys(line for line in lines if line is not None))


def remarks(work: Workdir) -> list[str]:
    """One line for everything that is no damage but takes space: what was set aside, and saves that were cut short."""
    folders = (work.path, work.metrics, work.checkpoints, work.snapshots, work.analysis)
    aside, unfinished = (
        [path for folder in folders for pattern in patterns for path in folder.glob(pattern)]
        for patterns in (("damaged-*",), (".*.tmp", ".*.old"))
    )
    lines = []
    if aside:
        lines.append(f"{work.path}: {len(aside)} set aside as damaged-*; not used any more, delete them when you like")
    if unfinished:
        lines.append(f"{work.path}: {len(unfinished)} left of saves that were cut short; train and analyze remove them")
    return lines + [line for part in work.extensions for line in remarks(part)]


def whole(work: Workdir) -> bool:
    """Whether the training has ended and everything it left is whole: there is nothing to train."""
    return work.trained() and not (damaged := _damaged(work)) and not _missing(work, damaged)


def sound_until(work: Workdir, report: Callable[[str], None]) -> int:
    """Sets aside what is damaged in metrics, checkpoints and snapshots; says from where training can go on.

    To be called by the only writer, with config and grid whole. Clears away what saves that were cut short left.

    Args:
      report: is given one line for everything that is damaged or missing.

    Returns:
      The last step s at which a chunk ends such that every chunk and every snapshot due at or before s is there and
      whole; -1 if there is none. A checkpoint after s has a hole before it, see `store.newest_whole`.
    """
    for folder in (work.path, work.metrics, work.checkpoints, work.snapshots):
        store.tidy(folder)
    damaged = _damaged(work)
    for path in _missing(work, damaged):
        report(f"{path} is missing; training it again")
    for path, line in damaged.items():
        report(f"{line}; set aside as {files.set_aside(path).name}")
    sound = -1
    ends, _, kept = schedule.boundaries(work.config)
    for end in ends:
        due = [work.metrics / f"{end}.npz"] + [work.snapshots / str(end)] * (end in kept - work.pruned)
        if not all(path.exists() for path in due):
            break
        sound = end
    return sound


def set_aside_identity(work: Workdir, report: Callable[[str], None]) -> None:
    """Sets aside a damaged config.json, grid.json or plan.json, to be written anew from what was asked for.

    What the folder holds of the same training is whole again once they are there; what it holds of another is then
    found by `sound_until`.
    """
    for name, line in _identity_damages(Workdir(work.path)).items():
        if (work.path / name).exists():
            report(f"{line}; set aside as {files.set_aside(work.path / name).name}")


def _identity_damages(work: Workdir) -> dict[str, str]:
    """What is wrong with the files that say what is trained here and how, by name."""
    checks = {"config.json": lambda: work.config, "grid.json": lambda: work.grid}
    checks |= {
        name: functools.partial(work.read_json, name)
        for name in (files.PLAN, files.PRUNED)
        if (work.path / name).exists()
    }
    found = {name: _damage(lambda check: check(), check) for name, check in checks.items()}
    return {name: line for name, line in found.items() if line is not None}


def _damaged(work: Workdir) -> dict[Path, str]:
    """What is there of checkpoints, snapshots and metrics and is not as it was written, and why."""
    chunks = schedule.chunks(work.config)
    _, evaluated, _ = schedule.boundaries(work.config)

    def check_chunk(path):
        end = int(path.stem)
        if end not in chunks:
            raise DamagedError(f"{path}: no chunk of this training ends there")
        metrics.read_chunk(path, chunks[end], end in evaluated)

    found = {place: _damage(store.verify, place) for place in _saves(work)}
    found |= {path: _damage(check_chunk, path) for path in metrics.metric_files(work.metrics)}
    return {path: line for path, line in found.items() if line is not None}


def _missing(work: Workdir, damaged: Container[Path]) -> list[Path]:
    """What the config promises, up to the last chunk or checkpoint that is whole, and is not there.

    Of each step metrics are written first, then the snapshot, then the checkpoint: what came after the newest chunk may
    not have been written yet. Only of the last step all three are expected, and of checkpoints only the last one due.
    """
    chunks, (_, _, kept) = schedule.chunks(work.config), schedule.boundaries(work.config)
    chunk_files = {int(path.stem): path for path in metrics.metric_files(work.metrics)}
    saved = {step: work.checkpoints / str(step) for step in files.steps(work.checkpoints)}
    continued = max((step for step in saved.keys() & chunks if saved[step] not in damaged), default=-1)
    reached = max((end for end in chunk_files.keys() & chunks if chunk_files[end] not in damaged), default=-1)
    reached = max(reached, continued)

    missing = [work.metrics / f"{end}.npz" for end in chunks if end <= reached and end not in chunk_files]
    snapshots = {*files.steps(work.snapshots)}
    due = {step for step in kept - work.pruned if step < reached or step <= continued}
    missing += [work.snapshots / str(step) for step in sorted(due - snapshots)]
    ended = reached == work.config.steps and reached in snapshots
    due = [step for step in schedule.checkpointed(work.config) if step < reached or ended]
    if due and not any(step >= due[-1] for step in saved):
        missing.append(work.checkpoints / str(due[-1]))
    return missing


def _check_kept(work: Workdir, name: str) -> None:
    """Of the task's own files: the train command writes them again."""
    content = files.read_bytes(work.data / name)
    if files.hashes({name: content})[name] != work.data_hashes[name]:
        raise DamagedError(f"{work.data / name}: damaged (not what was written)")


def _saves(work: Workdir) -> list[Path]:
    return [folder / str(step) for folder in (work.checkpoints, work.snapshots) for step in files.steps(folder)]


def _measured(work: Workdir) -> list[str]:
    """Names of the measurements that are there, or half there."""
    names = {path.stem for pattern in ("*.json", "*.npz") for path in work.analysis.glob(pattern)}
    return sorted(name for name in names if not name.startswith((".", "damaged-")))


def _damage(check: Callable, subject) -> str | None:
    """What a check has to say against its subject."""
    try:
        check(subject)
    except DamagedError as error:
        return str(error)
    return None
