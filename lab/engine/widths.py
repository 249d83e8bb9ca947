"""Measures how many rows at once a device computes fastest, on the program that trains."""

import math
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from lab.engine import batches, compiled, estimate, memory, shard
from lab.engine.shard import Layout
from lab.engine.sweep import Options
from lab.experiment import Experiment
from lab.grid import Grid

REPEATS, SECONDS = 7, 0.2  # timings of each width, the best of which counts, and how long each shall last
STEP_SECONDS = 1.0  # a step of all rows that is guessed to take longer is measured with a block of rows instead


def explore(
    measure: Callable[[int], tuple[float | None, int]],
    widest: int,
    factor: int = 4,
    slower: float = 0.95,
    affordable: Callable[[dict[int, float]], bool] = lambda rates: True,
) -> tuple[dict[int, float], dict[int, int]]:
    """Rates and memory of widths 1, factor, factor^2, ... up to the first that does not pay, then of the best one's
    neighbours.

    Args:
      measure: width -> (rate or None where it does not fit, bytes).
      slower: a width below this share of the best rate is given up, and with it all wider ones.
      affordable: of the rates so far, whether one more may be measured.
    """
    rates, needed = {}, {}

    def goes_on(width: int) -> bool:
        if not affordable(rates):
            return False
        rate, needed[width] = measure(width)
        if rate is not None:
            rates[width] = rate
        return rate is not None and rate >= slower * max(rates.values())

    width = 1
    while width <= widest and goes_on(width):
        width *= factor
    if rates:
        best = max(rates, key=rates.get)
        for neighbour in (best // 2, min(best * 2, widest)):
            if neighbour >= 1 and neighbour not in needed and factor > 2:
                goes_on(neighbour)
    return rates, needed


def rate(
    experiment: Experiment, grid: Grid, mesh: Mesh, options: Options, max_steps: int, width: int
) -> tuple[float | None, int]:
    """Row-steps/s on the devices of this process, None where a block does not fit; and the bytes it needs on each."""
    try:
        return _rate(experiment, grid, mesh, options, max_steps, width)
    except jax.errors.JaxRuntimeError as error:
        if not memory.has_run_out(error):
            raise
        return None, math.ceil(min(memory.of_device(), 2**60))


def _rate(experiment, grid: Grid, mesh: Mesh, options: Options, max_steps, width: int) -> tuple[float | None, int]:
    row_bytes = memory.of_row(experiment, grid, mesh, options)
    layout = _layout(experiment, grid, mesh, width, row_bytes)
    programs = compiled.programs(experiment, grid, layout, max_steps, options)
    # of all rows' states only those at work are counted here: the others may wait elsewhere
    needed = math.ceil(memory.of_program(programs.chunk) - (layout.rows_each - layout.width) * row_bytes)
    if needed > memory.SHARE * memory.of_device():
        return None, needed

    (hparams,) = layout.to_device(grid.take(np.arange(layout.n_rows) % len(grid)).arrays())
    train_set = shard.replicate(batches.data(experiment).train_set, layout.mesh)
    (state,) = layout.to_device(jax.device_get(programs.start(hparams)), options.split_params)

    def seconds(n_steps: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(programs.chunk(hparams, state, train_set, 0, n_steps))
        taken = time.perf_counter() - begun
        if options.split_params:  # XLA chose where small leaves lie
            state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, programs.state))
        return taken

    seconds(1)
    # a call draws the data of `max_steps` steps, however few it takes
    call_seconds = min(seconds(0) for _ in range(REPEATS))
    n_steps = min(max_steps, max(1, math.ceil(SECONDS / max(seconds(1) - call_seconds, 1e-9))))
    steps_seconds = min(seconds(n_steps) for _ in range(REPEATS)) - call_seconds
    return layout.n_rows / (max(steps_seconds, 1e-9) / n_steps + call_seconds / max_steps), needed


def _layout(experiment: Experiment, grid: Grid, mesh: Mesh, width: int, row_bytes: float) -> Layout:
    """That of the training, whose program is then compiled once; one block on each device where a step takes long."""
    whole = shard.layout(mesh, len(grid), width)
    step_seconds = whole.rows_each * estimate.flops(experiment, grid) / estimate.device_flops()
    fits = memory.row_batches(row_bytes, whole.rows_each) == 1
    if jax.process_count() == 1 and fits and step_seconds < STEP_SECONDS:
        return whole
    groups = [group for group in mesh.devices if group[0].process_index == jax.process_index()]
    return Layout(Mesh(np.array(groups), mesh.axis_names), width * len(groups), width, width, 1)
