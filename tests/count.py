"""A made-up task with an answer that is easily told apart by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lab.tasks import Task, answers
from lab.tasks.answers import pack

LONGEST = 7  # tokens of question and answer together
ANSWERS, CONTEXTS = range(50, 60), range(1, 50)


@dataclasses.dataclass(frozen=True)
class Count(Task):
    """x, x + 1, x + 2, ... of 2 to 5 numbers below 50, answered by 50 + x mod 10 and, after 4 or 5, by that again."""

    vocab_size: int = 60
    length: int = LONGEST - 1
    has_answer = True
    splits = ("train", "test")
    answer_alphabet, context_alphabet = ANSWERS, CONTEXTS
    score = staticmethod(answers.score)

    def sample(self, key, n, split, hparams):
        keys = jax.random.split(key)
        first_B = jax.random.randint(keys[0], (n,), 1, 45, jnp.int32)
        asked_Bx1 = jax.random.randint(keys[1], (n, 1), 2, 6, jnp.int32)
        place_1xM = jnp.arange(LONGEST, dtype=jnp.int32)[None]
        is_answer_BxM = (place_1xM >= asked_Bx1) & (place_1xM < asked_Bx1 + jnp.where(asked_Bx1 > 3, 2, 1))
        counted_BxM = jnp.where(place_1xM < asked_Bx1, first_B[:, None] + place_1xM, 0)
        return pack(jnp.where(is_answer_BxM, 50 + first_B[:, None] % 10, counted_BxM), is_answer_BxM, {"x_B": first_B})


def first(n, batch):
    return jax.tree.map(lambda leaf: leaf[:n], batch)


def sequences(batch):
    """x_0 ... x_L of each; asserts that what is read is what was to be said."""
    np.testing.assert_array_equal(batch.tokens_BxL[:, 1:], batch.targets_BxL[:, :-1])
    return np.concatenate([batch.tokens_BxL, batch.targets_BxL[:, -1:]], axis=1).tolist()


def parts(sequence):
    """(question, answer) of a clean sequence, by its tokens alone."""
    real = [token for token in sequence if token]
    return [token for token in real if token < 50], [token for token in real if token >= 50]
