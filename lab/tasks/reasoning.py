"""What the tasks of h-step reasoning share: their words, base class, random choices, and how answers are scored."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab.tasks.answers import PAD, AnswerTask, exact, pack
from lab.tasks.batch import Batch

HELD_OUT = 5  # one combination of two names in so many is kept for split `test`
# As words in one string: a list of a word a line would be longer than the task.
ONSETS, RIMES = "w r d br j t v z n st l sh g f y h k b gr zh m", "um om er im or el"
CONCEPTS = tuple(f"{onset}{rime}pus" for rime in RIMES.split() for onset in ONSETS.split())
ENTITY_NAMES = "max alex sam fae wren stella rex polly sally tom bob eva jack davis carol oliver gabriel ada hugo iris"
ENTITIES = tuple(ENTITY_NAMES.split())
ADJECTIVES = (
    "red blue brown orange small large opaque bright dull sour sweet bitter spicy fruity earthy floral hot cold "
    "temperate wooden metallic luminous liquid transparent happy angry shy kind mean nervous feisty amenable"
)
PROPERTIES = tuple(ADJECTIVES.split())


@dataclasses.dataclass(frozen=True)
class Reasoning(AnswerTask):
    """Base of tasks whose answer lies h steps from what is said: a subclass gives `item` and the words.

    Every sequence tells as much, however many steps are asked for: what the answer does not need is there to distract.
    So deeper questions are not longer ones, and positions are all trained. Names are drawn anew for every sequence.

    Splits: `train`; `test`, as many steps, but with those combinations of two names that HELD_OUT keeps from training
    (see each task); `ood`, more steps, names combined as in training.

    Attributes:
      hops_train, hops_ood: numbers of steps h, each as likely.
    """

    hops_train: tuple
    hops_ood: tuple

    splits = ("train", "test", "ood")
    dims = {"hop_accuracy": ("hop",)}

    def __post_init__(self):
        super().__post_init__()
        for name in ("hops_train", "hops_ood"):
            hops = getattr(self, name)
            whole = all(isinstance(h, int) and h >= self.least_hops for h in hops)
            if not hops or not whole or len(set(hops)) < len(hops):
                raise ValueError(f"task.{name}={hops!r}: distinct numbers of steps, {self.least_hops} or more")
        if min(self.hops_ood) <= max(self.hops_train):
            raise ValueError(f"task.hops_ood={self.hops_ood}: all more than those of task.hops_train={self.hops_train}")

    @property
    def least_hops(self) -> int:
        return 1

    @property
    def words(self) -> tuple[str, ...]:
        """The word of every token; that of `PAD` is empty."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    @property
    def context_alphabet(self) -> tuple[int, ...]:
        return tuple(token for token in range(1, self.vocab_size) if token not in self.answer_alphabet)

    @property
    def coords(self) -> Mapping[str, tuple]:
        return {"hop": (*self.hops_train, *self.hops_ood)}

    @property
    def depth(self) -> int:
        """The most steps of any split."""
        return max(self.hops_ood)

    def item(self, key, hops, held_out: bool):
        """One sequence: tokens x_0 ... x_L (int32), which of them answer (bool), and the answers its form allows.

        Args:
          hops: h, traced.
          held_out: whether its two names are a combination kept for `test`.
        """
        raise NotImplementedError

    def decode(self, tokens) -> str:
        """A sequence as text for people."""
        return " ".join(self.words[int(token)] for token in tokens if token != PAD)

    def ids(self, text: str) -> list[int]:
        """The tokens of some words."""
        return [self.words.index(word) for word in text.split()]

    def draw(self, key, n: int, split: str, hparams: Mapping) -> Batch:
        """`n` sequences, int32 (n, length); `info` has `hops_B` and `candidates_BxC`, the answers a form allows.

        Raises:
          ValueError: unknown split.
        """
        if split not in self.splits:
            raise ValueError(f"split {split!r}: one of {', '.join(self.splits)}")
        hop_key, item_key = jax.random.split(key)
        choices = jnp.asarray(self.hops_ood if split == "ood" else self.hops_train, jnp.int32)
        hops_B = choices[integers(jax.random.uniform(hop_key, (n,)), choices.size)]
        items = jax.vmap(lambda key, hops: self.item(key, hops, split == "test"))
        sequence_BxM, is_answer_BxM, candidates_BxC = items(jax.random.split(item_key, n), hops_B)
        return pack(sequence_BxM, is_answer_BxM, {"hops_B": hops_B, "candidates_BxC": candidates_BxC})

    def score(self, logits_BxQxV, batch: Batch) -> dict[str, jax.Array]:
        """As `AnswerTask.score`, and two more.

        `hop_accuracy` (H): accuracy by number of steps, NaN for those not in the batch. `plausible`: share of answers
        (their last tokens) of the right form, such as either of two candidates: accuracy / plausible is what reasoning
        adds, to be compared with 1 / the number of candidates.

        Raises:
          ValueError: as `AnswerTask.score`.
        """
        hop_Hx1 = jnp.asarray(self.coords["hop"], jnp.int32)[:, None]
        of_hop_HxB = (batch.info["hops_B"][None] == hop_Hx1).astype(jnp.float32)
        predicted_BxL = jnp.argmax(logits_BxQxV, axis=-1).astype(jnp.int32)
        return super().score(logits_BxQxV, batch) | {
            "hop_accuracy": of_hop_HxB @ exact(logits_BxQxV, batch) / of_hop_HxB.sum(axis=1),
            "plausible": plausible(at_end(predicted_BxL, batch), batch.info["candidates_BxC"]),
        }


