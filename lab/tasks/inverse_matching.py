"""Inverse sequence matching: which of five short sequences, read backwards, stands at the end?

A set of three numbers is drawn, and five of its six orders are the *key sequences*. Each stands in the input followed
by one token that is not of the set; then come filler tokens that are none either, and last one key sequence
backwards. The label is which, 1 to 5 as they stand. ("Achilles' Heel of Mamba", arXiv 2509.17514: what a convolution
fuses is ordered, so that Mamba cannot compare a sequence with its reversal.)

With three fillers for each layer of a convolution of four taps, as published, convolutions alone do not reach from the
end to a key sequence: what compares them is the state space.

Sets of the split `train` are not all alike modulo 3, those of `test` are, and those of `ood` are of other numbers.
Chance is 1/5; since the sequence backwards is itself an order of the set, the five key sequences are all near misses.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits
from lab.tasks import answers
from lab.tasks.task import Batch, Task, check_split

SET, ORDERS, MODULUS = 3, 5, 3


@dataclasses.dataclass(frozen=True)
class InverseMatching(Task):
    """The task as a value.

    Attributes:
      n_fillers: tokens between the key sequences and the end; published: three for each layer of the model.
      low, high: range of numbers in `train` and `test`, both inclusive; ood_low, ood_high: in `ood`.
      vocab_size: labels are tokens 1 to 5; token 0 never occurs.

    Raises:
      ValueError: a range of fewer than seven numbers, below 6 or beyond the vocabulary; ranges that overlap.
    """

    n_fillers: int = 6
    low: int = 20
    high: int = 100
    ood_low: int = 101
    ood_high: int = 200
    vocab_size: int = 201

    has_answer = True
    splits = ("train", "test", "ood")
    answer_alphabet = range(1, ORDERS + 1)

    def __post_init__(self):
        limits.check(
            "task", self, bounds={"n_fillers": (0, None)} | {name: (ORDERS + 1, None) for name in ("low", "ood_low")}
        )
        for name in ("", "ood_"):
            low, high = getattr(self, f"{name}low"), getattr(self, f"{name}high")
            if high - low < MODULUS * (SET - 1):  # seven numbers in a row hold three that are alike
                raise ValueError(f"task.{name}low={low}, task.{name}high={high}: at least seven numbers in a row")
        if self.low <= self.ood_high and self.ood_low <= self.high:
            raise ValueError(
                f"task.ood_low={self.ood_low}, task.ood_high={self.ood_high}: none of task.low={self.low} to "
                f"task.high={self.high}"
            )
        if max(self.high, self.ood_high) >= self.vocab_size:
            raise ValueError(f"task.vocab_size={self.vocab_size}: numbers go to {max(self.high, self.ood_high)}")

    @property
    def length(self) -> int:
        return ORDERS * (SET + 1) + self.n_fillers + SET

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return (*range(self.low, self.high + 1), *range(self.ood_low, self.ood_high + 1))

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences; `info`: the five key sequences `keys_Bx5x3` and which is asked, `label_B` from 0.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        set_key, order_key, label_key, other_key = jax.random.split(key, 4)
        sets_SxK = jnp.asarray(_sets(self, split), jnp.int32)
        low, high = (self.ood_low, self.ood_high) if split == "ood" else (self.low, self.high)

        set_Bx3 = sets_SxK[jax.random.randint(set_key, (n,), 0, len(sets_SxK), jnp.int32)]
        orders_6x3 = jnp.array(list(itertools.permutations(range(SET))), jnp.int32)
        shuffled_Bx6 = jnp.argsort(jax.random.uniform(order_key, (n, len(orders_6x3)), jnp.float32), axis=1)
        order_Bx5x3 = orders_6x3[shuffled_Bx6[:, :ORDERS]]
        keys_Bx5x3 = jnp.take_along_axis(set_Bx3[:, None], order_Bx5x3, axis=2)
        label_B = jax.random.randint(label_key, (n,), 0, ORDERS, jnp.int32)
        asked_Bx3 = jnp.take_along_axis(keys_Bx5x3, label_B[:, None, None], axis=1)[:, 0, ::-1]

        # of the numbers that are not in the set, by stepping over those that are, which are sorted
        other_BxF = jax.random.randint(other_key, (n, ORDERS + self.n_fillers), low, high + 1 - SET, jnp.int32)
        for i in range(SET):
            other_BxF = other_BxF + (other_BxF >= set_Bx3[:, i : i + 1]).astype(jnp.int32)
        after_Bx5x1, filler_BxF = other_BxF[:, :ORDERS, None], other_BxF[:, ORDERS:]
        listed_BxS = jnp.concatenate([keys_Bx5x3, after_Bx5x1], axis=2).reshape(n, -1)
        tokens_BxL = jnp.concatenate([listed_BxS, filler_BxF, asked_Bx3], axis=1)
        return answers.at_the_end(tokens_BxL, label_B + 1, {"keys_Bx5x3": keys_Bx5x3, "label_B": label_B})

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy` of the answer at the last position."""
        return answers.last_accuracy(logits_BxQxV, batch)


@functools.cache
def _sets(task: InverseMatching, split: str) -> np.ndarray:
    """Every set of the split, sorted, int16 (S, 3)."""
    low, high = (task.ood_low, task.ood_high) if split == "ood" else (task.low, task.high)
    sets_SxK = np.array(list(itertools.combinations(range(low, high + 1), SET)), np.int16)
    alike_S = np.all(sets_SxK % MODULUS == sets_SxK[:, :1] % MODULUS, axis=1)
    return sets_SxK if split == "ood" else sets_SxK[alike_S == (split == "test")]
