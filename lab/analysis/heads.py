"""Scores of attention heads against detection patterns, as TransformerLens has them.

A detection pattern marks, for every query, the keys that a head of that kind reads; the score is the attention mass
on them, averaged over the queries that have such a key: 1 for a perfect head, whatever the number of keys.
"""

import jax
import jax.numpy as jnp

from lab.analysis.estimate import Estimate
from lab.analysis.focus import clustered_mean


def previous_token_edges(tokens_L):
    """edges_LxL: query q reads the position before, j = q - 1."""
    query_Lx1, key_1xL = _positions(tokens_L)
    return key_1xL == query_Lx1 - 1


def duplicate_token_edges(tokens_L):
    """edges_LxL: query q reads earlier occurrences of its own token, x_j = x_q and j < q."""
    query_Lx1, key_1xL = _positions(tokens_L)
    return (tokens_L[:, None] == tokens_L[None]) & (key_1xL < query_Lx1)


def induction_edges(tokens_L):
    """edges_LxL: query q reads what followed earlier occurrences of its token, x_{j-1} = x_q and j - 1 < q."""
    duplicate_LxL = duplicate_token_edges(tokens_L)
    return jnp.pad(duplicate_LxL[:, :-1], ((0, 0), (1, 0)))


EDGES = {
    "previous_token": previous_token_edges,
    "duplicate_token": duplicate_token_edges,
    "induction": induction_edges,
}


def edge_score(pattern_BxHxQxL, edges_BxLxL) -> Estimate:
    """Attention mass on marked edges (H), averaged over the queries that have one; errors are over sequences.

    Args:
      pattern_BxHxQxL: Q = L, or the last Q positions.
      edges_BxLxL: boolean, query by key.

    Returns:
      NaN if no query has an edge; an error of NaN if fewer than two sequences have such a query.
    """
    n_queries, length = pattern_BxHxQxL.shape[2:]

    def of_sequence(sequence):
        pattern_HxQxL, edges_LxL = sequence
        edges_QxL = edges_LxL[length - n_queries :]
        mass_H = jnp.sum(jnp.where(edges_QxL[None], pattern_HxQxL, 0), axis=(1, 2))
        return mass_H, jnp.sum(jnp.any(edges_QxL, axis=1)).astype(mass_H.dtype)

    return clustered_mean(of_sequence, (pattern_BxHxQxL, edges_BxLxL))[0]


def head_scores(pattern_BxHxQxL, tokens_BxL) -> dict[str, Estimate]:
    """`previous_token`, `duplicate_token` and `induction` score of the H heads of a layer, each (H).

    Induction wants `repeated_sequences`: in other text its edges are few, and shared with other kinds of head.
    Attention to the first position is `focus.sink_mass`.
    """
    return {name: edge_score(pattern_BxHxQxL, jax.vmap(edges)(tokens_BxL)) for name, edges in EDGES.items()}


def cosines(first_NxHxDxK, second_NxHxKxD):
    """cos(A_h B_h, A_g B_g), in [-1, 1], of every two heads of a layer: (N, H, H), from `rank.circuit_factors`.

    Of their QK (OV) matrices as vectors: 1 means that two heads look for (write) the same, up to a factor; random heads
    are within about 1 / D of 0. The products are not formed: <A_h B_h, A_g B_g> = sum of (A_h^T A_g) * (B_h B_g^T), in
    O(H^2 D K^2). A zero head is at cosine 0 with every head. Exact up to rounding.
    """
    first, second = (factor / _peak(factor) for factor in (first_NxHxDxK, second_NxHxKxD))

    def inner(one, other):
        (a_DxK, b_KxD), (c_DxK, d_KxD) = one, other
        return jnp.sum((a_DxK.T @ c_DxK) * (b_KxD @ d_KxD.T))

    def of_layer(heads):
        return jax.vmap(lambda one: jax.vmap(lambda other: inner(one, other))(heads))(heads)

    inner_NxHxH = jax.vmap(of_layer)((first, second))
    norm_NxH = jnp.sqrt(jnp.maximum(jnp.diagonal(inner_NxHxH, axis1=1, axis2=2), 0))
    norms_NxHxH = norm_NxH[:, :, None] * norm_NxH[:, None]
    return inner_NxHxH / jnp.where(norms_NxHxH == 0, 1, norms_NxHxH)


def repeated_sequences(key, tokens_S, n: int, length: int):
    """tokens_Nx2L: `length` distinct tokens drawn from S, then the same again.

    Every query of the second half has one duplicate and, but for the last, one induction edge that is right.

    Raises:
      ValueError: `length` exceeds S.
    """
    tokens_S = jnp.asarray(tokens_S, jnp.int32)
    if length > tokens_S.size:
        raise ValueError(f"a half of {length} distinct tokens cannot be drawn from {tokens_S.size}")
    draw = jax.vmap(lambda key: jax.random.choice(key, tokens_S, (length,), replace=False))
    half_NxL = draw(jax.random.split(key, n))
    return jnp.concatenate([half_NxL, half_NxL], axis=1)


def _positions(tokens_L):
    position_L = jnp.arange(tokens_L.size)
    return position_L[:, None], position_L[None]


def _peak(factor_NxHxIxJ):
    """The largest entry of every head, 1 of a zero one: squares of strongly decayed weights would underflow."""
    peak_NxHx1x1 = jnp.max(jnp.abs(factor_NxHxIxJ), axis=(2, 3), keepdims=True)
    return jnp.where(peak_NxHx1x1 == 0, 1, peak_NxHx1x1)
