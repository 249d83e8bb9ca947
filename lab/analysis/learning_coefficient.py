"""The local learning coefficient: half of the number of parameters that the loss constrains near a minimum.

The volume of {L < L(w*) + e} around w* shrinks as e^lambda: lambda = P/2 at a regular minimum, less at a singular one.
Estimator of Lau et al. 2023, "The Local Learning Coefficient" (arXiv 2308.12108, equation 14 and algorithm 1), as
the package devinterp computes it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lab.analysis import estimate
from lab.analysis.estimate import Estimate
from lab.analysis.loss_fn import Loss, everything, flatten


def local_learning_coefficient(
    loss: Loss,
    params,
    batches,
    key,
    *,
    n_examples: int,
    step_size,
    localization,
    n_chains: int,
    n_steps: int,
    n_burn_in: int,
    where: Callable[[str], bool] = everything,
) -> tuple[Estimate, jax.Array]:
    """lambda_hat = n beta (E_w[L(w)] - L(w*)), beta = 1 / log n, w* = `params`, over chains that sample
    p(w) ~ exp(-n beta L(w) - gamma/2 |w - w*|^2) by stochastic gradient Langevin dynamics:

        w <- w - eps/2 (n beta g(w) + gamma (w - w*)) + sqrt(eps) N(0, I).

    g is the gradient of one minibatch, drawn uniformly with replacement and scaled so that it is right on average also
    where weights differ; one stacked minibatch (M = 1) makes it the full gradient. Minibatches add their own noise to
    the chain's, which raises lambda_hat by an amount of order eps. L(w) - L(w*) is of the same minibatch as g:
    unbiased, and free of the minibatches' different L(w*).

    Costs n_chains (n_burn_in + n_steps) gradients of one minibatch, and memory of n_chains of them.

    Args:
      loss: with weights that depend on the batch alone; L is its mean over all of `batches`, in nats for a likelihood.
      batches: stacked minibatches (M, size, ...), of the training set or of a sample of it.
      n_examples: n, static: the examples in the training set, whatever part of it is in `batches`.
      step_size: eps, traced. The chain is unstable above 4 / (n beta lambda_max + gamma) with lambda_max the sharpness,
        and its relative bias there is eps (n beta lambda_max + gamma) / 4.
      localization: gamma >= 0, traced. Directions with n beta curvature below gamma are not counted.
      n_steps: draws kept of every chain, after `n_burn_in` that are not.
      where: names of the leaves that move; the others are constants.

    Returns:
      (estimate, rise_CxT): the mean over C chains and its standard error, and L(w_t) - L(w*) of every chain at all
      T = n_burn_in + n_steps draws, the first at w* itself. It should be flat after burn-in. A chain that diverged ends
      in NaN or inf, and then so does the estimate; a negative estimate says that w* is no minimum.

    Raises:
      ValueError: `n_examples` below 2, `n_chains` or `n_steps` below 1, or a negative `n_burn_in`.
    """
    for name, value, least in (
        ("n_examples", n_examples, 2),
        ("n_chains", n_chains, 1),
        ("n_steps", n_steps, 1),
        ("n_burn_in", n_burn_in, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    n_beta = n_examples / math.log(n_examples)
    centre_P, rise_and_gradient = _stochastic(loss, params, batches, where)
    eps, gamma = (jnp.asarray(value, centre_P.dtype) for value in (step_size, localization))

    def chain(key):
        def step(w_P, t):
            minibatch_key, noise_key = jax.random.split(jax.random.fold_in(key, t))
            rise, gradient_P = rise_and_gradient(minibatch_key, w_P)
            drift_P = n_beta * gradient_P + gamma * (w_P - centre_P)
            noise_P = jax.random.normal(noise_key, w_P.shape, w_P.dtype)
            return w_P - eps / 2 * drift_P + jnp.sqrt(eps) * noise_P, rise

        return jax.lax.scan(step, centre_P, jnp.arange(n_burn_in + n_steps))[1]

    rise_CxT = jax.vmap(chain)(jax.random.split(key, n_chains))
    return estimate.mean(n_beta * jnp.mean(rise_CxT[:, n_burn_in:], axis=1)), rise_CxT


def _stochastic(loss, params, batches, where):
    """`(w*, f)` with f(key, w_P) an unbiased `(L(w) - L(w*), gradient of L at w)` from one minibatch."""
    centre_P, rebuild = flatten(params, where)

    def total(w_P, batch):
        return loss(rebuild(w_P), batch)

    total_M, weight_M = jax.lax.map(lambda batch: total(centre_P, batch), batches)
    n_minibatches = len(total_M)
    scale = n_minibatches / jnp.sum(weight_M)

    def rise_and_gradient(key, w_P):
        i = jax.random.randint(key, (), 0, n_minibatches)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], batches)
        (value, _), gradient_P = jax.value_and_grad(total, has_aux=True)(w_P, batch)
        return scale * (value - total_M[i]), scale.astype(w_P.dtype) * gradient_P

    return centre_P, rise_and_gradient
