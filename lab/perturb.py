"""Perturbations of the weights before the gradient is computed: sharpness-aware ascent and Gaussian weight noise.

theta: parameters; g: the gradient of the loss there. Both functions keep shapes and dtypes.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import optax

from lab import init, rng, tree


def sam_ascent(params, grads, radius):
    """theta + rho g / |g|_2, one norm over all leaves; theta where g = 0.

    The gradient there is that of sharpness-aware minimization (Foret et al. 2021, equations 2 and 3, p = 2;
    arXiv 2010.01412).

    Args:
      radius: rho in units of the weights, traced or not.
    """
    norm = optax.tree.norm(grads)
    scale = radius / jnp.where(norm > 0, norm, 1)
    return jax.tree.map(lambda leaf, slope: leaf + scale * slope, params, grads)


def weight_noise(params, key, sigma, matrices: Collection[str] | None = None):
    """theta_i + sigma RMS(theta_i) N(0, I) for every weight matrix i; biases and norm parameters stay.

    The definition is ours, in the manner of Gaussian weight noise: relative to each matrix as in
    `lab.analysis.flatness.weight_noise`, so that one sigma suits all initial scales. A leaf's noise goes by its name.

    Args:
      sigma: relative size of the noise, traced or not.
      matrices: the names of the weight matrices; None: as `init.by_name`.
    """
    matrices = init.by_name(params) if matrices is None else matrices

    def moved(name, leaf):
        if name not in matrices:
            return leaf
        rms = tree.each_layer(lambda leaf: jnp.sqrt(jnp.mean(jnp.square(leaf))), name, leaf)
        return leaf + sigma * rms * jax.random.normal(rng.named(key, name), leaf.shape, leaf.dtype)

    return tree.map_named(moved, params)
