"""Lazy or rich training: movement of parameters from initialization, and alignment of the tangent kernels.

A lazy model moves little relative to its size and keeps its neural tangent kernel K(x, x') = <grad f(x), grad f(x')>
(Jacot et al. 2018; Chizat et al. 2019); a rich one turns its weights and aligns its kernel with the task.

*Outputs* are any function `(params, batch) -> (B, C)`. Every leaf of the batch has the leading axis B, and an
example's outputs depend on that example only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lab import losses, models
from lab.analysis.estimate import Estimate
from lab.analysis.scale import norm
from lab.tree import named_leaves

Outputs = Callable[..., jax.Array]


def answer_logits(model) -> Outputs:
    """Logits (B, V) at the last position of a batch of tokens, or a classifier's."""

    def outputs(params, batch):
        return losses.at_positions(models.forward(model, params, batch.tokens_BxL)[0])[:, -1]

    return outputs


def tensor_names(params) -> list[str]:
    """The T leaves of a parameter tree, in tree order: what the arrays of this module are about."""
    return list(named_leaves(params))


def relative_distance(params, initial):
    """|W - W_0|_F / |W_0|_F: `tensor` (T, in the order of `tensor_names`) and `whole`, of all parameters as one vector.

    Infinite for what left an initial zero (biases often start there), 0 for what stayed. Exact up to rounding.
    """
    moved = jax.tree.map(jnp.subtract, params, initial)
    moved_T, initial_T = (jnp.stack([norm(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (moved, initial))

    def ratio(distance, size):
        return jnp.where(distance == 0, 0, distance / size)

    return {"tensor": ratio(moved_T, initial_T), "whole": ratio(norm(moved_T), norm(initial_T))}


def direction_change(params, initial):
    """1 - cos(W, W_0), in [0, 2]: `tensor` (T, in the order of `tensor_names`) and `whole`, as one vector.

    NaN where W or W_0 is zero and has no direction. Scaling a tensor changes nothing: weight decay alone moves
    `relative_distance` but not this. Exact up to rounding.
    """
    # |u - v|^2 / 2 of unit vectors is 1 - cos, and keeps digits where 1 - cos would cancel to zero.
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(initial), strict=True))
    now_T, then_T = (jnp.stack([norm(leaf) for leaf in leaves]) for leaves in zip(*pairs, strict=True))

    def change(now, then, size, size_0):
        return jnp.sum(jnp.square(now / size - then / size_0)) / 2

    tensor_T = [change(*pair, now_T[t], then_T[t]) for t, pair in enumerate(pairs)]
    whole = sum(change(*pair, norm(now_T), norm(then_T)) for pair in pairs)
    return {"tensor": jnp.stack(tensor_T), "whole": whole}


def kernel_alignment(k_NxN, l_NxN):
    """<K, L>_F / (|K|_F |L|_F), in [0, 1] for kernels: 1 where they are equal up to scale. NaN for a zero kernel."""
    k_NxN, l_NxN = k_NxN / norm(k_NxN), l_NxN / norm(l_NxN)
    return jnp.sum(k_NxN * l_NxN)


def centred_kernel_alignment(k_NxN, l_NxN):
    """`kernel_alignment` of H K H and H L H, H = 1 - 1 1^T / N (Cortes et al. 2012): the common mean left out.

    A tangent kernel has one large constant part, which keeps the uncentred alignment near 1 whatever the rest does.
    """
    return kernel_alignment(_centred(k_NxN), _centred(l_NxN))


def projected_alignment(outputs: Outputs, params, initial, batch, key, n_probes: int) -> Estimate:
    """`centred_kernel_alignment` of the tangent kernels at initialization and now, with the jackknife's error.

    The kernel of the examples is averaged over outputs: K (B x B) = (1/C) sum_c J_c J_c^T, estimated with random signs
    r in place of basis vectors, E[J_r J_r^T] = sum_c J_c J_c^T: `n_probes` gradients of every example.

    Both kernels see the same probes, so that equal parameters give exactly 1. A quotient of estimates is biased by
    O(1 / n_probes), of the order of the squared standard error over the value.

    Raises:
      ValueError: fewer than two probes.
    """
    if n_probes < 2:
        raise ValueError(f"n_probes={n_probes}; an error bar takes at least 2")
    now_SxBxB, then_SxBxB = (_probed(outputs, tree, batch, key, n_probes) for tree in (params, initial))
    now_BxB, then_BxB = jnp.sum(now_SxBxB, axis=0), jnp.sum(then_SxBxB, axis=0)
    left_out_S = jax.vmap(lambda now, then: centred_kernel_alignment(now_BxB - now, then_BxB - then))(
        now_SxBxB, then_SxBxB
    )
    deviation = jnp.sqrt((n_probes - 1) * jnp.mean(jnp.square(left_out_S - jnp.mean(left_out_S))))
    return Estimate(centred_kernel_alignment(now_BxB, then_BxB), deviation)


def _probed(outputs, params, batch, key, n_probes):
    """S single-probe kernels over C, (S, B, B)."""
    shape = jax.eval_shape(outputs, params, batch)
    n_outputs = shape.shape[1]
    sign_SxC = jax.random.rademacher(key, (n_probes, n_outputs), shape.dtype)
    return jax.lax.map(lambda sign_C: _kernel(outputs, params, batch, sign_C) / n_outputs, sign_SxC)


def _kernel(outputs, params, batch, direction_C):
    """Gram matrix (B x B) of the examples' gradients of <direction, outputs>."""

    def along(params, example):
        return outputs(params, jax.tree.map(lambda leaf: leaf[None], example))[0] @ direction_C

    gradients = jax.vmap(jax.grad(along), in_axes=(None, 0))(params, batch)
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)]
    return sum(leaf_BxP @ leaf_BxP.T for leaf_BxP in flat)


def _centred(k_NxN):
    rows_NxN = k_NxN - jnp.mean(k_NxN, axis=0, keepdims=True)
    return rows_NxN - jnp.mean(rows_NxN, axis=1, keepdims=True)
