"""One task after another: the second is trained, and the first evaluated as well: how much of it is forgotten."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from lab.tasks.task import Batch, Task

FIRST = "first_"  # before the name of a split of the first task


@dataclasses.dataclass(frozen=True)
class Finetune(Task):
    """The second task, for a model that was trained on the first (see `lab.engine.init_from`): one vocabulary.

    Ids of tokens are shared, so that one id may mean a digit here and a key there. Sequences are as long as in the task
    that they are of.

    Attributes:
      task: what is trained, by rows' objective, and evaluated as ever.
      first: what was trained before. Of each of its splits a `first_<split>` is evaluated, clean; of its scores those
        that are one number.

    Raises:
      ValueError: a task without an answer.
    """

    task: Task
    first: Task

    has_answer = True

    def __post_init__(self):
        for name in ("task", "first"):
            if not getattr(self, name).has_answer or isinstance(getattr(self, name), Finetune):
                raise ValueError(
                    f"task.{name}={type(getattr(self, name)).__name__}: one task, and one with an answer, is needed"
                )

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

    @property
    def answer_alphabet(self) -> Sequence[int]:
        return self.task.answer_alphabet

    @property
    def context_alphabet(self) -> Sequence[int]:
        return self.task.context_alphabet

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """As the task whose split it is; `info["is_first_B"]` is there for those of the first task alone.

        Raises:
          ValueError: as the `sample` of the task whose split it is.
        """
        if not split.startswith(FIRST):
            return self.task.sample(key, n, split, hparams)
        batch = self.first.sample(key, n, split.removeprefix(FIRST), hparams)
        return batch._replace(info=batch.info | {"is_first_B": jnp.ones((n,), bool)})

    def score(self, logits_BxLxV, batch: Batch) -> dict[str, jax.Array]:
        """The scores of the task that the batch is of.

        Raises:
          ValueError: as that task's `score`.
        """
        is_first = "is_first_B" in batch.info
        task = self.first if is_first else self.task
        scores = task.score(logits_BxLxV, batch)
        return {name: score for name, score in scores.items() if not (is_first and name in task.dims)}

    def files(self) -> dict[str, bytes]:
        return self.task.files() | {FIRST + name: content for name, content in self.first.files().items()}
