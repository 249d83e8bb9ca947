"""Condensation: neurons whose input weights point the same way (arXiv 2405.05409)."""

import jax
import jax.numpy as jnp


def unit_rows(vectors_NxD):
    """Rows scaled to unit norm; zero rows stay zero, NaN stays NaN."""
    # Dividing by the largest entry first keeps the squares of strongly decayed weights from underflowing,
    # and makes the norm of every row but the zero ones at least 1, which the last line relies on.
    peak_Nx1 = jnp.max(jnp.abs(vectors_NxD), axis=1, keepdims=True)
    scaled_NxD = vectors_NxD / jnp.where(peak_Nx1 == 0, 1, peak_Nx1)
    return scaled_NxD / jnp.maximum(jnp.linalg.norm(scaled_NxD, axis=1, keepdims=True), 1)


def cosine_matrix(vectors_NxD):
    """S_ij = <w_i, w_j> / (|w_i| |w_j|). A zero vector is at cosine 0 with every vector, itself included."""
    unit_NxD = unit_rows(vectors_NxD)
    return unit_NxD @ unit_NxD.T


def greedy_groups(cosine_NxN, threshold):
    """Greedy grouping: the first free neuron takes every free neuron with S > threshold; repeat.

    S is signed: antiparallel neurons are in different groups. A zero neuron is a group of its own.

    Returns:
      group_N: int32 label of each neuron, numbered from 0 in the order the groups were made.
      order_N: the permutation that makes groups contiguous, keeping the order inside each.
      n_groups: int32 scalar.
    """
    neuron_N = jnp.arange(cosine_NxN.shape[0])

    def visit(i, state):
        group_N, n_groups = state
        free_N = group_N < 0
        joins_N = free_N & ((cosine_NxN[i] > threshold) | (neuron_N == i))
        founds = free_N[i]
        return jnp.where(founds & joins_N, n_groups, group_N), jnp.where(founds, n_groups + 1, n_groups)

    nobody = jnp.full(neuron_N.shape, -1, jnp.int32), jnp.int32(0)
    group_N, n_groups = jax.lax.fori_loop(0, neuron_N.size, visit, nobody)
    return group_N, jnp.argsort(group_N), n_groups


def fraction_above(cosine_NxN, threshold):
    """Share of off-diagonal entries with |S| > threshold, in [0, 1]."""
    off_diagonal_NxN = ~jnp.eye(cosine_NxN.shape[0], dtype=bool)
    return jnp.mean(jnp.abs(cosine_NxN) > threshold, where=off_diagonal_NxN)


def condensation(kernel_DxN, threshold):
    """Condensation of a Flax kernel: the input weights of neuron i are column i.

    Args:
      threshold: cosine above which neurons go together: 0.7 in arXiv 2405.05409, 0.4 in 2501.08537.

    Returns:
      `cosine` (NxN, raw order), `order` (N), `n_groups`, `fraction_above`.
    """
    cosine_NxN = cosine_matrix(kernel_DxN.T)
    _, order_N, n_groups = greedy_groups(cosine_NxN, threshold)
    return {
        "cosine": cosine_NxN,
        "order": order_N,
        "n_groups": n_groups,
        "fraction_above": fraction_above(cosine_NxN, threshold),
    }
