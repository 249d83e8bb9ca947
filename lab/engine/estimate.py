"""Estimates for people: how long a training takes, and how much disk it needs."""

import dataclasses
import functools
import math

import jax
import ml_collections

from lab import schedule, tree
from lab.engine import batches, step
from lab.experiment import Experiment
from lab.grid import Grid

# FLOP/s of one device, where nothing is measured: of the demo's products on a core, and of a GPU at small sizes
GUESSED_FLOPS = {"cpu": 50e9, "gpu": 1e13, "tpu": 1e13}
DESCRIBED, ENTRY = 1700, 270  # bytes on disk beside the numbers: of an array in a save, and in an npz file


def flops(experiment: Experiment, grid: Grid) -> float:
    """Floating-point operations of one step of one row, by XLA's count of the program before it optimizes it.

    Of a loop XLA counts one turn: layers that are scanned over are counted by what one more of them adds.
    """
    if getattr(experiment.model, "scan_layers", False):
        of_1, of_2 = (
            _flops(dataclasses.replace(experiment, model=experiment.model.clone(scan_layers=False, n_layers=n)), grid)
            for n in (1, 2)
        )
        return of_1 + (experiment.model.n_layers - 1) * (of_2 - of_1)
    return _flops(experiment, grid)


def _flops(experiment: Experiment, grid: Grid) -> float:
    hparams = {name: column[0] for name, column in grid.arrays().items()}
    state = jax.eval_shape(functools.partial(step.start, experiment), hparams)
    batch = jax.eval_shape(lambda: experiment.task.sample(jax.random.key(0), experiment.batch_size, "train", hparams))
    lowered = jax.jit(functools.partial(step.train_step, experiment)).lower(hparams, state, batch, 0)
    return float((lowered.cost_analysis() or {}).get("flops", math.nan))


def device_flops() -> float:
    """Floating-point operations a second of one device like these, as far as one can say without measuring."""
    return GUESSED_FLOPS.get(jax.default_backend(), GUESSED_FLOPS["gpu"])


def duration_sentence(n_rows: int, steps: int, rate: float | None, at_once: int) -> str:
    """How long training takes at a rate in row-steps/s; rows that fill up a last block are computed, too."""
    if not rate:
        return "no duration: one block does not fit in memory"
    computed = math.ceil(n_rows / at_once) * at_once
    return (
        f"about {hours_and_minutes(computed * steps / rate)}: {n_rows} rows x {steps} steps at {rate:.0f} row-steps/s; "
        "evaluations and compiling come on top"
    )


def hours_and_minutes(seconds: float) -> str:
    """`3 d 4 h`, `2 h 05 min`, `12 min`, `40 s`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
    return "{} d {} h".format(*divmod(hours, 24))


def disk_sentence(config: ml_collections.ConfigDict, experiment: Experiment, grid: Grid) -> str:
    """Bytes that a finished training leaves on disk, by what they are."""
    state = jax.eval_shape(functools.partial(step.start, experiment), grid.row(0))
    evaluation_set = batches.traced(experiment).shapes.evaluation_set
    scores = jax.eval_shape(functools.partial(step.evaluate, experiment), state, evaluation_set)
    ends, evaluated, kept = schedule.boundaries(config)
    n_checkpoints = min(schedule.KEPT_CHECKPOINTS, len(schedule.checkpointed(config)))

    def saves(count: int, tree_of_row) -> float:
        described = DESCRIBED * len(jax.tree.leaves(tree_of_row))
        return count * (described + tree.n_bytes(tree_of_row) * len(grid))

    numbers = 2 * 4 * config.steps + 4 * len(ends) + len(evaluated) * tree.n_bytes(scores)  # two metrics a step
    parts = {
        f"{n_checkpoints} checkpoints": saves(n_checkpoints, state),
        f"{len(kept)} snapshots": saves(len(kept), state.params),
        "metrics": numbers * len(grid) + ENTRY * len(ends) * (len(scores) + 5),
    }
    listed = ", ".join(f"{name} {size(n_bytes)}" for name, n_bytes in parts.items())
    return f"on disk about {size(sum(parts.values()))}: {listed}"


def size(n_bytes: float) -> str:
    """`12 kB`, `3.4 MB`, `56 GB`."""
    power, unit = next(((p, unit) for p, unit in ((1e9, "GB"), (1e6, "MB")) if n_bytes >= p), (1e3, "kB"))
    n_bytes /= power
    return f"{n_bytes:.2g} {unit}" if n_bytes < 100 else f"{n_bytes:.0f} {unit}"
