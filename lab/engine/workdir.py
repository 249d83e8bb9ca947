"""The folder one training leaves, and the reading half of it: config, grid, snapshots.

config.json grid.json      written before step 0
metrics/<step>.npz         one file a chunk, each metric (n, R) or (n, R, ...)
checkpoints/<step>/        everything needed to continue, all rows, hashed
snapshots/<step>/          parameters only, kept for analysis
analysis/<name>.npz        measurements of the snapshots
"""

import functools
import json
from pathlib import Path

import ml_collections

from lab.engine import config as configs
from lab.engine import store
from lab.engine.step import Experiment
from lab.grid import Grid


class WorkdirError(Exception):
    """A folder that is not what it should be; the message is for the user."""


class Workdir:
    """Paths of a training's folder and what it says of itself. Nothing is read before it is asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics = self.path / "metrics"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.analysis = self.path / "analysis"

    @functools.cached_property
    def config(self) -> ml_collections.ConfigDict:
        return configs.from_json(self.read_json("config.json")["config"])

    @functools.cached_property
    def grid(self) -> Grid:
        return Grid.from_json(self.read_json("grid.json"))

    @functools.cached_property
    def experiment(self) -> Experiment:
        return configs.experiment(self.config)

    def snapshot_steps(self) -> list[int]:
        return store.steps(self.snapshots)

    def params(self, step: int | None = None, row: int | None = None):
        """Parameters at a snapshot, host arrays with leading row axis, or of one row without it.

        Args:
          step: one of `snapshot_steps()`; None for the last.

        Raises:
          WorkdirError: no such snapshot, or it is damaged.
        """
        steps = self.snapshot_steps()
        step = steps[-1] if step is None and steps else step
        if step not in steps:
            raise WorkdirError(f"{self.snapshots}: no snapshot of step {step}; there are {steps or 'none'}")
        try:
            params = store.restore(self.snapshots, step)
        except store.DamagedError as error:
            raise WorkdirError(str(error)) from error
        return params if row is None else store.take_row(params, row)

    def trained(self) -> bool:
        """Whether the training has ended."""
        return (self.path / "config.json").is_file() and self.config.steps in store.steps(self.checkpoints)

    def read_json(self, name: str) -> dict:
        """
        Raises:
          WorkdirError: the file is missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            raise WorkdirError(f"{self.path}: not a training's folder ({name} is missing)") from None
        except ValueError as error:
            raise WorkdirError(f"{self.path / name}: damaged ({error})") from error


def variants_in(root: str | Path) -> dict[str, Workdir]:
    """The trainings below a study's folder, by variant name; the folder itself if it is one.

    Raises:
      WorkdirError: there is none.
    """
    root = Path(root)
    if (root / "config.json").is_file():
        return {root.name: Workdir(root)}
    found = {path.parent.name: Workdir(path.parent) for path in sorted(root.glob("*/config.json"))}
    if not found:
        raise WorkdirError(f"{root}: no training here (no config.json in it or one folder below)")
    return found
