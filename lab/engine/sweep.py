"""All rows: `lab.engine.step` vmapped over blocks of rows, blocks in turn, devices side by side.

The only module of the engine that knows the row axis. Steps are looped outside the vmap's body and inside one compiled
call, so the host hears from the device once a chunk, and any chunk length runs in the same program.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lab.engine import data, step
from lab.engine.shard import ROWS
from lab.engine.step import Experiment, RowState


class Sweep(NamedTuple):
    """Compiled programs over padded rows; hyperparameters and states carry the row axis first.

    Attributes:
      start: hparams -> state.
      chunk: (hparams, state, train_set, first_step, n_steps) -> (state, metrics of shape (rows, most_steps), of which
        the first n_steps count). The state given is consumed.
      evaluate: (state, evaluation_set) -> metrics of shape (rows, ...).
    """

    start: Callable[[Mapping], RowState]
    chunk: Callable[..., tuple[RowState, dict]]
    evaluate: Callable[..., dict]


def train_chunk(experiment: Experiment, most_steps: int, hparams, state, train_set, first_step, n_steps):
    """One row through `n_steps` (traced) steps, at most `most_steps` (static)."""
    batch_at = data.batches(experiment, hparams, train_set, first_step, most_steps)

    def body(i, carry):
        state, recorded = carry
        now = first_step + i
        state, metrics = step.train_step(experiment, hparams, state, batch_at(now), now)
        return state, {name: recorded[name].at[i].set(value) for name, value in metrics.items()}

    nothing = {name: jnp.full((most_steps,), jnp.nan, jnp.float32) for name in ("train_loss", "grad_norm")}
    return jax.lax.fori_loop(0, n_steps, body, (state, nothing))


def over_rows(function: Callable, width: int, mesh: Mesh, n_row_args: int, n_shared_args: int) -> Callable:
    """`function` of one row, mapped: its first arguments carry rows, the rest are the same for all of them."""

    def blocks(*args):
        rows, shared = args[:n_row_args], args[n_row_args:]
        n_rows = jax.tree.leaves(rows)[0].shape[0]
        one_row = lambda row: function(*row, *shared)  # noqa: E731
        return jax.vmap(one_row)(rows) if n_rows == width else jax.lax.map(one_row, rows, batch_size=width)

    specs = (ROWS,) * n_row_args + (PartitionSpec(),) * n_shared_args
    return jax.shard_map(blocks, mesh=mesh, in_specs=specs, out_specs=ROWS, check_vma=False)


def build(experiment: Experiment, most_steps: int, width: int, mesh: Mesh) -> Sweep:
    """The sweep's programs, compiled at first use.

    Args:
      most_steps: longest chunk that will be asked for.
      width: rows a vmap holds at once, on each device.
    """
    start = over_rows(functools.partial(step.start, experiment), width, mesh, 1, 0)
    chunk = over_rows(functools.partial(train_chunk, experiment, most_steps), width, mesh, 2, 3)
    evaluate = over_rows(functools.partial(step.evaluate, experiment), width, mesh, 1, 1)
    return Sweep(jax.jit(start), jax.jit(chunk, donate_argnums=1), jax.jit(evaluate))
