"""Addition, digit by digit, with a block of operands held out: "007+012=0019".

Trained on a + b for a, b in 0 ... `high`, but for the block in which both lie in 400 ... 600, which is the test out of
distribution ("Initialization is Critical", arXiv 2405.05409, appendix on realistic tasks). The paper leaves open how
numbers are written. Here digits are tokens, the most significant first, and numbers are padded with zeros to one width:
a position then always means the same digit, nothing says how long the answer is, and reading order is the usual one.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits
from lab.tasks import answers
from lab.tasks.answers import pack, token_correct
from lab.tasks.task import Batch, Task, check_split

ZERO = 1  # token of digit 0; digit d is ZERO + d
PLUS, EQUALS = 11, 12
MOST = 999  # a table of all pairs is kept: four million bytes
# Coprime to 10, so that the rule below holds out no combination of last digits.
MODULUS = 11


@dataclasses.dataclass(frozen=True)
class Addition(Task):
    """The task as a value; its answer is the sum, its context the operands and signs.

    Attributes:
      high: greatest operand; all numbers from 0 are drawn, all pairs of a split equally likely, with replacement.
      block: smallest and greatest operand, both inclusive, of the block that split `ood` holds and no other.

    Raises:
      ValueError: `high` out of range, or a block that is empty, beyond `high` or leaves a split without pairs.
    """

    high: int
    block: tuple[int, int]

    has_answer = True
    splits = ("train", "test_seen", "ood")
    vocab_size = EQUALS + 1  # token 0 is padding, which never occurs here
    dims = {"digit_accuracy": ("digit",)}

    def __post_init__(self):
        limits.check("task", self, bounds={"high": (1, MOST)})
        two = isinstance(self.block, tuple) and [type(bound) for bound in self.block] == [int, int]
        if not two or not 0 <= self.block[0] <= self.block[1] <= self.high:
            raise ValueError(f"task.block={self.block}: smallest and greatest operand, from 0 to task.high={self.high}")
        empty = [split for split in self.splits if not _pairs(self.high, self.block, split).size]
        if empty:
            raise ValueError(
                f"task.block={self.block}: leaves no pairs for split {empty[0]!r}; a smaller one than 0 ... {self.high}"
            )

    @property
    def width(self) -> int:
        """Digits of an operand; the sum has one more."""
        return len(str(self.high))

    @property
    def length(self) -> int:
        return 3 * self.width + 2

    @property
    def answer_alphabet(self) -> range:
        return range(ZERO, ZERO + 10)

    @property
    def context_alphabet(self) -> range:
        return range(ZERO, EQUALS + 1)

    @property
    def coords(self) -> Mapping[str, tuple]:
        return {"digit": tuple(10**i for i in reversed(range(self.width + 1)))}

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences of a split, int32 tokens of shape (n, length); `info` has the operands, `a_B` and `b_B`.

        Splits: `ood` (both operands in the block); outside of it `test_seen` (a pair with 7 min + max divisible by 11,
        so a + b together with b + a) and `train` (all others).

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        pair_N = jnp.asarray(_pairs(self.high, self.block, split))
        pair_B = pair_N[jax.random.randint(key, (n,), 0, pair_N.size, jnp.int32)]
        a_B, b_B = pair_B // (self.high + 1), pair_B % (self.high + 1)
        sum_BxK = _digits(a_B + b_B, self.width + 1)
        sign_Bx1 = jnp.ones((n, 1), jnp.int32)
        question = [_digits(a_B, self.width), PLUS * sign_Bx1, _digits(b_B, self.width), EQUALS * sign_Bx1]
        sequence_BxM = jnp.concatenate([*question, sum_BxK], axis=1)
        is_answer_M = jnp.arange(sequence_BxM.shape[1], dtype=jnp.int32) > 2 * self.width + 1
        return pack(sequence_BxM, jnp.tile(is_answer_M, (n, 1)), {"a_B": a_B, "b_B": b_B})

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy` (all digits right), `token_accuracy` (their share), and `digit_accuracy` by place value.

        Raises:
          ValueError: as `answers.score`.
        """
        correct_BxK = token_correct(logits_BxQxV, batch)[:, -self.width - 1 :]
        digit_accuracy_K = jnp.mean(correct_BxK, axis=0, dtype=jnp.float32)
        return answers.score(logits_BxQxV, batch) | {"digit_accuracy": digit_accuracy_K}


def _digits(number_B, width: int):
    """Tokens (B, width) of decimal numbers, the most significant digit first."""
    place_W = jnp.asarray([10**i for i in reversed(range(width))], jnp.int32)
    return ZERO + number_B[:, None] // place_W[None] % 10


@functools.cache
def _pairs(high: int, block: tuple[int, int], split: str) -> np.ndarray:
    """All pairs of a split as a (high + 1) + b, int32."""
    a_NxN, b_NxN = np.meshgrid(np.arange(high + 1), np.arange(high + 1), indexing="ij")
    in_block_NxN = (block[0] <= np.minimum(a_NxN, b_NxN)) & (np.maximum(a_NxN, b_NxN) <= block[1])
    held_out_NxN = (7 * np.minimum(a_NxN, b_NxN) + np.maximum(a_NxN, b_NxN)) % MODULUS == 0
    of_split = {"train": ~in_block_NxN & ~held_out_NxN, "test_seen": ~in_block_NxN & held_out_NxN, "ood": in_block_NxN}
    return np.flatnonzero(of_split[split]).astype(np.int32)
