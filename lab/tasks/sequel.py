"""One task after another: what is trained on the second, and asked for the first as well. Has it been forgotten?"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab.tasks.answers import AnswerTask
from lab.tasks.batch import Batch, Task

FIRST = "first_"  # before the name of a split of the first task


@dataclasses.dataclass(frozen=True)
class Sequel(Task):
    """The second task, for a model that was trained on the first (see `lab.engine.init_from`): one vocabulary.

    Ids of tokens are shared, so that one id may mean a digit here and a key there. Sequences are as long as in the task
    that they are of.

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
        """As the task whose split it is; `info["is_first_B"]` is there for those of the first task alone.

        Raises:
          ValueError: as the `sample` of the task whose split it is.
        """
        if not split.startswith(FIRST):
            return self.task.sample(key, n, split, hparams)
        batch = self.first.sample(key, n, split.removeprefix(FIRST), hparams)
        return batch._replace(info=batch.info | {"is_first_B": jnp.ones((n,), bool)})

    def alter(self, batch: Batch, hparams: Mapping) -> Batch:
        return self.task.alter(batch, hparams)

    def of_row(self, hparams: Mapping) -> "Sequel":
        return dataclasses.replace(self, task=self.task.of_row(hparams))

    def score(self, logits_BxLxV, batch: Batch) -> dict[str, jax.Array]:
        """The scores of the task that the batch is of.

        Raises:
          ValueError: as that task's `score`.
        """
        is_first = "is_first_B" in batch.info
        of = self.first if is_first else self.task
        scores = of.score(logits_BxLxV, batch)
        return {name: score for name, score in scores.items() if not (is_first and name in of.dims)}

    def files(self) -> dict[str, bytes]:
        return self.task.files() | {FIRST + name: content for name, content in self.first.files().items()}
