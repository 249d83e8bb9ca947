"""Condensation: neurons whose weights point the same way (arXiv 2405.05409).

A neuron's input weights are a column of its Flax kernel, its output weights a row of the next kernel; functions here
take one neuron a row, so they are given `kernel_DxN.T` or `next_NxO`. Attention is split into heads first
(`split_heads`, `split_output_heads`) and the rest is mapped over the heads by `vmap`.

Counting neurons weighs a dead one, of tiny norm and random direction, like one that the output depends on. Functions
with a `mass_N` weigh neurons instead: `norm_mass`, and ones where every neuron counts the same.

Everything here is exact up to rounding and has no error bar.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from scipy.cluster import hierarchy

from lab.analysis.scale import by_peak, unit_rows


def cosine_matrix(vectors_NxD):
    """S_ij = <w_i, w_j> / (|w_i| |w_j|). A zero vector is at cosine 0 with every vector, itself included."""
    unit_NxD = unit_rows(vectors_NxD)
    return unit_NxD @ unit_NxD.T


def split_heads(kernel_DxE, n_heads: int):
    """Query, key or value kernel of `lab.models`, E = H K, by head: (H, D, K). Neurons are columns, as before.

    Raises:
      ValueError: the columns are no multiple of `n_heads`.
    """
    d_model, width = kernel_DxE.shape
    _check_heads(width, n_heads)
    return jnp.moveaxis(kernel_DxE.reshape(d_model, n_heads, width // n_heads), 1, 0)


def split_output_heads(kernel_ExD, n_heads: int):
    """Attention's output kernel, E = H K, by head: (H, K, D). Row k of head h is what its value neuron k writes.

    Raises:
      ValueError: the rows are no multiple of `n_heads`.
    """
    width, d_model = kernel_ExD.shape
    _check_heads(width, n_heads)
    return kernel_ExD.reshape(n_heads, width // n_heads, d_model)


def norm_mass(vectors_NxD):
    """m_i = |w_i|^2 / sum_j |w_j|^2; zeros for a zero matrix."""
    scaled_NxD, _ = by_peak(vectors_NxD)  # only ratios matter
    return _share(jnp.sum(jnp.square(scaled_NxD), axis=1))


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


def cluster_groups(similarity_NxN, threshold):
    """Groups by hierarchical clustering: average linkage on 1 - similarity, cut where groups are `threshold` similar.

    Unlike `greedy_groups` it does not depend on which neuron comes first. Give it S, or |S| to have antiparallel
    neurons in one group. Runs on the host with SciPy, in O(N^2): not to be jitted or vmapped.

    Returns:
      group_N, order_N, n_groups as `greedy_groups`, in NumPy; `order_N` is the leaf order of the whole tree,
      so that neighbouring groups are similar as well, and groups are numbered along it.

    Raises:
      ValueError: a similarity is not finite, or N = 1.
    """
    similarity_NxN = np.asarray(similarity_NxN, np.float64)
    # Rounding may leave a cosine above 1; SciPy's linkage wants the upper triangle, row by row.
    distance_P = np.maximum(1 - similarity_NxN[np.triu_indices(len(similarity_NxN), 1)], 0)
    tree = hierarchy.linkage(distance_P, "average")
    order_N = hierarchy.leaves_list(tree)
    label_N = hierarchy.fcluster(tree, 1 - threshold, "distance")[order_N]
    starts_N = np.append(0, label_N[1:] != label_N[:-1])  # a group is a subtree, so its leaves are neighbours
    group_N = np.empty(len(order_N), np.int32)
    group_N[order_N] = np.cumsum(starts_N)
    return group_N, order_N, int(group_N.max()) + 1


def fraction_above(cosine_NxN, threshold):
    """Share of off-diagonal entries with |S| > threshold, in [0, 1]."""
    return jnp.mean(jnp.abs(cosine_NxN) > threshold, where=_off_diagonal(cosine_NxN))


def weighted_fraction_above(cosine_NxN, threshold, mass_N):
    """sum m_i m_j [|S_ij| > threshold] / sum m_i m_j over i != j; NaN where only one neuron has mass."""
    pair_NxN = jnp.where(_off_diagonal(cosine_NxN), mass_N[:, None] * mass_N[None], 0)
    return jnp.sum(pair_NxN, where=jnp.abs(cosine_NxN) > threshold) / jnp.sum(pair_NxN)


def mean_absolute_cosine(cosine_NxN):
    """Mean |S_ij| over i != j. Independent directions in D dimensions have about sqrt(2 / (pi D)), not 0."""
    return jnp.mean(jnp.abs(cosine_NxN), where=_off_diagonal(cosine_NxN))


def direction_entropy(group_N, mass_N):
    """H = -sum_g p_g ln p_g in nats, p_g = (sum of m_i over group g) / (sum of all m_i); 0 where all are 0.

    exp(H) is the number of equally heavy groups with that entropy.

    Args:
      group_N: labels in 0 .. N-1, from `greedy_groups` or `cluster_groups`.
    """
    group_mass_N = jax.ops.segment_sum(mass_N, group_N, num_segments=mass_N.shape[0])
    return jnp.sum(entr(_share(group_mass_N)))


def effective_directions(vectors_NxD, mass_N):
    """exp(H(p)), p_i = eigenvalues of sum_n m_n u_n u_n^T over their sum, u_n the unit vectors.

    With equal masses these are the eigenvalues of S / N: the Vendi score (Friedman & Dieng 2023) of the directions.
    With `norm_mass` it is the `effective_squared` rank (`rank.soft_ranks`) of the vectors themselves. Antiparallel
    vectors are one direction and zero vectors none, so it needs no threshold; it is at most min(N, D).
    """
    s_K = jnp.linalg.svd(jnp.sqrt(_share(mass_N))[:, None] * unit_rows(vectors_NxD), compute_uv=False)
    p_K = _share(jnp.square(s_K))
    return jnp.where(jnp.sum(p_K) == 0, 0, jnp.exp(jnp.sum(entr(p_K))))


def condensation(kernel_DxN, threshold):
    """Condensation of a Flax kernel: the input weights of neuron i are column i.

    Args:
      threshold: cosine above which neurons go together: 0.7 in arXiv 2405.05409, 0.4 in 2501.08537.

    Returns:
      `cosine` (NxN, raw order), `order` (N, int32), `n_groups`, `fraction_above`; NaN, all but `order`, where a weight
      is not finite.
    """
    cosine_NxN = cosine_matrix(kernel_DxN.T)
    _, order_N, n_groups = greedy_groups(cosine_NxN, threshold)
    numbers = {"cosine": cosine_NxN, "n_groups": n_groups, "fraction_above": fraction_above(cosine_NxN, threshold)}
    return {"order": order_N} | _nan_unless_finite(numbers, kernel_DxN)


def condensation_numbers(vectors_NxD, threshold):
    """Every scalar of this module: neurons are rows, `kernel_DxN.T` or `next_NxO`.

    Returns:
      Counting neurons: `n_groups`, `fraction_above`, `mean_absolute_cosine`, `direction_entropy` (nats, greedy
      groups), `effective_directions`. Weighing them by squared norm: `weighted_fraction_above`,
      `weighted_direction_entropy`, `weighted_effective_directions`. All are NaN where a weight is not finite.
    """
    cosine_NxN = cosine_matrix(vectors_NxD)
    group_N, _, n_groups = greedy_groups(cosine_NxN, threshold)
    equal_N, mass_N = jnp.ones_like(vectors_NxD[:, 0]), norm_mass(vectors_NxD)
    numbers = {
        "n_groups": n_groups,
        "fraction_above": fraction_above(cosine_NxN, threshold),
        "mean_absolute_cosine": mean_absolute_cosine(cosine_NxN),
        "direction_entropy": direction_entropy(group_N, equal_N),
        "effective_directions": effective_directions(vectors_NxD, equal_N),
        "weighted_fraction_above": weighted_fraction_above(cosine_NxN, threshold, mass_N),
        "weighted_direction_entropy": direction_entropy(group_N, mass_N),
        "weighted_effective_directions": effective_directions(vectors_NxD, mass_N),
    }
    return _nan_unless_finite(numbers, vectors_NxD)


def _nan_unless_finite(numbers, weights):
    """Comparisons with NaN are false: without this a matrix that is not known would have counts of its own."""
    known = jnp.all(jnp.isfinite(weights))
    return {name: jnp.where(known, value.astype(weights.dtype), jnp.nan) for name, value in numbers.items()}


def _off_diagonal(matrix_NxN):
    return ~jnp.eye(matrix_NxN.shape[0], dtype=bool)


def _share(mass_N):
    total = jnp.sum(mass_N)
    return mass_N / jnp.where(total == 0, 1, total)


def _check_heads(width: int, n_heads: int):
    if n_heads < 1 or width % n_heads:
        raise ValueError(f"n_heads={n_heads} does not divide {width}, the width of all heads; give the model's n_heads")
