"""Ancestral sampling of a diffusion model ("Denoising Diffusion Probabilistic Models", arXiv 2006.11239).

    x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) e(x_t, t)) / sqrt(1 - beta_t) + sqrt(beta_t) z

with z ~ N(0, 1), and z = 0 for t = 1: algorithm 2 with sigma_t^2 = beta_t.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def generate(noise_of: Callable, key, shape: tuple[int, ...], beta_T: np.ndarray, dtype=jnp.float32):
    """x_0, starting from normal x_T; not clipped. Random numbers are drawn in float32, whatever the dtype.

    Args:
      noise_of: `(x_t, t / T) -> e`, of the given shape and dtype.
      beta_T: beta_1 ... beta_T.
    """
    start_key, step_key = jax.random.split(key)

    def normal(key):
        return jax.random.normal(key, shape, jnp.float32).astype(dtype)

    def back(x, step):
        t, share, taken, left, fresh = step
        mean = (x - taken * noise_of(x, share)) / left
        return mean + fresh * normal(jax.random.fold_in(step_key, t)), None

    n = len(beta_T)
    taken_T = beta_T / np.sqrt(1 - np.cumprod(1 - beta_T))  # in float64: 1 - abar_1 is small
    numbers = (np.arange(1, n + 1) / n, taken_T, np.sqrt(1 - beta_T), np.sqrt(beta_T) * (np.arange(n) > 0))
    steps = (jnp.arange(n, dtype=jnp.int32), *(jnp.asarray(values_T, dtype) for values_T in numbers))
    return jax.lax.scan(back, normal(start_key), steps, reverse=True)[0]
