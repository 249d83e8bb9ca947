"""What the tasks of h-step reasoning share: words, random choices, and functions that these tasks have as methods.

Every sequence tells as much, however many steps are asked for: what the answer does not need is there to distract.
So deeper questions are not longer ones, and positions are all trained. Names are drawn anew for every sequence.

Splits: `train`; `test`, as many steps, but with those combinations of two names that HELD_OUT keeps from training
(see each task); `ood`, more steps, names combined as in training.

A task has fields `hops_train` and `hops_ood`, numbers of steps h, each as likely; `words`, the word of every token,
empty for `PAD`; and

    item(key, hops, held_out) -> sequence_M (int32), is_answer_M (bool), candidates_C (int32)

for one sequence x_0 ... x_L, which of its tokens answer, and the answers that its form allows, where `hops` is h,
traced, and `held_out` says whether its two names are a combination kept for `test`.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab.objective import PAD
from lab.tasks import answers
from lab.tasks.answers import exact_match, pack, plausible
from lab.tasks.task import Batch, check_split

SPLITS = ("train", "test", "ood")
DIMS = {"hop_accuracy": ("hop",)}
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


def check_hops(task, least: int = 1) -> None:
    """
    Raises:
      ValueError: numbers of steps that are too small, the same or not larger out of distribution.
    """
    for name in ("hops_train", "hops_ood"):
        hops = getattr(task, name)
        whole = all(isinstance(h, int) and h >= least for h in hops)
        if not hops or not whole or len(set(hops)) < len(hops):
            raise ValueError(f"task.{name}={hops!r}: distinct numbers of steps, {least} or more")
    if min(task.hops_ood) <= max(task.hops_train):
        raise ValueError(f"task.hops_ood={task.hops_ood}: all more than those of task.hops_train={task.hops_train}")


def vocab_size(task) -> int:
    return len(task.words)


def depth(task) -> int:
    """The most steps of any split."""
    return max(task.hops_ood)


def coords(task) -> Mapping[str, tuple]:
    return {"hop": (*task.hops_train, *task.hops_ood)}


def all_words(task) -> tuple[int, ...]:
    return tuple(range(1, task.vocab_size))


def sample(task, key, n: int, split: str, hparams: Mapping) -> Batch:
    """`n` sequences, int32 (n, length); `info` has `hops_B` and `candidates_BxC`, the answers a form allows.

    Raises:
      ValueError: unknown split.
    """
    check_split(task, split)
    hop_key, item_key = jax.random.split(key)
    choices = jnp.asarray(task.hops_ood if split == "ood" else task.hops_train, jnp.int32)
    hops_B = choices[integers(jax.random.uniform(hop_key, (n,), jnp.float32), choices.size)]
    items = jax.vmap(lambda key, hops: task.item(key, hops, split == "test"))
    sequence_BxM, is_answer_BxM, candidates_BxC = items(jax.random.split(item_key, n), hops_B)
    return pack(sequence_BxM, is_answer_BxM, {"hops_B": hops_B, "candidates_BxC": candidates_BxC})


def score(task, logits_BxLxV, batch: Batch) -> dict[str, jax.Array]:
    """As `answers.score`, and two more.

    `hop_accuracy` (H): accuracy by number of steps, NaN for those not in the batch. `plausible`: share of answers
    (their last tokens) of the right form, such as either of two candidates: accuracy / plausible is what reasoning
    adds, to be compared with 1 / the number of candidates.

    Raises:
      ValueError: as `answers.score`.
    """
    hop_Hx1 = jnp.asarray(task.coords["hop"], jnp.int32)[:, None]
    of_hop_HxB = (batch.info["hops_B"][None] == hop_Hx1).astype(jnp.float32)
    return answers.score(logits_BxLxV, batch) | {
        "hop_accuracy": of_hop_HxB @ exact_match(logits_BxLxV, batch) / of_hop_HxB.sum(axis=1),
        "plausible": plausible(logits_BxLxV, batch),
    }


def decode(task, tokens) -> str:
    """A sequence as text for people."""
    return " ".join(task.words[int(token)] for token in tokens if token != PAD)


def ids(task, text: str) -> list[int]:
    """The tokens of some words."""
    return [task.words.index(word) for word in text.split()]


def sentences(*words):
    """Sentences (S, W) of W words each, from tokens or arrays of tokens that broadcast."""
    words = jnp.broadcast_arrays(*(jnp.asarray(word, jnp.int32) for word in words))
    return jnp.stack(words, axis=-1).reshape(-1, len(words))


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
