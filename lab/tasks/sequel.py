"""One task after another: what is trained on the second, and asked for the first as well. Has it been forgotten?"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab.tasks.answers import PAD, AnswerTask
from lab.tasks.batch import Batch, Task

FIRST = "first_"  # before the name of a split of the first task


@dataclasses.dataclass(frozen=True)
class Sequel(Task):
    """The second task, for a model that was trained on the first (see `lab.engine.origin`): one vocabulary, one length.

    Sequences of the shorter task are padded to the length of the longer one, at the end, which no earlier position of
    a causal model can see; ids of tokens are shared, so that one id may mean a digit here and a key there.

    Attributes:
      task: what is trained, altered by rows' objective and noise, and evaluated as ever.
      first: what was trained before. Of each of its splits a `first_<split>` is evaluated, clean; of its scores those
        that are one number.
    """

    task: AnswerTask
    first: AnswerTask

    alterations = AnswerTask.alterations

    @property
    def vocab_size(self) -> int:
        return max(self.task.vocab_size, self.first.vocab_size)

    @property
    def length(self) -> int:
        return max(self.task.length, self.first.length)

    @property
    def splits(self) -> tuple[str, ...]:
        return (*self.task.splits, *(FIRST + split for split in self.first.splits))

    @property
    def coords(self) -> Mapping[str, tuple]:
        return self.task.coords

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return self.task.dims

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences of a split, int32 (n, length); `info["is_first_B"]` is there for those of the first task alone.

        Raises:
          ValueError: as the `sample` of the task whose split it is.
        """
        if not split.startswith(FIRST):
            return self._padded(self.task.sample(key, n, split, hparams))
        batch = self._padded(self.first.sample(key, n, split.removeprefix(FIRST), hparams))
        return batch._replace(info=batch.info | {"is_first_B": jnp.ones((n,), bool)})

    def alter(self, batch: Batch, hparams: Mapping) -> Batch:
        return self._padded(self.task.alter(_cut(batch, self.task), hparams))

    def score(self, logits_BxLxV, batch: Batch) -> dict[str, jax.Array]:
        """The scores of the task that the batch is of.

        Raises:
          ValueError: logits at fewer positions than the batch has.
        """
        if logits_BxLxV.shape[1] != self.length:
            raise ValueError(f"logits at {logits_BxLxV.shape[1]} of {self.length} positions: use model.readout='all'")
        is_first = "is_first_B" in batch.info
        of = self.first if is_first else self.task
        scores = of.score(logits_BxLxV[:, : of.length], _cut(batch, of))
        return {name: score for name, score in scores.items() if not (is_first and name in of.dims)}

    def files(self) -> dict[str, bytes]:
        return self.task.files() | {FIRST + name: content for name, content in self.first.files().items()}

    def _padded(self, batch: Batch) -> Batch:
        after = ((0, 0), (0, self.length - batch.tokens_BxL.shape[1]))
        tokens, targets = (jnp.pad(tokens_BxL, after, constant_values=PAD) for tokens_BxL in batch[:2])
        return Batch(tokens, targets, jnp.pad(batch.weights_BxL, after), batch.info)


def _cut(batch: Batch, task: Task) -> Batch:
    """Without the padding."""
    return Batch(*(leaf_BxL[:, : task.length] for leaf_BxL in batch[:3]), batch.info)
