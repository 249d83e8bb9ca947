"""Trains one row of a grid alone and compares it with the row in the grid."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from lab import families, schedule
from lab.disk import metrics, store
from lab.disk.files import WorkdirError
from lab.disk.workdir import united
from lab.engine import init_from, numerics, parts, shard, sweep
from lab.engine.parts import Pace
from lab.engine.progress import Progress
from lab.engine.rows import Rows
from lab.tree import named_leaves


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far a row of a grid is from itself trained alone. Rounding differs, so in float32 expect 1e-6, not zero.

    Attributes:
      steps: how far both were trained.
      loss, at: largest absolute difference of the training loss in nats, and the step it was found at.
      since: the first step whose loss differs at all; None where none does.
      params: snapshot -> largest absolute difference of any parameter.
      diverged: the steps at which the row went non-finite, in the grid and alone; -1 for not at all.
    """

    steps: int
    loss: float
    at: int
    since: int | None
    params: dict[int, float]
    diverged: tuple[int, int]


@numerics.settled()
def replay(workdir: str | Path, row: int, steps: int | None = None) -> Difference:
    """Trains one row of a training alone, on one device, with the same batches.

    Args:
      steps: stop at the first chunk that ends at or after this step; None: as far as the training came.

    Raises:
      ValueError: no such row.
      WorkdirError: nothing was trained, or what was is damaged; it started from another training's weights, and that
        is not there any more or ends with others; or it was trained with other numerics, see `lab.engine.numerics`.
    """
    work = united(workdir)
    if not 0 <= row < len(work.grid):
        raise ValueError(f"row {row}: {work.path} has rows 0 to {len(work.grid) - 1}")
    ((work, _, (row,)),) = work.by_part([row])
    config, grid = work.config, work.grid
    experiment = work.experiment
    if changed := families.changed(work.classes):
        raise WorkdirError(f"{work.path}: trained by other code. Changed: {'; '.join(changed)}")
    chunks = metrics.read_chunks(work)
    numerics.refuse_other(work.path, work.read_json("config.json"), "replay a row")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("run", "data"))
    layout = shard.layout(mesh, 1, 1)
    ends, _, kept = schedule.boundaries(config)
    most = schedule.longest_part(config)
    alone = Rows(experiment, grid.take([row]), layout, most, sweep.options(config))
    init_from.refuse_other(work)
    alone.start(init_from.weights(work.path, config, grid, row, row + 1))

    ends = ends[: len(chunks)]
    last = ends[-1] if steps is None else next((end for end in ends if end >= steps), ends[-1])
    losses, params, done, in_grid, pace = [np.zeros((0, 2))], {}, 0, -1, Pace(most)
    with Progress() as progress:
        progress.begin(f"row {row}", last)
        for end, chunk in zip(ends, chunks, strict=True):
            if steps is not None and done >= steps:
                break
            if end > done:
                recorded = parts.advance(alone, done, end, pace, lambda n_steps, seconds: progress.advance(n_steps))
                losses.append(np.stack([chunk["train_loss"][:, row], recorded["train_loss"][0]], axis=1))
            if end in kept and end in work.snapshot_steps():
                params[end] = _distance(work.params(end, row), store.take_row(alone.fetch().params, 0))
            done, in_grid = end, int(chunk["diverged_at"][row])
        progress.end()
    diverged = in_grid, int(alone.fetch().diverged_at[0])
    return _difference(np.concatenate(losses), params, done, diverged)


def _difference(losses_Tx2, params: dict[int, float], done: int, diverged: tuple[int, int]) -> Difference:
    grid_T, alone_T = losses_Tx2.T
    same_T = (grid_T == alone_T) | (np.isnan(grid_T) & np.isnan(alone_T))
    apart_T = np.nan_to_num(np.abs(grid_T - alone_T))
    since = None if same_T.all() else int(np.argmin(same_T))
    at = int(np.argmax(apart_T)) if len(apart_T) else 0
    return Difference(done, float(apart_T.max(initial=0)), at, since, params, diverged)


def _distance(tree, other) -> float:
    """Largest absolute difference of any number."""
    twins = named_leaves(other)
    return max(float(np.max(np.abs(leaf - twins[name]))) for name, leaf in named_leaves(tree).items())
