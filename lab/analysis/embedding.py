"""Are token embeddings laid out by the value of the token, and do two layers, rows or snapshots represent alike?

Principal components, t-SNE, rank correlations, cosines by distance, and centred kernel alignment (CKA).
Everything here is exact up to rounding and has no error bar, but for t-SNE, which depends on its seed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lab.analysis.condensation import cosine_matrix
from lab.analysis.scale import unit, unit_rows


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


def mean_pairwise_cosine(vectors_NxD):
    """Mean cosine over pairs of different vectors, in O(N D).

    (|sum_i u_i|^2 - sum_i |u_i|^2) / (N (N - 1)) with u_i of unit norm; a zero vector has cosine 0 with all.
    """
    unit_NxD = unit_rows(vectors_NxD)
    n_vectors = vectors_NxD.shape[0]
    total = jnp.sum(jnp.square(jnp.sum(unit_NxD, axis=0))) - jnp.sum(jnp.square(unit_NxD))
    return total / (n_vectors * (n_vectors - 1))


def tsne(vectors_NxD, perplexity: float, seed: int):
    """t-SNE of the vectors in the plane, (N, 2) in NumPy, by scikit-learn from a PCA start.

    Runs on the host: not to be jitted or vmapped. Only neighbourhoods mean something in the picture: not distances
    between clusters, nor their sizes. The released notebook of arXiv 2501.08537 takes perplexity 12 and seed 5.

    Raises:
      ImportError: scikit-learn is not installed; it comes with the extra `tsne`.
      ValueError: perplexity not below N, or a vector is not finite (both by scikit-learn).
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn: pip install gammalab[tsne]") from error
    return TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(
        np.asarray(vectors_NxD)
    )


def cosine_by_distance(vectors_NxD, values_N):
    """Mean cosine of pairs of vectors by the distance |value_i - value_j| (arXiv 2502.04375).

    Reasoning anchors' similarity falls with the distance; memory anchors stay near 1 at every distance.

    Args:
      values_N: what the vectors stand for, as anchors for their shifts; numbers known before tracing.

    Returns:
      `distance` (M, NumPy: the distances that occur, ascending), `cosine` (M, means), `n_pairs` (M, NumPy), and
      `trend`: Spearman correlation of cosine with distance over all pairs, -1 where similarity only falls.

    Raises:
      ValueError: fewer than two vectors, or not one value for each.
    """
    values_N = np.asarray(values_N)
    n_vectors = vectors_NxD.shape[0]
    if values_N.shape != (n_vectors,) or n_vectors < 2:
        raise ValueError(f"values of shape {values_N.shape} for {n_vectors} vectors; one for each of at least two")
    first_P, second_P = np.triu_indices(n_vectors, 1)
    distance_M, which_P, n_pairs_M = np.unique(
        np.abs(values_N[first_P] - values_N[second_P]), return_inverse=True, return_counts=True
    )
    cosine_P = cosine_matrix(vectors_NxD)[first_P, second_P]
    total_M = jax.ops.segment_sum(cosine_P, jnp.asarray(which_P), num_segments=distance_M.size)
    return {
        "distance": distance_M,
        "cosine": total_M / n_pairs_M.astype(total_M.dtype),
        "n_pairs": n_pairs_M,
        "trend": spearman(cosine_P, jnp.asarray(which_P)),
    }


def linear_cka(x_NxD, y_NxE):
    """|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred X and Y (Kornblith et al. 2019), in [0, 1].

    The same N examples in both. Unchanged by rotations and isotropic scaling of either, not by other linear maps.
    Biased upwards: with N examples not far above the widths even independent representations come near 1; use
    `unbiased_linear_cka` there. O(N D E), no N x N matrix. 0 where either has no variance.
    """
    x_NxD, y_NxE = _centred_unit(x_NxD), _centred_unit(y_NxE)
    cross, x_self, y_self = (jnp.sum(jnp.square(a.T @ b)) for a, b in ((x_NxD, y_NxE), (x_NxD,) * 2, (y_NxE,) * 2))
    return _ratio(cross, x_self, y_self)


