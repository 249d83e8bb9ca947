"""A training's folder: its layout, and reading its config, grid and snapshots.

config.json grid.json      written before step 0, signed
plan.json                  how its rows are computed, signed
metrics/<step>.npz         one file a chunk, each metric (n, R) or (n, R, ...), sealed
checkpoints/<step>/        everything needed to continue, all rows, hashed
snapshots/<step>/          parameters only, kept for analysis, hashed
analysis/<name>.npz .json  measurements of the snapshots, sealed, and what they are, signed
pruned.json                snapshots that were dropped on purpose, signed
extensions/<n>/            rows that were added later, in a folder like this one; see `lab.engine.extension`
damaged-*                  found damaged by a training and renamed; nothing reads it
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections
import numpy as np

from lab import config_json
from lab import grid as grids
from lab.disk import files
from lab.disk.files import DamagedError, WorkdirError
from lab.grid import Grid

EXTENSIONS = "extensions"

if TYPE_CHECKING:
    from lab.experiment import Experiment


class Workdir:
    """Paths in a training's folder, and its config, grid and snapshots, read on first use.

    Of a training that was extended these are the rows that it began with; `united` has all.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()  # the process may change its folder later
        self.metrics = self.path / "metrics"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.analysis = self.path / "analysis"
        self.data = self.path / "data"

    @functools.cached_property
    def config(self) -> ml_collections.ConfigDict:
        return self._read_as("config.json", lambda held: config_json.from_json(held["config"]))

    @functools.cached_property
    def grid(self) -> Grid:
        return self._read_as("grid.json", Grid.from_json)

    @functools.cached_property
    def experiment(self) -> "Experiment":
        from lab import config as configs  # and with it JAX and Flax, which names and numbers do without
        from lab import families

        self.bring_back()
        if edited := families.changed(self.classes):
            warnings.warn(f"{self.path}: not as it was trained: {', '.join(edited)}", stacklevel=3)
        return configs.experiment(self.config)

    def bring_back(self) -> None:
        """Makes what the config names findable in this process: tables of examples, classes of the user's own."""
        from lab import families, tables

        tables.offer(self.data)
        families.bring_back(self.classes)

    @property
    def data_hashes(self) -> dict[str, str]:
        """sha256 of the files that the task keeps, by name; see `Task.files`."""
        return self._read_as("config.json", lambda held: held["data"])

    @property
    def classes(self) -> list[dict]:
        """Where tasks and models of the user's own are, see `families.own`; none in a folder from before."""
        return self._read_as("config.json", lambda held: held.get("classes", []))

    @property
    def started_from(self) -> dict[str, str]:
        """Hash of the weights that the training started from, see `init_from.identity`; empty where drawn anew."""
        return self._read_as("config.json", lambda held: held["start"])

    @property
    def pruned(self) -> set[int]:
        """Steps of the snapshots that were dropped on purpose, see `prune`; none where the note is damaged."""
        try:
            return set(self.read_json(files.PRUNED)["snapshots"])
        except (DamagedError, KeyError):
            return set()

    def snapshot_steps(self) -> list[int]:
        return files.steps(self.snapshots)

    def params(self, step: int | None = None, row: int | None = None):
        """Parameters at a snapshot, host arrays with leading row axis, or of one row without it.

        Args:
          step: one of `snapshot_steps()`; None for the last.

        Raises:
          WorkdirError: no such snapshot, or it is damaged.
        """
        from lab.disk import store

        steps = self.snapshot_steps()
        step = steps[-1] if step is None and steps else step
        if step not in steps:
            raise WorkdirError(f"{self.snapshots}: no snapshot of step {step}; there are {steps or 'none'}")
        try:
            params = store.restore(self.snapshots, step)
        except DamagedError as error:
            raise DamagedError(f"{error}; the train command makes it again") from error
        return params if row is None else store.take_row(params, row)

    def trained(self) -> bool:
        """Whether the training has ended, by the names in the folder; `verify.whole` looks closer."""
        return (self.path / "config.json").is_file() and self.config.steps in files.steps(self.checkpoints)

    @property
    def parts(self) -> "list[Workdir]":
        """The folders that the rows are in."""
        return [self]

    def by_part(self, rows: Sequence[int]) -> "list[tuple[Workdir, np.ndarray, np.ndarray]]":
        """Where rows are: each folder with some of them, their places among `rows`, and their numbers there."""
        return [(self, np.arange(len(rows)), np.asarray(rows))]

    @property
    def extensions(self) -> "list[Workdir]":
        """The folders of rows that were added, as far as they are trained, in the order in which they were."""
        places = [self.path / EXTENSIONS / str(n) for n in files.steps(self.path / EXTENSIONS)]
        return [Workdir(place) for place in places if _is_training(place)]

    @property
    def unfinished(self) -> "list[Workdir]":
        """Extensions that are not trained to their end, whose rows are not in `parts`."""
        return []

    @property
    def extends(self) -> "Workdir | None":
        """The training that the rows of this folder were added to; None for a training of its own."""
        folder = self.path.parent
        if folder.name == EXTENSIONS and files.is_step(self.path.name) and _is_training(folder.parent):
            return Workdir(folder.parent)
        return None

    @property
    def name(self) -> str:
        """Of the variant; with the extension's number, if it is one."""
        return self.path.name if self.extends is None else f"{self.extends.path.name}+{self.path.name}"

    def read_json(self, name: str) -> dict:
        """
        Raises:
          DamagedError: the file is missing or damaged.
        """
        return files.read_json(self.path / name)

    def _read_as(self, name: str, convert: Callable):
        held = self.read_json(name)
        try:
            return convert(held)
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{self.path / name}: whole, but another file's content") from error


