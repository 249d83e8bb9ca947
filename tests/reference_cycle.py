"""The exact population model of "Focus and Dilution" from the draw that its published trajectory starts from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lab.studies.focus_dilution import population

PI = (0.75, 0.19, 0.05, 0.01)
SYMMETRIC = (0.7, 0.1, 0.1, 0.1)
STAY, WIDTH, RATE = 0.5, 16, 0.5


def tree(w_0, w_q, w_k, w_1):
    """A parameter tree of `OneLayerAttention`."""
    attn = {"query": {"kernel": w_q}, "key": {"kernel": w_k}}
    return {"embed": {"token": {"embedding": w_0}}, "block_0": {"attn": attn}, "head": {"kernel": w_1}}


def transition(law, stay=STAY):
    return stay * np.eye(len(law)) + (1 - stay) * np.tile(law, (len(law), 1))


@functools.cache
def portraits(law, epsilon, n_steps, every):
    """Steps, and `population.portraits` in float64, of gradient descent from N(0, epsilon^2) of NumPy's seed 0."""
    draw, n = np.random.default_rng(0).standard_normal, len(law)
    w_0, w_1, w_q, w_k = (epsilon * draw(shape) for shape in ((n, WIDTH), (WIDTH, n), (WIDTH, WIDTH), (WIDTH, WIDTH)))
    step_T = np.arange(0, n_steps + 1, every)
    with jax.enable_x64(True):
        chain = jnp.array(law), jnp.array(transition(law))
        params_T = jax.jit(population.descend)(tree(w_0, w_q, w_k, w_1), *chain, RATE, step_T)
        seen = jax.jit(population.portraits)(params_T, *chain, jnp.eye(WIDTH, 2))
        return step_T, jax.tree.map(np.asarray, seen)
