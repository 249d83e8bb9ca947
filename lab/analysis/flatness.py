"""Rise of the loss around given parameters: along lines, one step up, in the worst direction, and under noise.

Everything here takes a *score*: `(params, batch) -> (sum, weight)` as in `loss_fn`, the weight depending on the batch
alone. A loss is one; accuracy is another where no gradient is needed. Means are over all of `batches`, minibatches
stacked as (M, size, ...). A difference of two float32 means is rounding below about 1e-7 of the mean itself.

L: mean score; theta: parameters; P: how many `where` chooses; the others stay where they are.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from lab import init, models, rng
from lab.analysis import estimate
from lab.analysis.estimate import Estimate
from lab.analysis.loss_fn import Loss, everything, flatten, mean_loss, over_minibatches
from lab.analysis.scale import unit
from lab.tree import each_layer, map_named

Score = Loss
Where = Callable[[str], bool]


def tensor_normalized(key, params, where: Where = everything):
    """A Gaussian direction d with |d_i| = |theta_i| for every tensor i; 0 for the leaves `where` refuses."""
    return _normalized(key, params, where, functools.partial(each_layer, lambda leaf: jnp.linalg.norm(leaf.ravel())))


def filter_normalized(key, params, where: Where = everything):
    """A Gaussian direction with the norm of theta in every filter (Li et al. 2018, section 4; arXiv 1712.09913).

    A filter is what enters one neuron, a column of a kernel (in, out), or one token's row of an embedding. Biases, norm
    parameters and whatever is neither `kernel` nor `embedding` are one filter each (Li et al. leave the former out: so
    does `where=lambda name: name.endswith(("kernel", "embedding"))`).
    """
    return _normalized(key, params, where, _filter_norms)


def along(score: Score, params, direction, alphas_A, batches):
    """rise_A = L(theta + alpha d) - L(theta). Exact up to rounding; A + 1 passes over the data."""
    return _rises(score, params, [direction], jnp.asarray(alphas_A)[:, None], batches)


def random_lines(score: Score, params, key, draw: Callable, n_directions: int, alphas_A, batches) -> Estimate:
    """`along` random directions: mean rise (A) and its standard error over directions.

    Args:
      draw: `(key, params) -> direction`: `filter_normalized` or `tensor_normalized`, the latter being the form for the
        answer tokens of arXiv 2502.02007.

    Raises:
      ValueError: `n_directions` below 1.
    """
    keys_N = _split(key, n_directions, "n_directions")
    return estimate.mean(jax.lax.map(lambda one: along(score, params, draw(one, params), alphas_A, batches), keys_N))


def sam(loss: Loss, params, batches, radius, where: Where = everything):
    """L(theta + rho g / |g|) - L(theta), g the gradient of L (Foret et al. 2021, equation 2; arXiv 2010.01412).

    The worst case to first order in the radius rho, and a lower bound of it; 0 where g = 0. Exact up to rounding.
    """
    vector_P, rebuild = flatten(params, where)
    mean, slope_P = _value_and_slope(loss, rebuild, vector_P, batches)
    ascended_P = vector_P + jnp.asarray(radius, vector_P.dtype) * slope_P
    return mean_loss(loss, rebuild(ascended_P), batches) - mean


def worst_case(loss: Loss, params, key, batches, radius, n_steps: int, where: Where = everything):
    """The largest rise found within |delta|_2 <= rho: a lower bound of the true one, and so without an error bar.

    delta starts on the sphere in a random direction and climbs by `n_steps` projected steps delta + rho g / |g|; the
    largest of the n_steps + 1 rises on the way counts. At the minimum of a convex quadratic it tends to
    lambda_max rho^2 / 2, what is missing shrinking by ((1 + lambda_2 / lambda_max) / 2)^2 or less a step.

    Args:
      radius: rho, traced, in the units of the parameters; the start is the same direction for every radius.

    Raises:
      ValueError: `n_steps` is negative.
    """
    vector_P, rebuild = flatten(params, where)
    return _worst(loss, lambda delta_P: rebuild(vector_P + delta_P), vector_P, key, batches, radius, n_steps)


def worst_case_adaptive(loss: Loss, params, key, batches, radius, n_steps: int, where: Where = everything):
    """`worst_case` in the ball |delta / |theta||_2 <= rho, elementwise (ASAM: Kwon et al. 2021; arXiv 2102.11600).

    Multiplying weights by factors that leave the function alone does not change it. A weight that is 0 cannot move. At
    the minimum of a quadratic it tends to lambda_max(D H D) rho^2 / 2, D = diag(|theta|). A lower bound; no error bar.

    Args:
      radius: rho, traced: the change relative to the weights; equal ones of relative size r make rho = r sqrt(P).

    Raises:
      ValueError: `n_steps` is negative.
    """
    vector_P, rebuild = flatten(params, where)
    scale_P = jnp.abs(vector_P)
    return _worst(loss, lambda eps_P: rebuild(vector_P + scale_P * eps_P), vector_P, key, batches, radius, n_steps)


def weight_noise(score: Score, params, key, sigmas_S, n_draws: int, batches, where: Where = everything) -> Estimate:
    """L(theta + sigma RMS(theta_i) N(0, I)) for every sigma, i running over tensors: mean (S) and standard error.

    A draw uses the same noise for all sigma: the curve of one draw is smooth, errors along it are correlated. The error
    is that of the noise, not of the examples. S `n_draws` passes over the data.

    Raises:
      ValueError: `n_draws` below 1.
    """

    def rms(name, leaf):
        if not where(name):
            return jnp.zeros((), leaf.dtype)
        return each_layer(lambda leaf: jnp.sqrt(jnp.mean(jnp.square(leaf))), name, leaf)

    def curve_S(key):
        noise = map_named(lambda name, leaf: rms(name, leaf) * _normal(key, name, leaf), params)
        return _curve(score, params, [noise], jnp.asarray(sigmas_S)[:, None], batches)

    return estimate.mean(jax.lax.map(curve_S, _split(key, n_draws, "n_draws")))


def embedding_noise(score: Callable, params, key, sigmas_S, n_draws: int, batches) -> Estimate:
    """L with e + sigma RMS(e) N(0, I) for the input embedding e of every token: mean (S) over draws, standard error.

    RMS is over the width of each token's own vector, so that it does not depend on how the data are cut. A draw uses
    the same noise for all sigma; other noise in every sequence. The error is that of the noise, not of the examples.
    S `n_draws` passes over the data.

    Args:
      score: `(params, batch, edit) -> (sum, weight)`, which applies `edit` to the embeddings (..., D);
        `with_embedding_edit` makes one of a model of ours.

    Raises:
      ValueError: `n_draws` below 1.
    """
    n_minibatches = jax.tree.leaves(batches)[0].shape[0]

    def curve_S(key):
        def of_minibatch(numbered):
            number, batch = numbered
            noise_key = jax.random.fold_in(key, number)
            return jax.lax.map(lambda sigma: score(params, batch, _noisy(noise_key, sigma)), jnp.asarray(sigmas_S))

        total_S, weight_S = over_minibatches(of_minibatch, (jnp.arange(n_minibatches), batches))
        return total_S / weight_S

    return estimate.mean(jax.lax.map(curve_S, _split(key, n_draws, "n_draws")))


def with_embedding_edit(model, score_of: Callable) -> Callable:
    """`(params, batch, edit) -> (sum, weight)` of a model of ours with its embeddings edited: for `embedding_noise`.

    Args:
      score_of: `(logits_BxQxV, batch) -> (sum, weight)`: `objective.answer_loss_of`, `objective.answer_accuracy_of`.
    """

    def score(params, batch, edit):
        return score_of(models.forward(model, params, batch.tokens_BxL, {"embed": edit})[0], batch)

    return score


def _normal(key, name, leaf):
    # By name: the noise of a leaf depends neither on `where` nor on the other leaves.
    return jax.random.normal(rng.named(key, name), leaf.shape, leaf.dtype)


def _normalized(key, params, where, norms):
    def direction(name, leaf):
        if not where(name):
            return jnp.zeros_like(leaf)
        noise = _normal(key, name, leaf)
        return noise * (norms(name, leaf) / norms(name, noise))

    return map_named(direction, params)


def _filter_norms(name, leaf):
    """The norm of the filter that each entry belongs to, broadcastable to the leaf."""
    described = init.describe(name, leaf.shape)
    if name.endswith("embedding"):
        return jnp.linalg.norm(leaf, axis=-1, keepdims=True)

    def norms(leaf):
        if described is None:
            return jnp.linalg.norm(leaf.ravel())
        columns_IxO = leaf.reshape(described[1], -1)
        of_columns = jnp.linalg.norm(columns_IxO, axis=0, keepdims=True)
        return jnp.broadcast_to(of_columns, columns_IxO.shape).reshape(leaf.shape)

    return each_layer(norms, name, leaf)


def _curve(score, params, directions: Sequence, steps_AxK, batches):
    """Mean score (A) at theta + sum_k step_k d_k; one minibatch and one point in memory at a time."""

    def moved(step_K):
        def move(leaf, *of_leaf):
            return leaf + sum(step.astype(leaf.dtype) * d for step, d in zip(step_K, of_leaf, strict=True))

        return jax.tree.map(move, params, *directions)

    total_A, weight_A = over_minibatches(
        lambda batch: jax.lax.map(lambda step_K: score(moved(step_K), batch), steps_AxK), batches
    )
    return total_A / weight_A


def _rises(score, params, directions, steps_AxK, batches):
    with_origin = jnp.concatenate([jnp.zeros_like(steps_AxK[:1]), steps_AxK])
    mean_A = _curve(score, params, directions, with_origin, batches)
    return mean_A[1:] - mean_A[0]


def _value_and_slope(loss, rebuild, x_P, batches):
    """L at `rebuild(x_P)` and the direction of its gradient in x, of unit norm; one minibatch in memory at a time."""
    of_batch = jax.value_and_grad(lambda x_P, batch: loss(rebuild(x_P), batch), has_aux=True)
    (total, weight), gradient_P = over_minibatches(lambda batch: of_batch(x_P, batch), batches)
    return total / weight, unit(gradient_P)


def _worst(loss, rebuild, vector_P, key, batches, radius, n_steps):
    if n_steps < 0:
        raise ValueError(f"n_steps={n_steps}: steps of ascent, 0 or more")
    radius = jnp.asarray(radius, vector_P.dtype)
    start_P = radius * unit(jax.random.normal(key, vector_P.shape, vector_P.dtype))

    def climb(delta_P, _):
        mean, slope_P = _value_and_slope(loss, rebuild, delta_P, batches)
        ascended_P = delta_P + radius * slope_P
        norm = jnp.linalg.norm(ascended_P)
        return ascended_P * jnp.where(norm > radius, radius / norm, 1), mean

    _, mean_T = jax.lax.scan(climb, start_P, length=n_steps + 1)
    return jnp.max(mean_T) - mean_loss(loss, rebuild(jnp.zeros_like(vector_P)), batches)


def _noisy(key, sigma):
    """The edit e -> e + sigma RMS(e) N(0, I)."""

    def edit(h):
        rms = jnp.sqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True))
        return h + sigma.astype(h.dtype) * rms * jax.random.normal(key, h.shape, h.dtype)

    return edit


def _split(key, n, name):
    if n < 1:
        raise ValueError(f"{name}={n}: at least 1, and 2 for a standard error")
    return jax.random.split(key, n)
