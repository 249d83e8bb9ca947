"""All rows: `lab.engine.step` vmapped over blocks of rows, mapped over blocks, sharded over devices.

The only module of the engine that maps over the row axis. Steps are looped inside one compiled call, so the host reads
from the device once a chunk, and one program runs chunks of any length.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, PartitionSpec

from lab.engine import batches, shard, step
from lab.engine.shard import ROWS
from lab.engine.step import RowState
from lab.experiment import Experiment

DETERMINISTIC = {"xla_gpu_deterministic_ops": True}  # no atomics, no autotuning: the same bits every time


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides how a sweep is compiled, and nothing about what it computes.

    Attributes:
      split_params: spread large parameters over the mesh's `data` axis, as the batch is.
      deterministic: the same bits every time on a GPU too.
    """

    split_params: bool = False
    deterministic: bool = False


def options(config: ml_collections.ConfigDict) -> Options:
    """How a config's program is compiled."""
    return Options(config.split_params, config.deterministic)


class Sweep(NamedTuple):
    """Compiled programs over padded rows; hyperparameters and states carry the row axis first.

    Attributes:
      start: hparams -> state.
      chunk: (hparams, state, train_set, first_step, n_steps) -> (state, metrics of shape (rows, max_steps), of which
        the first n_steps count). The state given is consumed.
      evaluate: (hparams that data depend on, state, evaluation_set) -> metrics of shape (rows, ...).
    """

    start: Callable[[Mapping], RowState]
    chunk: Callable[..., tuple[RowState, dict]]
    evaluate: Callable[..., dict]


def build(experiment: Experiment, max_steps: int, width: int, mesh: Mesh, options: Options = Options()) -> Sweep:
    """The sweep's programs, compiled at first use.

    Args:
      max_steps: longest chunk that will be asked for.
      width: rows a vmap holds at once, on each device.
    """
    split_batch, split_state = shard.over_data(mesh, options.split_params)

    def start(hparams):
        return split_state(step.start(experiment, hparams))

    def drawn_once(hparams, train_set, first_step, n_steps):
        """What rows that see the same data need not each draw for themselves."""
        shared = batches.shared(experiment, hparams)
        return batches.draw_ahead(experiment, {}, first_step, max_steps) if shared else None

    def chunk(hparams, state, train_set, first_step, n_steps, ahead):
        """One row through `n_steps` (traced) steps, at most `max_steps` (static)."""
        batch_at = batches.batches(experiment, hparams, train_set, first_step, max_steps, ahead)
        packed = None if options.split_params else step.packing(experiment, state)

        def body(i, carry):
            state, recorded = carry
            now = first_step + i
            state, metrics = step.train_step(experiment, hparams, state, split_batch(batch_at(now)), now, packed)
            return split_state(state), {name: recorded[name].at[i].set(value) for name, value in metrics.items()}

        nothing = {name: jnp.full((max_steps,), jnp.nan, jnp.float32) for name in step.metric_names(experiment)}
        state = split_state(state) if packed is None else packed.pack_within(state)
        state, recorded = jax.lax.fori_loop(0, n_steps, body, (state, nothing))
        return (state if packed is None else packed.unpack_within(state)), recorded

    def evaluate(hparams, state, evaluation_set):
        if hparams:
            evaluation_set = batches.evaluation_set(experiment, None, hparams)
        return step.evaluate(experiment, state, {name: split_batch(batch) for name, batch in evaluation_set.items()})

    jit = functools.partial(jax.jit, compiler_options=DETERMINISTIC if options.deterministic else None)
    return Sweep(
        jit(over_rows(start, width, mesh, 1, 0)),
        jit(over_rows(chunk, width, mesh, 2, 3, drawn_once), donate_argnums=1),
        jit(over_rows(evaluate, width, mesh, 2, 1)),
    )


def over_rows(
    function: Callable, width: int, mesh: Mesh, n_row_args: int, n_shared_args: int, once: Callable | None = None
) -> Callable:
    """`function` of one row, mapped: its first arguments carry rows, the rest are the same for all of them.

    Args:
      once: computes one more of these, of the first argument and the shared ones, before rows are mapped over.
    """

    def blocks(*args):
        rows, shared = args[:n_row_args], args[n_row_args:]
        shared += () if once is None else (once(rows[0], *shared),)
        n_rows = jax.tree.leaves(rows)[0].shape[0]
        one_row = lambda row: function(*row, *shared)  # noqa: E731
        if n_rows == width > 1:
            return jax.vmap(one_row)(rows)
        # a vmap of one row is not free: on a CPU its axis of length 1 hides reductions from XLA's fast kernels
        return jax.lax.map(one_row, rows, batch_size=width if width > 1 else None)

    specs = (ROWS,) * n_row_args + (PartitionSpec(),) * n_shared_args
    # only `run` is mapped by hand; XLA partitions what is along `data`
    return jax.shard_map(blocks, mesh=mesh, in_specs=specs, out_specs=ROWS, axis_names={"run"}, check_vma=False)
