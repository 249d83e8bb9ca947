"""Spikes of the loss and jumps of dead neurons of one row, and whether they coincide."""

import math

import numpy as np

from lab.analysis import spikes
from lab.runs import Run

WITHIN, LARGEST, SHIFTS = 50, 0.01, 1000  # steps around a jump, share of increases that are jumps, circular shifts


def coincidence(run: Run, seed: int) -> tuple[int, float, float]:
    """Spikes of a seed at all its learning rates, the share of them near jumps of dead neurons, and p."""
    rates = run.values_of("learning_rate") if "learning_rate" in run.axes else [math.nan]
    pairs = [events(run, seed, rate) for rate in rates]
    spike_RxT, near_RxT = (np.stack(of) for of in zip(*pairs, strict=True))
    return int(spike_RxT.sum()), *spikes.shift_test(spike_RxT, near_RxT, SHIFTS, 0)


def events(run: Run, seed: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Of one row, boolean over training steps: spikes of its loss, and steps near a jump of its dead neurons."""
    at = dict(seed=seed) | ({} if math.isnan(rate) else dict(learning_rate=rate))
    loss_T = run.over_time("train_loss", (), **at).values
    dead = run.over_time("sparsity.dead", (), **at).mean("layer").dropna("snapshot")
    step_N = dead.snapshot.values
    jump_M = spikes.jumps(dead.values, LARGEST)
    near_T = spikes.near(step_N[:-1][jump_M], step_N[1:][jump_M] - 1, WITHIN, loss_T.size)
    return spikes.spikes(loss_T), near_T
