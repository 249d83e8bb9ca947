"""The compiled programs of a grid: what is planned is what trains, and each is compiled once, whoever asks first."""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lab.disk import provenance
from lab.engine import batches, sweep
from lab.engine.shard import Layout
from lab.engine.sweep import Options
from lab.experiment import Experiment
from lab.grid import Grid


class Programs:
    """`sweep.Sweep`, compiled for the arrays of a layout; a program is compiled when it is first asked for.

    Attributes:
      start, chunk, evaluate: as in `sweep.Sweep`.
    """

    def __init__(self, experiment: Experiment, layout: Layout, max_steps: int, options: Options, columns: tuple):
        """
        Args:
          columns: names and dtypes of the hyperparameters.
        """
        self._sweep = sweep.build(experiment, max_steps, layout.width, layout.mesh, options)
        hparams = layout.abstract({name: jax.ShapeDtypeStruct((1,), dtype) for name, dtype in columns})
        self.state = layout.abstract(jax.eval_shape(self._sweep.start, hparams), options.split_params)
        train_set, evaluation_set = (self._everywhere(layout, part) for part in batches.traced(experiment).shapes)
        self._arguments = {
            "start": (hparams,),
            "chunk": (hparams, self.state, train_set, 0, 1),
            "evaluate": (batches.varied(experiment, hparams), self.state, evaluation_set),
        }
        self._compiled: dict[str, Future] = {}

    def __getattr__(self, name: str) -> Callable:
        if name not in ("start", "chunk", "evaluate"):
            raise AttributeError(name)
        return self.compile_ahead(name).result()

    def compile_ahead(self, name: str) -> Future:
        """Begins to compile a program in a thread, unless that has begun. It is traced here, with JAX's switches."""
        if name in self._compiled:
            return self._compiled[name]
        lowered = getattr(self._sweep, name).lower(*self._arguments[name])
        future = self._compiled[name] = Future()

        def compile_it() -> None:
            try:
                future.set_result(lowered.compile())
            except BaseException as error:
                self._compiled.pop(name, None)  # the next one who asks tries again: memory may have run out for a while
                future.set_exception(error)

        threading.Thread(target=compile_it, name=f"compile {name}").start()
        return future

    @staticmethod
    def _everywhere(layout: Layout, arrays):
        sharding = NamedSharding(layout.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arrays)


def programs(experiment: Experiment, grid: Grid, layout: Layout, max_steps: int, options: Options) -> Programs:
    """The programs for the rows of a grid, the same object for the same shapes: what is planned is what trains."""
    columns = tuple((name, str(column.dtype)) for name, column in grid.arrays().items())
    return _programs(experiment, layout, max_steps, options, columns, repr(provenance.numerics()))


@functools.lru_cache(maxsize=6)  # the widths that a plan measures
def _programs(experiment, layout, max_steps, options, columns, numerics: str) -> Programs:
    """
    Args:
      numerics: what else decides what is compiled.
    """
    return Programs(experiment, layout, max_steps, options, columns)


def forget() -> None:
    """Drops all programs, and data that were drawn: what they were made of may change without being another value."""
    _programs.cache_clear()
    batches.forget()
