"""What every task gives: a `Batch`, and what a `Task` promises."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

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
    """What a task gives; each is one frozen dataclass on top of this, so that a task is a static argument of jit.

    Attributes:
      inputs: what its model reads, as `models.reads` says of families.
      classifies: there is one target a sequence, so that a model may answer once, (B, V), without positions.
      has_answer: sequences hold an answer, which has weight 1 where context and padding have 0: an `Objective` may
        train on something else. Such a task has an `answer_alphabet` and a `context_alphabet`.
      stream_only: why no finite training set may be drawn once and kept, for people; empty where one may.
      vocab_size, length: sizes the model must have; 0 where there are no tokens.
      splits: `train`, then the splits evaluation reports.
      hparams: those of its fields that a grid may vary, by name: a row that has one samples with it, others with the
        field.
      coords: names and values of the extra dimensions of array-valued scores, e.g. `{"pair": ("1,1", ...)}`.
      dims: score name -> its extra dimensions; scores not listed are scalars.
      answer_alphabet, context_alphabet: the tokens that noise puts in answers, and in contexts.
    """

    inputs = "tokens"
    classifies = False
    has_answer = False
    stream_only = ""
    vocab_size: int
    length: int
    splits: tuple[str, ...]
    hparams: tuple[str, ...] = ()
    coords: Mapping[str, tuple] = {}
    dims: Mapping[str, tuple[str, ...]] = {}
    answer_alphabet: Sequence[int]
    context_alphabet: Sequence[int]

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` clean sequences of a split; `n` and `split` static.

        Raises:
          ValueError: unknown split.
        """
        raise NotImplementedError

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """Accuracies by the name of the solution that earns them, of a batch as drawn."""
        raise NotImplementedError

    @property
    def cross_entropy(self) -> bool:
        """Whether the loss is mean cross-entropy by `lab.losses`: what measurements of curvature are of."""
        return type(self).mean_loss is Task.mean_loss

    def example(self):
        """What a model's parameters are shaped on: a batch of one, of what it reads; its values do not matter."""
        return np.zeros((1, self.length), np.int32)

    def mean_loss(self, outputs, batch: Batch) -> jax.Array:
        """What is descended, as one number: mean cross-entropy in nats, unless a task says otherwise."""
        return losses.mean_cross_entropy(outputs, batch)

    def files(self) -> dict[str, bytes]:
        """What a training keeps of its data, by file name: a training whose data say otherwise is not continued."""
        return {}


def check_split(task: Task, split: str) -> None:
    """
    Raises:
      ValueError: the task has no such split.
    """
    if split not in task.splits:
        raise ValueError(f"split {split!r}: one of {', '.join(task.splits)}")
