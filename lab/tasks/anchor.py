"""The single-anchor task: find the one anchor, read the key after it, and add what that anchor stands for.

A sequence of ten tokens holds keys and, at one of its first nine positions, one anchor a. Its one label follows the
sequence: the key right after the anchor plus `shifts[a]`. ("From Condensation to Rank Collapse", arXiv 2510.06954,
experiments on synthetic data.)

The paper says three things of what anchor a adds, and they do not agree. The base definition of anchor functions adds
a itself: `shifts=(1, 2, 3, 4)`. The printed label adds a mod 2: `shifts=(1, 0, 1, 0)`, which makes synonyms of anchors
1 and 3 and of 2 and 4. Its text calls {1, 2} and {3, 4} synonyms, as `shifts=(1, 1, 0, 0)` makes them.

A model without positions sees a set: it can find the anchor but not the key after it, so its accuracy is about
1 / (length - 1) and its loss about ln(length - 1), 2.197 nats, at best; where keys repeat, slightly better.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lab import limits
from lab.tasks import answers
from lab.tasks.task import Batch, Task, check_split


@dataclasses.dataclass(frozen=True)
class Anchor(Task):
    """The task as a value.

    Attributes:
      anchors: the A anchor tokens, all equally likely.
      shifts: what each of them adds to the key.
      low, high: range of the keys, both inclusive; every position but the anchor's holds one, drawn independently.
      length, vocab_size: of the sequences.

    Raises:
      ValueError: anchors that are keys or not distinct, a label outside of the vocabulary, a length below 2.
    """

    anchors: tuple[int, ...] = (1, 2, 3, 4)
    shifts: tuple[int, ...] = (1, 0, 1, 0)
    low: int = 5
    high: int = 100
    length: int = 10
    vocab_size: int = 201

    # The paper names no test set. There are 2e19 sequences: fresh ones of the same law have not been trained on.
    splits = ("train", "test")
    dims = {"anchor_accuracy": ("anchor",)}

    def __post_init__(self):
        # the shortest sequence is an anchor and its key
        limits.check("task", self, bounds={"length": (2, None), "low": (0, None), "high": (0, None)})
        if not self.anchors or len(set(self.anchors)) < len(self.anchors):
            raise ValueError(f"task.anchors={self.anchors}: at least one token, none twice")
        if len(self.shifts) != len(self.anchors):
            raise ValueError(f"task.shifts={self.shifts}: one for each of the anchors {self.anchors}")
        if not self.low <= self.high:
            raise ValueError(f"task.low={self.low}, task.high={self.high}: no keys in between")
        if any(self.low <= anchor <= self.high for anchor in self.anchors):
            raise ValueError(f"task.anchors={self.anchors}: none may be a key, {self.low} ... {self.high}")
        least = min(*self.anchors, self.low, self.low + min(self.shifts))
        greatest = max(*self.anchors, self.high, self.high + max(self.shifts))
        if not 0 <= least <= greatest < self.vocab_size:
            raise ValueError(f"task.vocab_size={self.vocab_size}: tokens and labels span {least} ... {greatest}")

    @property
    def coords(self) -> Mapping[str, tuple]:
        return {"anchor": self.anchors}

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences, int32 tokens of shape (n, length); both splits have the same law.

        Raises:
          ValueError: unknown split.
        """
        check_split(self, split)
        anchor_key, position_key, keys_key = jax.random.split(key, 3)
        anchor_B = jax.random.randint(anchor_key, (n,), 0, len(self.anchors), jnp.int32)
        position_B = jax.random.randint(position_key, (n,), 0, self.length - 1, jnp.int32)
        keys_BxL = jax.random.randint(keys_key, (n, self.length), self.low, self.high + 1, jnp.int32)

        is_anchor_BxL = jnp.arange(self.length, dtype=jnp.int32)[None] == position_B[:, None]
        tokens_BxL = jnp.where(is_anchor_BxL, jnp.asarray(self.anchors, jnp.int32)[anchor_B][:, None], keys_BxL)
        key_B = jnp.take_along_axis(tokens_BxL, position_B[:, None] + 1, axis=1)[:, 0]
        label_B = key_B + jnp.asarray(self.shifts, jnp.int32)[anchor_B]

        info = {"anchor_B": anchor_B, "anchor_position_B": position_B, "key_B": key_B}
        return answers.at_the_end(tokens_BxL, label_B, info)

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """Shares of the answers at the last position, float32.

        `accuracy`: the label. `unordered`: any key of the sequence plus the anchor's shift, which is all that the set
        of tokens tells. `anchor_accuracy` (A): accuracy by anchor, NaN for those not in the batch.
        """
        predicted_B = jnp.argmax(logits_BxQxV[:, -1], axis=-1).astype(jnp.int32)
        anchor_B = batch.info["anchor_B"]
        correct_B = (predicted_B == batch.targets_BxL[:, -1]).astype(jnp.float32)
        said_B = predicted_B - jnp.asarray(self.shifts, jnp.int32)[anchor_B]
        is_key_B = (self.low <= said_B) & (said_B <= self.high)
        there_B = is_key_B & jnp.any(batch.tokens_BxL == said_B[:, None], axis=1)
        of_AxB = (anchor_B[None] == jnp.arange(len(self.anchors), dtype=jnp.int32)[:, None]).astype(jnp.float32)
        return {
            "accuracy": jnp.mean(correct_B),
            "unordered": jnp.mean(there_B, dtype=jnp.float32),
            "anchor_accuracy": of_AxB @ correct_B / of_AxB.sum(axis=1),
        }