def unbiased_linear_cka(x_NxD, y_NxE):
    """`linear_cka` with the unbiased HSIC of Song et al. (2012), equation 5, in all three places, for small N.

    About 0 for independent representations whatever N and the widths, and below 0 as often as above. A quotient of
    unbiased numbers is not itself unbiased, but consistent. O(N D E), no N x N matrix.

    Raises:
      ValueError: fewer than four examples.
    """
    _check_examples(x_NxD.shape[0])
    # HSIC_1 does not change when either is centred (only kernel entries a_i + a_j are added), but rounds better.
    x_NxD, y_NxE = _centred_unit(x_NxD), _centred_unit(y_NxE)
    hsic = (_unbiased_hsic(a, b) for a, b in ((x_NxD, y_NxE), (x_NxD, x_NxD), (y_NxE, y_NxE)))
    return _ratio(*hsic)


def cka_matrix(representations: Sequence):
    """`linear_cka` of every two of S representations (N, D_s) of the same N examples: S x S.

    As the cosines of their centred Gram matrices: takes memory for S of N x N numbers.
    """
    return _gram_cosines(representations, lambda gram_NxN: gram_NxN)  # of centred vectors it is centred


def unbiased_cka_matrix(representations: Sequence):
    """`unbiased_linear_cka` of every two of S representations: S x S, with the memory of `cka_matrix`.

    Raises:
      ValueError: fewer than four examples.
    """
    _check_examples(len(representations[0]))

    def u_centred(gram_NxN):  # Szekely & Rizzo (2014): its inner products are N (N - 3) HSIC_1
        n = gram_NxN.shape[0]
        off_NxN = jnp.where(jnp.eye(n, dtype=bool), 0, gram_NxN)
        row_N = jnp.sum(off_NxN, axis=1) / (n - 2)
        shift = jnp.sum(row_N) / (n - 1)
        return jnp.where(jnp.eye(n, dtype=bool), 0, off_NxN - row_N[:, None] - row_N[None] + shift)

    return _gram_cosines(representations, u_centred)


def _gram_cosines(representations, centre):
    centred = [_centred_unit(x_NxD) for x_NxD in representations]
    return cosine_matrix(jnp.stack([jnp.ravel(centre(x_NxD @ x_NxD.T)) for x_NxD in centred]))


def _unbiased_hsic(x_NxD, y_NxE):
    """N (N - 3) HSIC_1 of the linear kernels with their diagonals k_ii and l_ii left out."""
    n = x_NxD.shape[0]
    k_N, l_N = jnp.sum(jnp.square(x_NxD), axis=1), jnp.sum(jnp.square(y_NxE), axis=1)
    k_row_N = x_NxD @ jnp.sum(x_NxD, axis=0) - k_N
    l_row_N = y_NxE @ jnp.sum(y_NxE, axis=0) - l_N
    trace = jnp.sum(jnp.square(x_NxD.T @ y_NxE)) - jnp.sum(k_N * l_N)
    sums = jnp.sum(k_row_N) * jnp.sum(l_row_N) / ((n - 1) * (n - 2))
    return trace + sums - 2 * jnp.sum(k_row_N * l_row_N) / (n - 2)


def _ratio(cross, x_self, y_self):
    product = jnp.sqrt(x_self) * jnp.sqrt(y_self)
    return jnp.where(product == 0, 0, cross / jnp.where(product == 0, 1, product))


def _centred(x_NxD):
    return x_NxD - jnp.mean(x_NxD, axis=0, keepdims=True)


def _centred_unit(x_NxD):
    """Centred, of Frobenius norm 1: fourth powers are taken of it."""
    return unit(_centred(x_NxD))


def _check_examples(n: int):
    if n < 4:
        raise ValueError(f"unbiased CKA of {n} examples; it takes at least 4")


def _centred_ranks(a_N):
    sorted_N = jnp.sort(a_N)
    below_N = jnp.searchsorted(sorted_N, a_N, side="left")
    not_above_N = jnp.searchsorted(sorted_N, a_N, side="right")
    rank_N = (below_N + not_above_N - a_N.size).astype(float)  # twice the centred mean rank, a whole number
    return jnp.where(jnp.isnan(a_N), jnp.nan, rank_N)
