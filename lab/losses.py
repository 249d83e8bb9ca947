"""Losses on the positions that carry a weight, summed over tokens before any mean is taken."""

import jax
import jax.numpy as jnp


def last(values_BxL, n_positions: int):
    """The entries of the last `n_positions` positions: a model with `readout='last'` answers only there."""
    return values_BxL[:, values_BxL.shape[1] - n_positions :]


def at_positions(logits):
    """Logits (B, Q, V), also of a classifier, (B, V): one position."""
    return logits[:, None] if logits.ndim == 2 else logits


def cross_entropy(logits_BxQxV, targets_BxL, weights_BxL):
    """Weighted next-token cross-entropy in nats.

    Logits stand for the last Q of the L positions; those without positions, (B, V), for the last one. Computed in
    float32, or in float64 where the logits are.

    Returns:
      `(sum_nll, sum_weights)`: divide them for the mean, after adding up whatever else belongs to it.
    """
    logits_BxQxV = at_positions(logits_BxQxV)
    n_positions = logits_BxQxV.shape[1]
    targets_BxQ, weights_BxQ = last(targets_BxL, n_positions), last(weights_BxL, n_positions)
    dtype = jnp.float64 if logits_BxQxV.dtype == jnp.float64 else jnp.float32
    log_probs_BxQxV = jax.nn.log_softmax(logits_BxQxV.astype(dtype))
    nll_BxQ = -jnp.take_along_axis(log_probs_BxQxV, targets_BxQ[..., None], axis=-1)[..., 0]
    return jnp.sum(nll_BxQ * weights_BxQ), jnp.sum(weights_BxQ)


def mean_cross_entropy(logits_BxQxV, batch):
    """`cross_entropy` of a batch as one number."""
    sum_nll, sum_weights = cross_entropy(logits_BxQxV, batch.targets_BxL, batch.weights_BxL)
    return sum_nll / sum_weights