class Extended(Workdir):
    """A training and what was added to it and is trained, read as one folder that holds the rows of all."""

    @functools.cached_property
    def parts(self) -> list[Workdir]:
        main, extensions = Workdir(self.path), self.extensions
        if not main.trained():
            warnings.warn(f"{main.path}: not trained to its end, the rows that were added are left out", stacklevel=4)
            return [main]
        ended = [part for part in extensions if part.trained()]
        for i, part in enumerate(ended):
            refuse_foreign(part)
            refuse_repeated(part, [main, *ended[:i]])
        for path in sorted({part.path for part in extensions} - {part.path for part in ended}):
            warnings.warn(f"{path}: not trained to its end, its rows are left out", stacklevel=4)
        return [main, *ended]

    @property
    def unfinished(self) -> list[Workdir]:
        return [part for part in self.extensions if part.path not in [ended.path for ended in self.parts]]

    @functools.cached_property
    def union(self) -> tuple[Grid, np.ndarray]:
        """The grid of all rows, and the number of each where those of the parts are counted one after the other."""
        return grids.union([part.grid for part in self.parts])

    @functools.cached_property
    def grid(self) -> Grid:
        return self.union[0]

    def by_part(self, rows: Sequence[int]) -> list[tuple[Workdir, np.ndarray, np.ndarray]]:
        numbers, first, found = self.union[1][np.asarray(rows, int)], 0, []
        for part in self.parts:
            here = (numbers >= first) & (numbers < first + len(part.grid))
            if here.any():
                found.append((part, np.flatnonzero(here), numbers[here] - first))
            first += len(part.grid)
        return found

    def snapshot_steps(self) -> list[int]:
        """Those that every row has."""
        return sorted(set.intersection(*({*part.snapshot_steps()} for part in self.parts)))

    def params(self, step: int | None = None, row: int | None = None):
        from lab.disk import store

        step = self.snapshot_steps()[-1] if step is None and self.snapshot_steps() else step
        if row is None:
            return store.join([part.params(step) for part in self.parts], self.union[1])
        ((part, _, (number,)),) = self.by_part([row])
        return part.params(step, number)


def united(path: str | Path) -> Workdir:
    """A training with the rows that were added to it."""
    work = Workdir(path)
    return Extended(path) if work.extensions else work


def refuse_foreign(extension: Workdir) -> None:
    """
    Raises:
      DamagedError: it was copied here from another training.
    """
    if config_json.to_json(extension.config) != config_json.to_json(extension.extends.config):
        raise DamagedError(f"{extension.path}: extends another training than this one, it was renamed or copied here")


def refuse_repeated(extension: Workdir, others: Sequence[Workdir]) -> None:
    """
    Raises:
      DamagedError: it has a row that another folder of the same training has, or one of them is damaged.
    """
    for other in others:
        if grids.have_common_rows(extension.grid, other.grid):
            raise DamagedError(f"{extension.path}: has rows that {other.path} has; move away the one that is a copy")


def variants_in(root: str | Path) -> dict[str, Workdir]:
    """The trainings below a study's folder, by variant name; the folder itself if it is one.

    Raises:
      WorkdirError: there is none.
    """
    root = Path(root)
    if _is_training(root):
        return {root.resolve().name: united(root)}  # `.` has no name
    found = {path.name: united(path) for path in sorted(root.glob("*")) if _is_training(path)}
    if not found:
        raise WorkdirError(f"{root}: no training here (no config.json in it or one folder below)")
    return found


def chosen(root: str | Path, variants: Sequence[str] | None = None) -> dict[str, Workdir]:
    """Those of `variants_in` that are named; None or none named: all.

    Raises:
      ValueError: there is none of a name.
      WorkdirError: as `variants_in`.
    """
    found = variants_in(root)
    for name in variants or ():
        if name not in found:
            raise ValueError(f"variant {name!r}: {root} has {', '.join(found)}")
    return {name: work for name, work in found.items() if name in (variants or found)}


def find(workdir: str | Path, variant: str | None = None) -> Workdir:
    """One training of a study's folder; `variant` may be left out where there is only one.

    Raises:
      WorkdirError: there is none, or several and none named.
    """
    found = variants_in(workdir)
    if variant is None and len(found) == 1:
        (variant,) = found
    if variant not in found:
        raise WorkdirError(f"{workdir}: variant={variant!r}; choose one of {', '.join(found)}")
    return found[variant]


def _is_training(path: Path) -> bool:
    """Also where the config is lost: what is left must not be passed over."""
    return any((path / name).exists() for name in (*files.IDENTITY, "metrics", "checkpoints", "snapshots"))
