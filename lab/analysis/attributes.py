"""A linear judge of pictures: one head an attribute, each a bit, on the pixels.

As arXiv 2501.08537 judges what a diffusion model draws: three linear heads, trained by Adam at its default rate in
batches of 128. Theirs see 5,000 pictures of 28 x 28 ten times; ours see new ones of the pictures' own size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

BATCH, STEPS, RATE = 128, 400, 1e-3


class Judge(NamedTuple):
    """P numbers of a picture, K attributes."""

    weight_PxK: jax.Array
    bias_K: jax.Array


def train(sample: Callable, key) -> Judge:
    """Logistic regressions on `STEPS` batches of `sample(key, n) -> (image_Bx..., bits_BxK)`, from zero; float32."""
    image_Bx, bits_BxK = jax.eval_shape(lambda: sample(key, BATCH))
    n_attributes, adam = bits_BxK.shape[1], optax.adam(RATE)
    judge = Judge(
        jnp.zeros((image_Bx.size // BATCH, n_attributes), jnp.float32), jnp.zeros((n_attributes,), jnp.float32)
    )

    def loss(judge, image_Bx, bits_BxK):
        labels_BxK = bits_BxK.astype(jnp.float32)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits(judge, image_Bx), labels_BxK))

    def step(carry, i):
        judge, state = carry
        updates, state = adam.update(jax.grad(loss)(judge, *sample(jax.random.fold_in(key, i), BATCH)), state)
        return (optax.apply_updates(judge, updates), state), None

    return jax.lax.scan(step, (judge, adam.init(judge)), jnp.arange(STEPS, dtype=jnp.int32))[0][0]


def logits(judge: Judge, image_Bx):
    """(B, K), above 0 for a 1."""
    return image_Bx.reshape(image_Bx.shape[0], -1) @ judge.weight_PxK + judge.bias_K[None]


def right(judge: Judge, image_Bx, bits_BxK):
    """Which attributes are as they should be, bool (B, K). A picture that is not finite has none right."""
    found_BxK = logits(judge, image_Bx)
    return ((found_BxK > 0) == (bits_BxK == 1)) & jnp.isfinite(found_BxK)