def at_end(value_BxL, batch: Batch):
    """The entries (B) at each sequence's last answer token."""
    length = batch.weights_BxL.shape[1]
    place_BxL = jnp.where(batch.weights_BxL > 0, jnp.arange(length, dtype=jnp.int32)[None], 0)
    return jnp.take_along_axis(value_BxL, jnp.max(place_BxL, axis=1)[:, None], axis=1)[:, 0]


def sentences(*words):
    """Sentences (S, W) of W words each, from tokens or arrays of tokens that broadcast."""
    words = jnp.broadcast_arrays(*(jnp.asarray(word, jnp.int32) for word in words))
    return jnp.stack(words, axis=-1).reshape(-1, len(words))


def plausible(predicted_B, candidates_BxC):
    """Share of the answers that are among the candidates, float32."""
    return jnp.mean(jnp.any(predicted_B[:, None] == candidates_BxC, axis=1), dtype=jnp.float32)


def uniforms(key, *shapes: tuple[int, ...]) -> list[jax.Array]:
    """Uniform numbers in arrays of these shapes, float32: all that is random in an item.

    One draw, cut into pieces: a program of many small draws takes several times as long to compile.
    """
    flat = jax.random.uniform(key, (sum(map(math.prod, shapes)),), jnp.float32)
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(jnp.split(flat, ends[:-1]), shapes, strict=True)]


def integers(uniform, n):
    """Integers from 0 to n - 1, int32, of the shape of `uniform`; n may be traced."""
    return jnp.floor(uniform * jnp.asarray(n, jnp.float32)).astype(jnp.int32)


def permutation(uniform_N):
    """0 ... N - 1 in random order, int32."""
    return jnp.argsort(uniform_N).astype(jnp.int32)


def one_of(uniform_N, allowed_N):
    """The index of a random true entry on the last axis, int32; 0 where there is none."""
    return jnp.argmax(jnp.where(allowed_N, uniform_N, -1.0), axis=-1).astype(jnp.int32)


def is_held_out(first, second):
    """Which combinations of two names, given as integers, no training sequence has: one in HELD_OUT."""
    return (first + second) % HELD_OUT == 0


def swapped_in(value_N, place, value):
    """A permutation with `value` at `place`: the two entries change places."""
    before = value_N[place]
    return jnp.where(value_N == value, before, value_N).at[place].set(value)
