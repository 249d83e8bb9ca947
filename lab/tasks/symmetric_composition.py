"""The fully symmetric composition task: every pair of anchors has the label of the reversed pair, in training, too.

As in `lab.tasks.composition`, a key is followed by two anchors, here of 0 to 4 and never the same twice. The ten
unordered pairs are of two sets, A and B, in each of which an anchor has a shift of its own; a pair adds the two shifts
that its set has for its anchors. So the order of a pair does not matter, and no anchor stands for one shift. Only
(4,3) is held out: that it is (3,4) reversed is all there is to know. ("Achilles' Heel of Mamba", arXiv 2509.17514,
where Mamba learns the pairs that it sees, (3,4) at held-out keys as well, and never answers (4,3).)

Anchor a is token a + 1: token 0 never occurs. The paper prints no shift in set B for anchor 4, which four of its pairs
have: -5 is ours.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab import limits
from lab.tasks import answers
from lab.tasks.composition import place
from lab.tasks.task import Batch, Task, check_split

SHIFTS_A = {0: 2, 1: 5, 2: 1, 3: -2, 4: -8}
SHIFTS_B = {0: -9, 1: 6, 2: -7, 3: 3, 4: -5}
SET_A = ((0, 1), (0, 2), (1, 4), (2, 3), (3, 4))  # of either order; the other five are set B
PAIRS = tuple((a, b) for a in SHIFTS_A for b in SHIFTS_A if a != b)
UNSEEN = (4, 3)


@dataclasses.dataclass(frozen=True)
class SymmetricComposition(Task):
    """The task as a value; its answer is the last target.

    Attributes:
      modulus, first_position: in training no key x stands at position p = x mod `modulus`, counted from
        `first_position` (0 or 1); test splits have only those.
      low, high: range of key and noise tokens, both inclusive.
      length, vocab_size: of the sequences.

    Raises:
      ValueError: a length above modulus + 2, keys that are anchors or too few, labels outside of the vocabulary.
    """

    modulus: int = 8
    first_position: int = 1
    low: int = 20
    high: int = 99
    length: int = 8
    vocab_size: int = 120

    has_answer = True
    splits = ("train", "test_seen", "test_34", "ood_43")

    def __post_init__(self):
        bounds = {"modulus": (2, None), "length": (3, self.modulus + 2), "low": (len(SHIFTS_A) + 1, None)}
        limits.check("task", self, {"first_position": (0, 1)}, bounds)
        if self.high + 1 - self.low < self.modulus:
            raise ValueError(f"task.low={self.low}, task.high={self.high}: at least task.modulus={self.modulus} keys")
        if self.answer_alphabet[0] < 1 or self.answer_alphabet[-1] >= self.vocab_size:
            span = f"{self.answer_alphabet[0]} ... {self.answer_alphabet[-1]}"
            raise ValueError(f"task.vocab_size={self.vocab_size}: labels span {span}")

    @property
    def answer_alphabet(self) -> range:
        shifts = [shift(*pair) for pair in PAIRS]
        return range(self.low + min(shifts), self.high + max(shifts) + 1)

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return (*(anchor + 1 for anchor in SHIFTS_A), *range(self.low, self.high + 1))

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences of a split: `train` and `test_seen` of all pairs but (4,3), the others of their pair.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        pair_key, sequence_key = jax.random.split(key)
        pairs = {"test_34": [UNSEEN[::-1]], "ood_43": [UNSEEN]}.get(split, [pair for pair in PAIRS if pair != UNSEEN])
        pairs_Px2 = jnp.array(pairs, jnp.int32)
        shift_P = jnp.array([shift(*pair) for pair in pairs], jnp.int32)
        pair_B = jax.random.randint(pair_key, (n,), 0, len(pairs), jnp.int32)
        first_B, second_B = pairs_Px2[pair_B].T
        style = "train" if split == "train" else "held_out"
        tokens_BxL, key_B, position_B = place(self, sequence_key, first_B + 1, second_B + 1, style)
        info = {"key_B": key_B, "key_position_B": position_B, "first_B": first_B, "second_B": second_B}
        return answers.at_the_end(tokens_BxL, key_B + shift_P[pair_B], info)

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy` of the answer at the last position."""
        return answers.last_accuracy(logits_BxQxV, batch)


def shift(a: int, b: int) -> int:
    """What a pair adds to the key."""
    shifts = SHIFTS_A if tuple(sorted((a, b))) in SET_A else SHIFTS_B
    return shifts[a] + shifts[b]
