"""One row of a training as it is looked at: its model, its parameters, what it says; and how notebooks show it."""

import dataclasses
import functools
import html
from collections.abc import Callable, Mapping

import jax
import xarray as xr

from lab import models, rng
from lab.engine import numerics

SHOWN = 8  # sequences that a row is looked at with, where nobody says how many


class Lines(str):
    """Text that a notebook shows as it is."""

    def __repr__(self) -> str:
        return str(self)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a training: its hyperparameters, model, parameters and activations.

    Attributes:
      dataset: of the training.
      index: of the row in the grid.
    """

    dataset: xr.Dataset
    index: int

    @property
    def hparams(self) -> dict:
        return self.dataset.lab.work.grid.row(self.index)

    @property
    def model(self):
        """The Flax module, answering at every position."""
        return self.dataset.lab.model

    @functools.cached_property
    def params(self) -> dict:
        """At the last snapshot; see `params_at`."""
        return self.params_at()

    def params_at(self, step: int | None = None) -> dict:
        """At the snapshot of a step; None: at the last.

        Raises:
          WorkdirError: no such snapshot.
        """
        return self.dataset.lab.work.params(step, self.index)

    @numerics.fixed()
    def batch(self, split: str | None = None, n: int = SHOWN):
        """`n` new examples of a split (None: the last one), as a `lab.Batch`."""
        experiment = self.dataset.lab.work.experiment
        split, key = split or experiment.task.splits[-1], rng.key(experiment.data_seed, "look")
        hparams = {name: self.hparams[name] for name in experiment.task.hparams if name in self.hparams}
        return experiment.task.sample(key, n, split, hparams)

    def outputs(self, inputs=None, **options):
        """What the model says of inputs (None: of `batch`); `options` as `acts`."""
        return self._forward(inputs, **options)[0]

    def acts(self, inputs=None, **options) -> dict[str, jax.Array]:
        """Name -> activation, of a model that returns them.

        Args:
          inputs: None: of `batch(split, n)`.
          options: `split`, `n`, `edits`: activation name -> function applied there.
        """
        return self._forward(inputs, **options)[1]

    @numerics.fixed()
    def _forward(self, inputs, split: str | None = None, n: int = SHOWN, edits: Mapping[str, Callable] = {}):
        inputs = self.batch(split, n).tokens_BxL if inputs is None else inputs
        return models.forward(self.model, self.params, inputs, edits)

    def __repr__(self) -> str:
        return f"Row {self.index}: " + ", ".join(f"{name} {value:g}" for name, value in self.hparams.items())

    def _repr_html_(self) -> str:
        return f"<div>{html.escape(repr(self))}</div>{shown(self.model)}{shown(self.params)}"


def shown(value) -> str:
    """For a notebook: by treescope, where it is installed."""
    try:
        import treescope
    except ImportError:
        shapes = jax.tree.map(lambda leaf: f"{leaf.dtype} {leaf.shape}" if hasattr(leaf, "shape") else leaf, value)
        return f"<pre>{html.escape(str(shapes))}</pre>"
    return treescope.render_to_html(value, compressed=True)
