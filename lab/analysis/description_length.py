"""Description length of a trained model: bits of quantized weights, and dimensions of a random training subspace.

Both bound the length of one description from above; neither is the shortest there is. Losses are
`lab.analysis.loss_fn.Loss`: `(params, batch) -> (sum, weight)`, reported as sum / weight.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lab.analysis.estimate import Estimate
from lab.analysis.loss_fn import Loss, flatten, mean_loss

BITS = tuple(range(2, 13))


def quantize(params, bits):
    """Every tensor rounded to the symmetric uniform grid of 2^bits - 1 values from -max|w| to max|w|, 0 among them.

    An entry moves by half a step at most, max|w| / (2^bits - 2), up to rounding. A tensor of zeros stays as it is.

    Args:
      bits: at least 2, may be traced.
    """

    def rounded(leaf):
        largest = jnp.max(jnp.abs(leaf))
        # The grid in units of the largest entry: the step itself would underflow for strongly decayed weights.
        unit = jnp.where(largest == 0, 1, largest)
        n_steps = (jnp.exp2(jnp.asarray(bits, leaf.dtype) - 1) - 1).astype(leaf.dtype)
        return jnp.round(leaf / unit * n_steps) / n_steps * largest

    return jax.tree.map(rounded, params)


def by_quantization(loss: Loss, params, batches, tolerance, bits: tuple[int, ...] = BITS) -> dict:
    """Fewest bits a weight that keep the loss, and the length of the description they give. Exact up to rounding.

    All tensors get the same number of bits, with one scale each, at the weights' own precision. Costs one pass over
    `batches` a number of bits, and one for the unquantized loss; memory is that of one more copy of the parameters.

    Args:
      batches: minibatches, leaves (M, size, ...), of `lab.analysis.loss_fn.minibatches`.
      tolerance: how far above the unquantized loss still counts as kept, in the loss's units; may be traced.
      bits: static, ascending, each from 2 (at 1 the symmetric grid has only 0) to 16.

    Returns:
      `loss`, unquantized; `loss_by_bits` (the curve, one entry for each of `bits`; it need not fall monotonically);
      `bits`, the fewest whose loss is at most `loss + tolerance`, inf if there are none; `description_length` =
      bits * weights + (bits of a float) * tensors, in bits.

    Raises:
      ValueError: `bits` is empty, not ascending, or out of range.
    """
    _check_ascending("bits", bits, 2, 16)
    leaves = jax.tree.leaves(params)
    dtype = jnp.result_type(*leaves)
    bits_B = jnp.asarray(bits, dtype)
    unquantized = mean_loss(loss, params, batches)
    loss_B = jax.lax.map(lambda n_bits: mean_loss(loss, quantize(params, n_bits), batches), bits_B)
    fewest = _smallest(bits_B, loss_B <= unquantized + tolerance)
    n_weights, scales = sum(leaf.size for leaf in leaves), sum(jnp.finfo(leaf.dtype).bits for leaf in leaves)
    return {
        "loss": unquantized,
        "loss_by_bits": loss_B,
        "bits": fewest,
        "description_length": fewest * float(n_weights) + float(scales),
    }


def count_sketch(key, n_params: int, n_dims):
    """A random map of d coordinates to P parameters, P z: `column_P` (int32, below d) and `entry_P`.

    Parameter i moves with one coordinate only: (P z)_i = entry_P[i] * z[column_P[i]]. Every coordinate has P // d
    parameters or one more, chosen at random with random signs, and columns have unit length; so they are orthonormal,
    and E[P P^T] = (d / P) I: no direction is preferred. Memory is that of two vectors.

    Args:
      n_dims: d, from 1 to `n_params`; may be traced.

    Returns:
      column_P, entry_P; entries are float32, or float64 under x64.
    """
    order_key, sign_key = jax.random.split(key)
    n_dims = jnp.asarray(n_dims, jnp.int32)
    column_P = jax.random.permutation(order_key, jnp.arange(n_params, dtype=jnp.int32)) % n_dims
    in_column_P = n_params // n_dims + (column_P < n_params % n_dims).astype(jnp.int32)
    sign_P = jax.random.rademacher(sign_key, (n_params,), dtype=float)
    return column_P, sign_P / jnp.sqrt(in_column_P.astype(sign_P.dtype))


def subspace_losses(
    loss: Loss,
    params,
    sample: Callable,
    key,
    dims: tuple[int, ...],
    n_steps: int,
    learning_rate,
    n_eval: int,
) -> dict:
    """Loss reached by training only z in theta = theta_0 + P z, for each dimension of z (Li et al. 2018, eq. 2).

    P is a `count_sketch`; z starts at 0 and is trained by Adam, its rate falling to 0 as a cosine. Dimensions differ in
    P and nothing else: they see the same batches. One program serves all of them, one after the other; it costs
    `len(dims) * n_steps` gradients, and the memory of training one model.

    Args:
      params: theta_0, the row's initial parameters.
      sample: key -> batch; fresh ones at every step.
      dims: static, ascending, from 1 to the number of parameters P.
      learning_rate: peak, of a coordinate of z: a step moves theta by about learning_rate * sqrt(d). May be traced.
      n_eval: at least 2 fresh batches that the final loss is taken on.

    Returns:
      `loss`: Estimate (D), over evaluation batches; it says nothing of what another P or longer training would give.
      For that take several keys, and look at `train_loss` (D, n_steps): where it still falls, steps were too few.

    Raises:
      ValueError: `dims` is empty, not ascending or out of range; `n_steps` < 1 or `n_eval` < 2.
    """
    start_P, rebuild = flatten(params)
    _check_ascending("dims", dims, 1, start_P.size)
    if n_steps < 1 or n_eval < 2:
        raise ValueError(f"n_steps={n_steps}, n_eval={n_eval}: at least 1 step and 2 batches")
    sketch_key, train_key, eval_key = jax.random.split(key, 3)
    adam = optax.adam(optax.cosine_decay_schedule(1.0, n_steps))

    def train(n_dims):
        column_P, entry_P = count_sketch(sketch_key, start_P.size, n_dims)

        def at(z_D, batch):
            return loss(rebuild(start_P + entry_P.astype(start_P.dtype) * z_D[column_P]), batch)

        def step(state, step_key):
            z_D, momenta = state
            value, grad_D = jax.value_and_grad(lambda z_D: _ratio(at(z_D, sample(step_key))))(z_D)
            update_D, momenta = adam.update(grad_D, momenta)
            return (z_D + (learning_rate * update_D).astype(z_D.dtype), momenta), value

        # as long as the largest: coordinates from n_dims on touch no parameter
        z_D = jnp.zeros(max(dims), start_P.dtype)
        (z_D, _), train_loss_T = jax.lax.scan(step, (z_D, adam.init(z_D)), jax.random.split(train_key, n_steps))
        sums = jax.lax.map(lambda batch_key: at(z_D, sample(batch_key)), jax.random.split(eval_key, n_eval))
        return ratio_of_sums(*sums), train_loss_T

    final, train_loss_DxT = jax.lax.map(train, jnp.asarray(dims, jnp.int32))
    return {"loss": final, "train_loss": train_loss_DxT}


def intrinsic_dimension(loss_D, dims: tuple[int, ...], target):
    """Smallest of `dims` whose loss is at most `target`; inf if none is: it lies above the largest.

    Li et al. (2018) take the target at 90 % of the performance of training all parameters.
    """
    return _smallest(jnp.asarray(dims, loss_D.dtype), loss_D <= target)


def ratio_of_sums(sums_N, weights_N) -> Estimate:
    """sum of sums / sum of weights over N independent batches, and its standard error to first order (delta method)."""
    n = sums_N.shape[0]
    value = jnp.sum(sums_N) / jnp.sum(weights_N)
    residual_N = (sums_N - value * weights_N) / jnp.mean(weights_N)
    return Estimate(value, jnp.sqrt(jnp.sum(jnp.square(residual_N)) / (n * (n - 1))))


def _ratio(sum_and_weight):
    total, weight = sum_and_weight
    return total / weight


def _smallest(candidates_C, accepted_C):
    return jnp.min(jnp.where(accepted_C, candidates_C, jnp.inf))


def _check_ascending(name: str, values: tuple[int, ...], low: int, high: int) -> None:
    if not values or list(values) != sorted(set(values)) or not low <= values[0] <= values[-1] <= high:
        raise ValueError(f"{name}={values}: ascending whole numbers from {low} to {high}")
