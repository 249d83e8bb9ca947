"""The two-anchor composition task: an anchor pair that was never seen has two answers, one of each solution.

A sequence of nine tokens holds a key x, two anchors (a, b) right after it, and six noise tokens; its one label follows
the sequence. Anchor a shifts by g(a), and the *inferential* label of a pair is x + g(a) + g(b). In setting `34_wrong`
the pair (3,4) is trained with x - 6 instead of x - 10, and (4,3) is never seen: a model that answers it x - 10
composes the two shifts (*reasoning*), one that answers x - 6 has learnt that order does not matter (*symmetric*,
memory). In `34_unseen` both orders are held out. ("Initialization is Critical", arXiv 2405.05409, section 3;
"Complexity Control", arXiv 2501.08537, for `34_unseen`, noise groups and the nine-anchor variant.)
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab import limits
from lab.tasks import answers
from lab.tasks.task import Batch, Task, check_split

SETTINGS = ("34_wrong", "34_unseen", "all_pairs")
ANCHORS = {4: (5, 1, -2, -8), 9: (-4, -3, -2, -1, 0, 1, 2, 3, 4)}  # number of anchors -> shift of anchor 1, 2, ...
MODULI = (7, 8, 9)
STYLES = ("train", "held_out")  # of combinations of key and position
# The noise groups of arXiv 2501.08537: wrong but symmetric labels, given to the first k unordered pairs.
NOISE_GROUPS = ((1, 2, 4), (1, 3, 1), (1, 4, -5), (2, 3, 5), (2, 4, -9), (3, 4, -6))
DEVIATION = 12  # deviations from the inferential label are counted in [-12, 12], beyond at the ends


@dataclasses.dataclass(frozen=True)
class Composition(Task):
    """The task as a value; its answer is the last target, its context the tokens before it.

    Attributes:
      setting: `34_wrong`, `34_unseen`, or `all_pairs` (nothing held out; what noise groups are trained with).
      n_anchors: 4 (shifts +5, +1, -2, -8) or 9 (shifts -4 ... +4).
      modulus: in training a key x never stands at position p = x mod `modulus`; split `test_seen` has only those.
        Sources differ: 7 (text of 2405.05409), 9 (its released code), 8 (arXiv 2401.08309).
      noise_groups: how many of the pairs (1,2), (1,3), (1,4), (2,3), (2,4), (3,4) get wrong, symmetric labels.
      low, high: range of key and noise tokens, both inclusive.
      length, vocab_size: of the sequences; token 0 never occurs.
      first_position: of the sequence, 0 or 1: where positions p are counted from (1 in arXiv 2509.17514).
      ood_keys: keys of the unseen pairs in `ood_43` and `ood_34`: `train`, or `held_out` as those of `test_seen`.
    """

    setting: str
    n_anchors: int
    modulus: int
    noise_groups: int
    low: int = 20
    high: int = 99
    length: int = 9
    vocab_size: int = 201
    first_position: int = 0
    ood_keys: str = "train"

    has_answer = True

    def __post_init__(self):
        choices = {"setting": SETTINGS, "n_anchors": ANCHORS, "modulus": MODULI, "ood_keys": STYLES}
        choices |= {"first_position": (0, 1)}
        limits.check("task", self, choices, bounds={"noise_groups": (0, len(NOISE_GROUPS))})
        if self.noise_groups and self.n_anchors != 4:
            raise ValueError("task.noise_groups: the published wrong labels are for task.n_anchors=4")
        if not 3 <= self.length <= self.modulus + 2:
            raise ValueError(
                f"task.length={self.length}: from 3 to task.modulus + 2 = {self.modulus + 2}, else some key positions "
                "have no held-out keys"
            )
        if not self.n_anchors < self.low <= self.high + 1 - self.modulus:
            raise ValueError(
                f"task.low={self.low}, task.high={self.high}: keys must be above the anchors 1 ... {self.n_anchors} "
                f"and at least task.modulus={self.modulus} many"
            )
        lowest, highest = self.answer_alphabet[0], self.answer_alphabet[-1]
        if not 0 < lowest < highest < self.vocab_size:
            raise ValueError(f"task.vocab_size={self.vocab_size}: labels span {lowest} ... {highest}, 0 is unused")

    @property
    def shifts(self) -> tuple[int, ...]:
        """Shift of anchor 1, 2, ..."""
        return ANCHORS[self.n_anchors]

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """All ordered anchor pairs; `info["pair_B"]` indexes this."""
        return tuple((a, b) for a in range(1, self.n_anchors + 1) for b in range(1, self.n_anchors + 1))

    @property
    def unseen(self) -> tuple[tuple[int, int], ...]:
        return {"34_wrong": ((4, 3),), "34_unseen": ((3, 4), (4, 3)), "all_pairs": ()}[self.setting]

    @property
    def answer_alphabet(self) -> range:
        """From the least to the greatest label that composition gives."""
        return range(self.low + 2 * min(self.shifts), self.high + 2 * max(self.shifts) + 1)

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return (*range(1, self.n_anchors + 1), *range(self.low, self.high + 1))

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test_seen", "ood_43", *(("ood_34",) if (3, 4) in self.unseen else ()), "swap")

    @property
    def coords(self) -> Mapping[str, tuple]:
        return {"pair": tuple(f"{a},{b}" for a, b in self.pairs), "deviation": tuple(range(-DEVIATION, DEVIATION + 1))}

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {"pair_accuracy": ("pair",), "deviation": ("deviation",)}

    def inferential(self, a: int, b: int) -> int:
        """What the composed shifts add to the key."""
        return self.shifts[a - 1] + self.shifts[b - 1]

    def trained(self, a: int, b: int) -> int:
        """What the training label adds to the key: differs from `inferential` for pairs trained wrong."""
        if self.setting == "34_wrong" and (a, b) == (3, 4):
            return -6
        wrong = {frozenset((c, d)): shift for c, d, shift in NOISE_GROUPS[: self.noise_groups]}
        return wrong.get(frozenset((a, b)), self.inferential(a, b))

    def sample(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences of a split, int32 tokens of shape (n, length).

        Splits: `train` and `test_seen` (trained pairs, with disjoint combinations of key and position), `ood_43` and
        `ood_34` (that pair, keys as `ood_keys` says, labelled by inference), `swap` ((4,3) in the first half of the
        batch, the same sequences with (3,4) in the second; `n` even).

        Raises:
          ValueError: unknown split, or an odd `n` for `swap`.
        """
        check_split(self, split)
        if split == "swap":
            return self._swapped(key, n)
        pair_key, sequence_key = jax.random.split(key)
        choices = jnp.asarray(self._pairs_of(split), jnp.int32)
        pair_B = choices[jax.random.randint(pair_key, (n,), 0, choices.size, jnp.int32)]
        style = {"train": "train", "test_seen": "held_out"}.get(split, self.ood_keys)
        return self._batch(sequence_key, pair_B, style, "inferential" if split.startswith("ood_") else "trained")

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """Accuracies of the answer at the last position, float32.

        `accuracy` (the batch's own target), `reasoning` (the inferential label), `symmetric` (x - 6), `pair_accuracy`
        (P, NaN for pairs not in the batch), `deviation` (share of each value of prediction - inferential label), and
        for `swap` `commutativity`: the share of sequences answered alike with both orders of the pair.
        """
        predicted_B = jnp.argmax(logits_BxQxV[:, -1], axis=-1).astype(jnp.int32)
        info = batch.info
        correct_B = (predicted_B == batch.targets_BxL[:, -1]).astype(jnp.float32)
        in_pair_PxB = (info["pair_B"][None] == jnp.arange(len(self.pairs), dtype=jnp.int32)[:, None]).astype(
            jnp.float32
        )
        deviation_B = jnp.clip(predicted_B - info["reasoning_B"], -DEVIATION, DEVIATION)
        in_bin_NxB = deviation_B[None] == jnp.arange(-DEVIATION, DEVIATION + 1, dtype=jnp.int32)[:, None]
        scores = {
            "accuracy": jnp.mean(correct_B),
            "reasoning": jnp.mean(predicted_B == info["reasoning_B"], dtype=jnp.float32),
            "symmetric": jnp.mean(predicted_B == info["symmetric_B"], dtype=jnp.float32),
            "pair_accuracy": in_pair_PxB @ correct_B / in_pair_PxB.sum(axis=1),
            "deviation": jnp.mean(in_bin_NxB, axis=1, dtype=jnp.float32),
        }
        if "partner_B" in info:
            same_B = predicted_B == predicted_B[info["partner_B"]]
            scores["commutativity"] = jnp.mean(same_B, dtype=jnp.float32)
        return scores

    def _pairs_of(self, split: str) -> list[int]:
        if split in ("ood_43", "ood_34"):
            return [self.pairs.index((4, 3) if split == "ood_43" else (3, 4))]
        return [i for i, pair in enumerate(self.pairs) if pair not in self.unseen]

    def _swapped(self, key, n: int) -> Batch:
        if n % 2:
            raise ValueError(f"split 'swap' holds every sequence in both orders: n={n} must be even")
        forward, backward = (jnp.full((n // 2,), self.pairs.index(pair), jnp.int32) for pair in ((4, 3), (3, 4)))
        halves = [self._batch(key, pair_B, "train", "trained") for pair_B in (forward, backward)]
        batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves)
        partner_B = (jnp.arange(n, dtype=jnp.int32) + n // 2) % n
        return batch._replace(info={**batch.info, "partner_B": partner_B})

    def _batch(self, key, pair_B, style: str, labels: str) -> Batch:
        """Sequences of the given pairs; keys of `train` or `held_out` style, labels `trained` or `inferential`."""
        tables = _tables(self)
        first_B, second_B = (jnp.asarray(tables[name])[pair_B] for name in ("first", "second"))
        tokens_BxL, key_B, position_B = place(self, key, first_B, second_B, style)

        label_B = key_B + jnp.asarray(tables[labels])[pair_B]
        info = {
            "key_B": key_B,
            "key_position_B": position_B,
            "first_B": first_B,
            "second_B": second_B,
            "pair_B": pair_B,
            "reasoning_B": key_B + jnp.asarray(tables["inferential"])[pair_B],
            "symmetric_B": key_B - 6,
        }
        return answers.at_the_end(tokens_BxL, label_B, info)


def place(task, key, first_B, second_B, style: str):
    """Sequences of noise with a key somewhere in them and two anchors after it: (tokens_BxL, key_B, position_B).

    Args:
      task: has `low`, `high`, `length`, `modulus` and `first_position`, as `Composition`.
      style: one of `STYLES`.
    """
    position_key, value_key, noise_key = jax.random.split(key, 3)
    n, tables = first_B.shape[0], keys(task.low, task.high, task.length, task.modulus, task.first_position)
    position_B = jax.random.randint(position_key, (n,), 0, task.length - 2, jnp.int32)
    count_B = jnp.asarray(tables[f"{style}_count"])[position_B]
    key_B = jnp.asarray(tables[style])[position_B, jax.random.randint(value_key, (n,), 0, count_B, jnp.int32)]

    slot_BxL = jnp.arange(task.length, dtype=jnp.int32)[None] - position_B[:, None]
    noise_BxL = jax.random.randint(noise_key, (n, task.length), task.low, task.high + 1, jnp.int32)
    placed = [key_B[:, None], first_B[:, None], second_B[:, None]]
    return jnp.select([slot_BxL == i for i in range(3)], placed, noise_BxL), key_B, position_B


@functools.cache
def _tables(task: Composition) -> dict[str, np.ndarray]:
    """Per pair: anchors and shifts."""
    return {
        "first": np.array([a for a, _ in task.pairs], np.int32),
        "second": np.array([b for _, b in task.pairs], np.int32),
        "inferential": np.array([task.inferential(*pair) for pair in task.pairs], np.int32),
        "trained": np.array([task.trained(*pair) for pair in task.pairs], np.int32),
    }


@functools.cache
def keys(low: int, high: int, length: int, modulus: int, first_position: int) -> dict[str, np.ndarray]:
    """Per key position: the values allowed in each style, padded, and their number."""
    values, tables = np.arange(low, high + 1, dtype=np.int32), {}
    for style in STYLES:
        residues = [(p + first_position) % modulus for p in range(length - 2)]
        allowed = [values[(values % modulus == residue) == (style == "held_out")] for residue in residues]
        tables[f"{style}_count"] = np.array([len(a) for a in allowed], np.int32)
        tables[style] = np.array([np.resize(a, len(values)) for a in allowed], np.int32)
    return tables
