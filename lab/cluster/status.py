"""Progress of a study's trainings, read from their folders alone."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from lab.disk import files, lock, metrics
from lab.disk.files import WorkdirError
from lab.disk.workdir import Workdir

JOBS = "jobs"  # the folder of a study's cluster jobs, beside its variants
LAUNCHED = "launched.json"  # in it: what was launched, by variant
COLUMNS = ("variant", "state", "step", "rows", "diverged")


@dataclasses.dataclass(frozen=True)
class Progress:
    """One variant's line.

    Attributes:
      state: `trained`; `running`, when a process holds its lock; `stopped`; `not started`; `damaged`, when it cannot be
        told what was to be trained. Of a launched job also `queued` and `failed`.
      step: the last step on disk while it runs, otherwise the step of the newest checkpoint, where training continues.
      steps, rows: how many are to be trained.
      diverged: rows that had diverged at `step`.
      note: what else is to be said; empty mostly.

    A number that the folder does not tell is None.
    """

    variant: str
    state: str
    step: int | None = None
    steps: int | None = None
    rows: int | None = None
    diverged: int | None = None
    note: str = ""


def study(root: str | Path, running: Callable[[Path], bool] = lock.held) -> list[Progress]:
    """The variants below a study's folder, begun or launched; one line if the folder is a training itself.

    Args:
      running: whether a process trains in a folder.

    Raises:
      WorkdirError: nothing was trained or launched here, or the list of what was launched is damaged.
    """
    root = Path(root)
    if _begun(root):
        return [read(root.resolve().name, Workdir(root), running)]
    planned = launched(root)
    begun = sorted(path.name for path in root.iterdir() if _begun(path)) if root.is_dir() else []
    if not planned and not begun:
        raise WorkdirError(f"{root}: no training here (nothing begun in it or one folder below, nothing launched)")
    lines = [read(name, Workdir(root / name), running) for name in dict.fromkeys([*planned, *begun])]
    return [
        dataclasses.replace(line, steps=planned[line.variant]["steps"], rows=planned[line.variant]["rows"])
        if line.state == "not started" and line.variant in planned
        else line
        for line in lines
    ]


def launched(root: Path) -> dict[str, dict]:
    """Jobs submitted for a study, by variant, the last of each: `cluster`, `job`, `tasks`, `steps`, `rows`."""
    return Workdir(root / JOBS).read_json(LAUNCHED) if (root / JOBS / LAUNCHED).is_file() else {}


def read(variant: str, work: Workdir, running: Callable[[Path], bool] = lock.held) -> Progress:
    """One training's line, with the rows that were added to it: the state is that of the first folder behind.

    Args:
      running: whether a process trains in a folder; each folder of added rows is one, with a lock of its own.
    """
    lines = [_read(variant, folder, running(folder.path)) for folder in (Workdir(work.path), *work.extensions)]
    behind = next((line for line in lines if line.state != "trained"), lines[0])
    if len(lines) == 1 or lines[0].state == "damaged":
        return lines[0]
    if behind is not lines[0] and behind.state == "not started":  # stopped before its config was written
        behind = dataclasses.replace(behind, state="stopped", steps=lines[0].steps)
    rows, diverged, added = (
        _sum(getattr(line, name) for line in some)
        for name, some in (("rows", lines), ("diverged", lines), ("rows", lines[1:]))
    )
    note = "" if added is None else f"{added} of the rows were added"
    return dataclasses.replace(behind, rows=rows, diverged=diverged, note=behind.note or note)


def _read(variant: str, work: Workdir, running: bool) -> Progress:
    """Of one folder."""
    if not (work.path / "config.json").is_file() and not files.steps(work.checkpoints):
        return Progress(variant, "running" if running else "not started", 0)
    try:
        steps, rows, trained = work.config.steps, len(work.grid), work.trained()
    except (WorkdirError, AttributeError, KeyError, TypeError, ValueError) as error:
        return Progress(variant, "damaged", note=str(error) or type(error).__name__)
    saved = files.steps(work.checkpoints)
    chunks = [int(path.stem) for path in metrics.metric_files(work.metrics)]
    step = max((chunks if running and not trained else saved), default=0)
    state = "trained" if trained else "running" if running else "stopped"
    return Progress(variant, state, step, steps, rows, _diverged(work.metrics / f"{step}.npz"))


def text(lines: Sequence[Progress]) -> str:
    """The lines as a table, and below it what is to be said of single variants."""
    cells = [COLUMNS, *map(_cells, lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    printed = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*printed, *(f"{line.variant}: {line.note}" for line in lines if line.note)])


def _cells(line: Progress) -> tuple[str, ...]:
    step, steps, rows, diverged = (
        "?" if number is None else str(number) for number in (line.step, line.steps, line.rows, line.diverged)
    )
    return line.variant, line.state, f"{step}/{steps}", rows, diverged


def _begun(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / ".lock").is_file()


def _sum(numbers: Iterable[int | None]) -> int | None:
    numbers = list(numbers)
    return None if None in numbers else sum(numbers)


def _diverged(chunk: Path) -> int | None:
    """Rows that had diverged at the end of a chunk; only that member of the file is read."""
    try:
        with np.load(chunk) as file:
            return int(np.count_nonzero(file["diverged_at"] >= 0))
    except Exception:  # not there yet, or damaged: zipfile, zlib and numpy each raise their own; `verify` tells
        return None
