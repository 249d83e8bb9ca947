"""Longest increasing subsequence, answered after its table of dynamic programming: `x_1 ... x_n | d_1 ... d_n | max d`.

d_i is the length of the longest increasing subsequence that ends at x_i: 1 + the largest d_j with j < i and x_j < x_i,
or 1. Each may depend on all numbers before it, as published ("Towards Revealing the Mystery behind Chain of Thought",
arXiv 2305.15408; arXiv 2410.03810). With a `band` m its predecessor is among the m numbers before it, j >= i - m: the
answer is the longest increasing subsequence whose steps skip fewer than m numbers. Without `chain_of_thought` the
answer follows at once. What is asked of the model is the table, the bar and the answer.

Number v is token v + 1, then come the bar and the lengths; token 0 pads. Lists of split `test` are never trained
on, see `lab.tasks.held_out`.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab import limits
from lab.tasks import answers, held_out
from lab.tasks.task import Batch, Task, check_split


@dataclasses.dataclass(frozen=True)
class IncreasingSubsequence(Task):
    """The task as a value.

    Attributes:
      shortest, longest: numbers of a list, both inclusive; each length is as likely.
      n_values: numbers are from 0 to below it; even, see `lab.tasks.held_out`.
      band: how far back the table looks, 0: to the beginning.
      chain_of_thought: the table comes before the answer.

    Raises:
      ValueError: no length, a list of one number at most, an odd number of values or fewer than 4.
    """

    shortest: int = 10
    longest: int = 20
    n_values: int = 30
    band: int = 0
    chain_of_thought: bool = True

    has_answer = True
    splits = ("train", "test")

    def __post_init__(self):
        bounds = {"longest": (2, None), "shortest": (1, self.longest), "band": (0, self.longest - 1)}
        limits.check("task", self, bounds=bounds)
        held_out.check_symbols("n_values", self.n_values)

    @property
    def bar(self) -> int:
        return self.n_values + 1

    @property
    def vocab_size(self) -> int:
        return self.bar + self.longest + 1

    @property
    def length(self) -> int:
        return 2 * self.longest + 2 if self.chain_of_thought else self.longest + 1

    @property
    def answer_alphabet(self) -> range:
        return range(self.bar + 1, self.vocab_size)

    @property
    def context_alphabet(self) -> range:
        return range(1, self.bar)

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` lists; `info`: `length_B`, and `longest_B`, the answer as a number.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        length_key, value_key = jax.random.split(key)
        length_B = jax.random.randint(length_key, (n,), self.shortest, self.longest + 1, jnp.int32)
        value_BxN = held_out.draw(value_key, length_B, self.longest, self.n_values, split == "test")
        table_BxN = table(value_BxN, self.band or self.longest)
        n_Bx1, place_N = length_B[:, None], jnp.arange(self.longest, dtype=jnp.int32)[None]
        longest_B = jnp.max(table_BxN, axis=1, where=place_N < n_Bx1, initial=0)

        place_M = jnp.arange(self.length + 1, dtype=jnp.int32)[None]
        answer_Bx1 = 2 * n_Bx1 + 2 if self.chain_of_thought else n_Bx1 + 1
        number_BxM, entry_BxM = (
            jnp.take_along_axis(values_BxN, jnp.clip(at_BxM, 0, self.longest - 1), axis=1)
            for values_BxN, at_BxM in (
                (value_BxN + 1, jnp.tile(place_M, (n, 1))),
                (table_BxN + self.bar, place_M - n_Bx1 - 1),
            )
        )
        sequence_BxM = jnp.where(place_M < n_Bx1, number_BxM, entry_BxM)
        is_bar_BxM = (place_M == n_Bx1) | (place_M == answer_Bx1 - 1)
        sequence_BxM = jnp.where(is_bar_BxM, self.bar, sequence_BxM)
        sequence_BxM = jnp.where(place_M == answer_Bx1, longest_B[:, None] + self.bar, sequence_BxM)
        is_answer_BxM = (place_M > n_Bx1) & (place_M <= answer_Bx1)
        sequence_BxM = jnp.where(place_M <= answer_Bx1, sequence_BxM, 0)
        return answers.pack(sequence_BxM, is_answer_BxM, {"length_B": length_B, "longest_B": longest_B})

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy` of the whole table and answer, and `token_accuracy`, see `answers.score`."""
        return answers.score(logits_BxQxV, batch)


def table(value_BxN, band: int):
    """d_BxN, int32: lengths of the longest increasing subsequences that end at each number, see the module."""
    n_values = value_BxN.shape[1]
    place_N = jnp.arange(n_values, dtype=jnp.int32)

    def step(table_BxN, i):
        before_N = (place_N < i) & (place_N >= i - band)
        smaller_BxN = before_N[None] & (value_BxN < jnp.take(value_BxN, i, axis=1)[:, None])
        entry_B = 1 + jnp.max(table_BxN, axis=1, where=smaller_BxN, initial=0)
        return jnp.where(place_N[None] == i, entry_B[:, None], table_BxN), None

    return jax.lax.scan(step, jnp.zeros_like(value_BxN), place_N)[0]
