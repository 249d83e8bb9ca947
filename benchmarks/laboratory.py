"""Our ways, and all that the benchmarks ask of `lab.engine`."""

import functools
import math
import time
from collections.abc import Callable, Mapping

import flops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from workload import Way, Workload

from lab import config as configs
from lab import grid as grids
from lab import tree
from lab.configs import composition
from lab.engine import batches, memory, step, sweep
from lab.experiment import Experiment

LARGE = {"cpu": 2048, "gpu": 8192}  # side of a matrix whose products fill the device


def config_of(workload: Workload):
    """The config of one variant, as the workload changes it."""
    config = configs.variants(composition.get_config(workload.preset))[workload.variant]
    config.update(batch_size=workload.batch_size, train_size=0)
    for section, changes in (("model", workload.changes), ("task", workload.task)):
        with config.unlocked():
            if "family" in changes:
                config[section] = ConfigDict(dict(changes))
            else:
                config[section].update(dict(changes))
    return config


def experiment(workload: Workload) -> Experiment:
    """The static half of the training."""
    return configs.experiment(config_of(workload))


def rows(workload: Workload, n_rows: int) -> grids.Grid:
    """Init rates from 0.35 to 0.8 and a seed each, at the config's first learning rate."""
    columns = {
        "gamma": np.linspace(0.35, 0.8, n_rows),
        "weight_decay": [0.01] * n_rows,
        "learning_rate": [config_of(workload).grid.learning_rate[0]] * n_rows,
        "seed": list(range(n_rows)),
    }
    return grids.zipped(columns)


def first_row(workload: Workload) -> tuple[Mapping, Mapping]:
    """Hyperparameters of row 0, and its parameters before training, on the host."""
    row = rows(workload, 1).row(0)
    return row, jax.device_get(step.start(experiment(workload), row).params)


def facts(workload: Workload) -> dict:
    """Sizes of one model, and the operations of one step of it: of what is `computed`, and of the `full` model, which
    answers at every position."""
    fixed = experiment(workload)
    state = jax.eval_shape(functools.partial(step.start, fixed), rows(workload, 1).row(0))
    sizes = fixed.batch_size, fixed.task.length
    return {
        "n_parameters": tree.size(state.params),
        "n_tokens": math.prod(sizes),
        "computed": flops.train_step(fixed.model, *sizes),
        "full": flops.train_step(fixed.model.clone(readout="all"), *sizes),
    }


def run_mesh(n_devices: int) -> Mesh:
    """The first `n_devices` devices, all for 0, on the `run` axis.

    Raises:
      ValueError: there are not so many.
    """
    devices = jax.devices()
    if n_devices > len(devices):
        raise ValueError(f"{n_devices} devices asked for, there are {len(devices)}")
    return Mesh(np.array(devices[: n_devices or None]).reshape(-1, 1), ("run", "data"))


def grid_way(workload: Workload) -> Way:
    """Many rows, `width` of them in a vmap, dealt out over the devices."""
    mesh = run_mesh(workload.n_devices)
    n_rows = workload.rows * mesh.size
    hparams = jax.device_put(rows(workload, n_rows).arrays(), NamedSharding(mesh, PartitionSpec("run")))
    programs = sweep.build(experiment(workload), workload.chunk, workload.width, mesh)
    state = programs.start(hparams)
    compiled = programs.chunk.lower(hparams, state, None, 0, workload.chunk).compile()

    def chunk(state, first_step, n_steps):
        state, metrics = compiled(hparams, state, None, first_step, n_steps)
        return state, np.asarray(metrics["train_loss"])[:, n_steps - 1].mean()

    return _way(workload, n_rows, state, chunk, mesh, memory.of_program(compiled))


def lone_way(workload: Workload) -> Way:
    """One row, with neither vmap nor mesh, on one device, which takes as many threads as it likes."""
    fixed, hparams = experiment(workload), rows(workload, 1).row(0)

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state, first_step, n_steps):
        batch_at = batches.batches(fixed, hparams, None, first_step, workload.chunk)

        def body(now, carry):
            state, metrics = step.train_step(fixed, hparams, carry[0], batch_at(now), now)
            return state, metrics["train_loss"]

        return jax.lax.fori_loop(first_step, first_step + n_steps, body, (state, jnp.float32(jnp.nan)))

    state = jax.jit(functools.partial(step.start, fixed))(hparams)
    compiled = chunk.lower(state, 0, workload.chunk).compile()
    return _way(workload, 1, state, compiled, run_mesh(1), memory.of_program(compiled))


def _way(workload: Workload, n_rows: int, state, chunk: Callable, mesh: Mesh, held: int) -> Way:
    done = 0

    def run(n_steps):
        nonlocal state, done
        for _ in range(math.ceil(n_steps / workload.chunk)):
            state, loss = chunk(state, done, workload.chunk)
            done += workload.chunk
        jax.block_until_ready(state)
        return float(loss)

    peak = functools.partial(matmul_rate, mesh, LARGE[workload.accelerator])
    return Way(n_rows, run, peak, mesh.devices.flat[0].device_kind, mesh.size, workload.chunk, held)


def matmul_rate(mesh: Mesh, size: int) -> float:
    """FLOP/s of float32 products of two `size` x `size` matrices, one on each device of the mesh; the best of three."""
    shape = (mesh.size, size, size)
    ones = jax.device_put(np.ones(shape, np.float32), NamedSharding(mesh, PartitionSpec("run")))
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(4):  # the first compiles
        begun = time.perf_counter()
        product(ones, ones).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return 2 * mesh.size * size**3 / min(seconds)
