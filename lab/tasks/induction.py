"""A pattern of distinct tokens that repeats: after a token seen before comes what came after it then.

x_t = pattern[t mod p], the period p uniform and another in every sequence. Targets count from the first repeated token
on, where content tells what follows: find the token's earlier place, read the one after it. Two layers of attention
can (an *induction head*: a head that writes each token's predecessor, and one that looks for it), one head in one layer
cannot ("In-context Learning and Induction Heads", arXiv 2209.11895). No sequence holds a token more than twice, so no
distance is a multiple of two periods.

What a model can do that knows positions alone: it guesses the period. `positions_accuracy` is the best of that.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab import limits
from lab.tasks import answers
from lab.tasks.task import Batch, Task, check_split


@dataclasses.dataclass(frozen=True)
class Induction(Task):
    """The task as a value.

    Attributes:
      low, high: of the period, both inclusive.
      length: tokens that are read; at most twice the shortest period.
      vocab_size: tokens, all of which occur in patterns. So does token 0, which `ntp_weight` takes for padding and
        passes over where it is no answer.

    Raises:
      ValueError: periods that do not fit the length, or the vocabulary.
    """

    low: int = 8
    high: int = 12
    length: int = 16
    vocab_size: int = 32

    splits = ("train", "test")

    def __post_init__(self):
        limits.check("task", self, bounds={"low": (2, None), "length": (3, None)})
        if not self.low <= self.high < self.length <= 2 * self.low:
            raise ValueError(
                f"task.low={self.low}, task.high={self.high}, task.length={self.length}: periods from low to high, "
                "below the length, which is at most twice the lowest"
            )
        if self.vocab_size < self.high:
            raise ValueError(f"task.vocab_size={self.vocab_size}: a pattern of period {self.high} has distinct tokens")

    @property
    def positions_accuracy(self) -> float:
        """Of the best guess of the period at each position: every period that has begun to repeat is as likely."""
        n_periods = self.high - self.low + 1
        answered = sum(self.length - period for period in range(self.low, self.high + 1)) / n_periods
        return (self.length - self.low) / n_periods / answered

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences; `info`: `period_B`. Both splits have the same law.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        period_key, pattern_key = jax.random.split(key)
        period_B = jax.random.randint(period_key, (n,), self.low, self.high + 1, jnp.int32)
        order_BxV = jnp.argsort(jax.random.uniform(pattern_key, (n, self.vocab_size), jnp.float32), axis=1)
        position_M = jnp.arange(self.length + 1, dtype=jnp.int32)
        place_BxM = position_M[None] % period_B[:, None]
        sequence_BxM = jnp.take_along_axis(order_BxV.astype(jnp.int32), place_BxM, axis=1)
        is_answer_BxM = position_M[None] > period_B[:, None]
        return answers.pack(sequence_BxM, is_answer_BxM, {"period_B": period_B})

    def score(self, logits_BxLxV, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy`: share of the repeated tokens that are said, of those that content tells.

        Raises:
          ValueError: as `answers.token_correct`.
        """
        right_BxL = answers.token_correct(logits_BxLxV, batch).astype(jnp.float32) * batch.weights_BxL
        return {"accuracy": jnp.sum(right_BxL) / jnp.sum(batch.weights_BxL)}
