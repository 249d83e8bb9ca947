"""The rows of a training on their devices: started or resumed, advanced chunk by chunk, evaluated, fetched."""

from collections.abc import Mapping

import jax

from lab.disk import store
from lab.engine import batches, shard, sweep
from lab.engine.shard import Layout
from lab.engine.step import RowState
from lab.engine.sweep import Options
from lab.experiment import Experiment
from lab.grid import Grid


class Rows:
    """All rows of a grid. Where they are too many for the devices' memory, waves of them wait in the host's.

    Nothing here waits for a device but `fetch`; what `advance` and `evaluate` return is read with `layout.read`.
    """

    def __init__(self, experiment: Experiment, grid: Grid, layout: Layout, most_steps: int, options: Options):
        self.experiment, self.layout, self.options = experiment, layout, options
        self.programs = sweep.build(experiment, most_steps, layout.width, layout.mesh, options)
        self.hparams = layout.place(store.take_rows(grid.arrays(), *layout.needed))
        train_set = batches.train_set(experiment)
        evaluation_set = batches.evaluation_set(experiment, train_set)
        self.train_set = shard.replicate(train_set, layout.mesh)
        self.evaluation_set = shard.replicate(evaluation_set, layout.mesh)
        self.waves: list[RowState] = []
        self.wave = layout.abstract(jax.eval_shape(self.programs.start, self.hparams[0]), options.split_params)

    def start(self, given: Mapping = batches.NONE) -> None:
        """The rows before training.

        Args:
          given: fields of `RowState` that are not as drawn, see `origin.weights`; of the rows that this process needs,
            see `Layout.needed`.
        """
        placed = self.layout.place(dict(given), self.options.split_params)
        drawn = zip(self.hparams, placed, strict=True)
        self.waves = [self._park(self.programs.start(hparams)._replace(**fields)) for hparams, fields in drawn]

    def resume(self, rows_R: RowState) -> None:
        """The rows that `fetch` gave; those that this process needs, see `Layout.needed`."""
        self.waves = [self._park(wave) for wave in self.layout.place(rows_R, self.options.split_params)]

    def abstract(self) -> RowState:
        """Shapes and dtypes of all rows' state, without padding."""
        n_rows = self.layout.n_rows
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n_rows, *leaf.shape[1:]), leaf.dtype), self.wave)

    def advance(self, first: int, end: int) -> list:
        """Trains from step `first` to `end`; the steps' metrics, published, of shape (rows, most_steps)."""
        recorded = []
        for i, hparams in enumerate(self.hparams):
            state, metrics = self.programs.chunk(hparams, self._unpark(i), self.train_set, first, end - first)
            self.waves[i] = self._park(state)
            recorded.append(metrics)
        return self.layout.publish(recorded)

    def wait(self) -> None:
        """Until the devices are done."""
        jax.block_until_ready(self.waves)

    def evaluate(self) -> list:
        """Loss and scores on every split, published."""
        scores = [
            self.programs.evaluate(batches.varied(self.experiment, hparams), self._unpark(i), self.evaluation_set)
            for i, hparams in enumerate(self.hparams)
        ]
        return self.layout.publish(scores)

    def diverged_at(self) -> list:
        """The step at which each row went non-finite, published; a copy, since the next chunk consumes the state."""
        return self.layout.publish([wave.diverged_at.copy() for wave in self.waves])

    def fetch(self) -> RowState:
        """Host arrays of this process's rows."""
        return self.layout.fetch(self.waves)

    def _park(self, state: RowState) -> RowState:
        if self.options.split_params:
            # XLA chose where small leaves lie; the next chunk shall find them where a resumed training has them
            state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, self.wave))
        return self._in_memory(state, "pinned_host") if self.layout.waves > 1 else state

    def _unpark(self, i: int) -> RowState:
        return self._in_memory(self.waves[i], "device") if self.layout.waves > 1 else self.waves[i]

    def _in_memory(self, state: RowState, kind: str) -> RowState:
        return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding.with_memory_kind(kind)), state)
