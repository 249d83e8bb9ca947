"""All rows of a training on their devices: start, resume, advance, evaluate, fetch."""

import time
from collections.abc import Mapping

import jax

from lab import limits
from lab.disk import store
from lab.engine import batches, compiled, shard
from lab.engine.shard import Layout
from lab.engine.step import RowState
from lab.engine.sweep import Options
from lab.experiment import Experiment
from lab.grid import Grid

LONGEST_NAP, NAP_SHARE = 0.1, 0.005  # seconds, and share of what the devices have taken so far


class Rows:
    """All rows of a grid. Where they are too many for the devices' memory, batches of them are offloaded to the host's.

    `advance` and `evaluate` do not wait for the devices; what they return is read with `layout.to_host`.
    """

    def __init__(self, experiment: Experiment, grid: Grid, layout: Layout, max_steps: int, options: Options):
        self.experiment, self.layout, self.options = experiment, layout, options
        self.programs = compiled.programs(experiment, grid, layout, max_steps, options)
        self.programs.compile_ahead("chunk")  # which takes longest, while the others are compiled here
        self.hparams = layout.to_device(store.take_rows(grid.arrays(), *layout.source_rows))
        self.train_set, self.evaluation_set = (shard.replicate(part, layout.mesh) for part in batches.data(experiment))
        self.row_batches: list[RowState] = []
        self.batch_shape = self.programs.state

    def start(self, given: Mapping = limits.NONE) -> None:
        """The rows before training.

        Args:
          given: fields of `RowState` that are not as drawn, see `init_from.weights`, for `layout.source_rows`.
        """
        placed = self.layout.to_device(dict(given), self.options.split_params)
        drawn = zip(self.hparams, placed, strict=True)
        starts = (self.programs.start(hparams)._replace(**fields) for hparams, fields in drawn)
        self.row_batches = [self._offload(start) for start in starts]

    def resume(self, rows_R: RowState) -> None:
        """The rows that `fetch` gave, for `layout.source_rows`."""
        self.row_batches = [self._offload(batch) for batch in self.layout.to_device(rows_R, self.options.split_params)]

    def abstract(self) -> RowState:
        """Shapes and dtypes of all rows' state, without padding."""
        n_rows = self.layout.n_rows
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n_rows, *leaf.shape[1:]), leaf.dtype), self.batch_shape)

    def advance(self, first: int, end: int) -> list:
        """Trains from step `first` to `end`; the steps' metrics, gathered, of shape (rows, max_steps)."""
        recorded = []
        for i, hparams in enumerate(self.hparams):
            state, metrics = self.programs.chunk(hparams, self._load(i), self.train_set, first, end - first)
            self.row_batches[i] = self._offload(state)
            recorded.append(metrics)
        return self.layout.all_gather(recorded)

    def wait(self) -> None:
        """Until the devices are done. Signals are heard meanwhile, which inside of JAX's own waiting they are not."""
        begun, leaves = time.monotonic(), jax.tree.leaves(self.row_batches)
        while not all(leaf.is_ready() for leaf in leaves):
            time.sleep(min(LONGEST_NAP, NAP_SHARE * (time.monotonic() - begun)))
        jax.block_until_ready(leaves)

    def evaluate(self) -> list:
        """Loss and scores on every split, gathered."""
        scores = [
            self.programs.evaluate(batches.varied(self.experiment, hparams), self._load(i), self.evaluation_set)
            for i, hparams in enumerate(self.hparams)
        ]
        return self.layout.all_gather(scores)

    def diverged_at(self) -> list:
        """The step at which each row went non-finite, gathered; a copy, since the next chunk consumes the state."""
        return self.layout.all_gather([batch.diverged_at.copy() for batch in self.row_batches])

    def fetch(self) -> RowState:
        """Host arrays of this process's rows."""
        return self.layout.fetch(self.row_batches)

    def _offload(self, state: RowState) -> RowState:
        if self.options.split_params:
            # XLA chose where small leaves lie; the next chunk shall find them where a resumed training has them
            state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, self.batch_shape))
        return self._in_memory(state, "pinned_host") if self.layout.row_batches > 1 else state

    def _load(self, i: int) -> RowState:
        return self._in_memory(self.row_batches[i], "device") if self.layout.row_batches > 1 else self.row_batches[i]

    def _in_memory(self, state: RowState, kind: str) -> RowState:
        return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding.with_memory_kind(kind)), state)
