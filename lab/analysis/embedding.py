"""Principal components of token embeddings, and their rank correlation with the token's value. Exact up to rounding."""

import jax
import jax.numpy as jnp


def pca(vectors_NxD, n_components: int):
    """Principal components of N vectors, by a singular value decomposition of the centred data.

    Signs are fixed: the loading of largest magnitude is positive in each component.

    Args:
      n_components: C, at most min(N, D).

    Returns:
      coordinates_NxC: projections of the centred vectors.
      explained_C: fraction of the total variance, decreasing; 0 where all vectors are equal.
    """
    u_NxK, s_K, direction_KxD = jnp.linalg.svd(_centred(vectors_NxD), full_matrices=False)
    peak_K = jnp.argmax(jnp.abs(direction_KxD), axis=1)
    sign_K = jnp.sign(jnp.take_along_axis(direction_KxD, peak_K[:, None], axis=1))[:, 0]
    coordinates_NxK = u_NxK * (s_K * sign_K)[None]

    variance_K = jnp.square(s_K)
    total = jnp.sum(variance_K)
    explained_K = variance_K / jnp.where(total == 0, 1, total)
    return coordinates_NxK[:, :n_components], explained_K[:n_components]


def spearman(a_N, b_N):
    """Spearman's rank correlation; ties share their mean rank.

    0 where a or b is constant, NaN where one of them holds a NaN.
    """
    a_N, b_N = _centred_ranks(a_N), _centred_ranks(b_N)
    norm = jnp.sqrt(jnp.sum(a_N * a_N) * jnp.sum(b_N * b_N))
    return jnp.sum(a_N * b_N) / jnp.where(norm == 0, 1, norm)


def value_order(coordinates_NxC, values_N):
    """max_c |Spearman(coordinate c, value)|: 1 when some component sorts the tokens by value, up or down."""
    correlation_C = jax.vmap(spearman, in_axes=(1, None))(coordinates_NxC, values_N)
    return jnp.max(jnp.abs(correlation_C))


def embedding(table_VxD, tokens_N, n_components: int):
    """Layout of the tokens whose value is their index (arXiv 2405.05409 and 2501.08537).

    Returns:
      `components` (NxC, the coordinates) and `explained` (C) of `pca`, and `order`, their `value_order`.
    """
    tokens_N = jnp.asarray(tokens_N)
    coordinates_NxC, explained_C = pca(table_VxD[tokens_N], n_components)
    return {
        "components": coordinates_NxC,
        "explained": explained_C,
        "order": value_order(coordinates_NxC, tokens_N),
    }


def _centred(x_NxD):
    return x_NxD - jnp.mean(x_NxD, axis=0, keepdims=True)


def _centred_ranks(a_N):
    sorted_N = jnp.sort(a_N)
    below_N = jnp.searchsorted(sorted_N, a_N, side="left")
    not_above_N = jnp.searchsorted(sorted_N, a_N, side="right")
    rank_N = (below_N + not_above_N - a_N.size).astype(float)  # twice the centred mean rank, a whole number
    return jnp.where(jnp.isnan(a_N), jnp.nan, rank_N)
