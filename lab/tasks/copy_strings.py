"""Copying: `$ x_1 ... x_n | x_1 ... x_n .`, strings of random letters, of 1 to N of them.

A state of constant size must hold the whole string; attention looks it up. ("Exploring the Limitations of Mamba in COPY
and CoT Reasoning", arXiv 2410.03810, on the strings of "Repeat After Me", arXiv 2402.01032.) The copy and the end mark
are the answer. Strings of split `test` are never trained on, see `lab.tasks.held_out`.

Letter a is token a + 1; token 0 pads.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab import limits
from lab.tasks import answers, held_out
from lab.tasks.task import Batch, Task, check_split


@dataclasses.dataclass(frozen=True)
class CopyStrings(Task):
    """The task as a value.

    Attributes:
      longest: letters of the longest string; each length from `shortest` on is as likely.
      n_letters: even, see `lab.tasks.held_out`.

    Raises:
      ValueError: no length, an odd number of letters or fewer than 4.
    """

    longest: int = 20
    shortest: int = 1
    n_letters: int = 26

    has_answer = True
    splits = ("train", "test")

    def __post_init__(self):
        limits.check("task", self, bounds={"longest": (1, None), "shortest": (1, self.longest)})
        held_out.check_symbols("n_letters", self.n_letters)

    @property
    def begin(self) -> int:
        return self.n_letters + 1

    @property
    def bar(self) -> int:
        return self.n_letters + 2

    @property
    def end(self) -> int:
        return self.n_letters + 3

    @property
    def vocab_size(self) -> int:
        return self.n_letters + 4

    @property
    def length(self) -> int:
        return 2 * self.longest + 2

    @property
    def answer_alphabet(self) -> range:
        return range(1, self.n_letters + 1)

    @property
    def context_alphabet(self) -> range:
        return self.answer_alphabet

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` strings and their copies; `info`: `length_B`, letters of each.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        length_key, letter_key = jax.random.split(key)
        length_B = jax.random.randint(length_key, (n,), self.shortest, self.longest + 1, jnp.int32)
        letter_BxN = 1 + held_out.draw(letter_key, length_B, self.longest, self.n_letters, split == "test")

        place_M, n_Bx1 = jnp.arange(2 * self.longest + 3, dtype=jnp.int32)[None], length_B[:, None]
        marks = (
            (place_M == 0, self.begin),
            (place_M == n_Bx1 + 1, self.bar),
            (place_M == 2 * n_Bx1 + 2, self.end),
            (place_M > 2 * n_Bx1 + 2, 0),
        )
        letter_BxM = jnp.where(place_M <= n_Bx1, place_M - 1, place_M - n_Bx1 - 2)
        sequence_BxM = jnp.take_along_axis(letter_BxN, jnp.clip(letter_BxM, 0, self.longest - 1), axis=1)
        for where, mark in marks:
            sequence_BxM = jnp.where(where, mark, sequence_BxM)
        is_answer_BxM = (place_M > n_Bx1 + 1) & (place_M <= 2 * n_Bx1 + 2)
        return answers.pack(sequence_BxM, is_answer_BxM, {"length_B": length_B})

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy` of whole strings and `token_accuracy`, see `answers.score`."""
        return answers.score(logits_BxQxV, batch)
