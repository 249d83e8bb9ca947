"""What every task gives: a `Batch`, and what a `Task` promises."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lab import losses


class Batch(NamedTuple):
    """B sequences of L tokens.

    A task that is not of language (see `lab.tasks.shapes`) gives in the first three fields what its model reads, what
    its loss compares the answer with, and weights: any trees of arrays with leading axis B.

    Attributes:
      tokens_BxL: int32, what the model reads.
      targets_BxL: int32, what it should say at each position (the next token).
      weights_BxL: float32, how much each position counts in the loss; 0 where it is not scored.
      info: what the scorer needs to know of each sequence, arrays with leading axis B.
    """

    tokens_BxL: jax.Array
    targets_BxL: jax.Array
    weights_BxL: jax.Array
    info: dict[str, jax.Array]


class Task:
    """What a task gives; subclasses are frozen dataclasses, so that a task is a static argument of jit.

    Attributes:
      inputs: what its model reads, as `models.reads` says of families.
      vocab_size, length: sizes the model must have; 0 where there are no tokens.
      splits: `train`, then the splits evaluation reports.
      hparams: those of its fields that a grid may vary, by name: a row that has one samples with it, others with the
        field.
      alterations: as `hparams`, of those that `alter` reads.
      coords: names and values of the extra dimensions of array-valued scores, e.g. `{"pair": ("1,1", ...)}`.
      dims: score name -> its extra dimensions; scores not listed are scalars.
    """

    inputs = "tokens"
    vocab_size: int
    length: int
    splits: tuple[str, ...]
    hparams: tuple[str, ...] = ()
    alterations: tuple[str, ...] = ()
    coords: Mapping[str, tuple] = {}
    dims: Mapping[str, tuple[str, ...]] = {}

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences of a split; `n` and `split` static."""
        raise NotImplementedError

    def alter(self, batch: Batch, hparams: Mapping) -> Batch:
        """What a row is trained on in place of a batch drawn for all rows: other weights of positions, noise, ..."""
        return batch

    def example(self):
        """What a model's parameters are shaped on: a batch of one, of what it reads; its values do not matter."""
        return jnp.zeros((1, self.length), jnp.int32)

    def mean_loss(self, outputs, batch: Batch) -> jax.Array:
        """What is descended, as one number: mean cross-entropy in nats, unless a task says otherwise."""
        return losses.mean_cross_entropy(outputs, batch)

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """Accuracies by the name of the solution that earns them."""
        raise NotImplementedError

    def of_row(self, hparams: Mapping) -> "Task":
        """The task with a row's values, of `hparams` and `alterations`, in place of its own.

        Raises:
          ValueError: values that it would refuse as its own.
        """
        return dataclasses.replace(self, **hparams)

    def check_train_size(self, train_size: int) -> None:
        """
        Raises:
          ValueError: no training set of `train_size` examples may be drawn once and kept.
        """

    def files(self) -> dict[str, bytes]:
        """What a training keeps of its data, by file name: a training whose data say otherwise is not continued."""
        return {}
