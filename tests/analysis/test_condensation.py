import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.cluster import AgglomerativeClustering
from synthetic import normal

from lab.analysis import condensation as module
from lab.analysis import rank
from lab.analysis.condensation import cluster_groups, split_heads, split_output_heads

EPS = 2.0**-23  # float32
condensation, greedy_groups = jax.jit(module.condensation), jax.jit(module.greedy_groups)
cosine_matrix, mean_absolute_cosine = jax.jit(module.cosine_matrix), jax.jit(module.mean_absolute_cosine)
fraction_above = jax.jit(module.fraction_above)
weighted_fraction_above = jax.jit(module.weighted_fraction_above)
norm_mass = jax.jit(module.norm_mass)
direction_entropy, effective_directions = jax.jit(module.direction_entropy), jax.jit(module.effective_directions)
condensation_numbers = jax.jit(module.condensation_numbers)
effective_rank_squared = jax.jit(lambda matrix: rank.soft_ranks(rank.singular_values(matrix))["effective_squared"])
SIZES = (5, 1, 3, 2)  # neurons in each group of `grouped_kernel`


def grouped_kernel(seed):
    """Columns: shuffled positive multiples of orthogonal directions. Also the direction of each column."""
    rng = np.random.default_rng(seed)
    direction_DxG = np.linalg.qr(rng.standard_normal((16, len(SIZES))))[0]
    group_N = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    kernel_DxN = direction_DxG[:, group_N] * rng.uniform(0.1, 10, group_N.size)
    return kernel_DxN.astype(np.float32), group_N


def greedy_by_hand(cosine_NxN, threshold):
    """The paper's recipe with Python lists."""
    free, groups = list(range(len(cosine_NxN))), []
    while free:
        founder = free[0]
        groups.append([j for j in free if j == founder or cosine_NxN[founder, j] > threshold])
        free = [j for j in free if j not in groups[-1]]
    return groups


def test_cosine_matrix_is_the_float64_formula():
    vectors_NxD = normal(0, 7, 30)
    w = vectors_NxD.astype(np.float64)
    expected_NxN = (w @ w.T) / np.outer(np.linalg.norm(w, axis=1), np.linalg.norm(w, axis=1))
    # Sums of D = 30 products lose at most D eps, in the dot product and half that in each of two norms.
    np.testing.assert_allclose(cosine_matrix(vectors_NxD), expected_NxN, rtol=0, atol=2 * 30 * EPS)


def test_cosine_of_weights_too_small_to_square_is_that_of_the_weights_rescaled():
    vectors_NxD = normal(1, 6, 10)
    scale_Nx1 = np.float32(2.0) ** -np.array([[0], [30], [60], [80], [100], [110]], np.float32)
    # Powers of two move no mantissa: bitwise equal.
    np.testing.assert_array_equal(cosine_matrix(vectors_NxD * scale_Nx1), cosine_matrix(vectors_NxD))


def test_zero_neuron_is_at_cosine_zero_and_in_a_group_of_its_own():
    kernel_DxN = np.ones((4, 1), np.float32) * np.array([[1, 1, 0, 1]], np.float32)
    result = condensation(kernel_DxN, 0.7)
    np.testing.assert_array_equal(result["cosine"][2], np.zeros(4))
    assert result["n_groups"] == 2
    np.testing.assert_array_equal(result["order"], [0, 1, 3, 2])
    assert result["fraction_above"] == pytest.approx(6 / 12, rel=EPS)  # 3 x 2 of 4 x 3 entries; one division


def test_nan_weights_give_nan_cosines():
    cosine_NxN = cosine_matrix(normal(2, 3, 4) * np.array([[1], [np.nan], [1]], np.float32))
    np.testing.assert_array_equal(np.isnan(cosine_NxN), [[0, 1, 0], [1, 1, 1], [0, 1, 0]])


@pytest.mark.parametrize("seed", range(3))
def test_orthogonal_blocks_are_the_groups(seed):
    kernel_DxN, group_N = grouped_kernel(seed)
    result = condensation(kernel_DxN, 0.7)
    assert result["n_groups"] == len(SIZES)
    sorted_N = group_N[result["order"]]
    assert np.count_nonzero(np.diff(sorted_N)) == len(SIZES) - 1  # each block is contiguous after reordering
    expected = sum(n * (n - 1) for n in SIZES) / (group_N.size * (group_N.size - 1))
    assert result["fraction_above"] == pytest.approx(expected, rel=EPS)  # exact counts, one division


def test_antiparallel_neurons_condense_but_do_not_share_a_group():
    direction_D = normal(3, 8)
    result = condensation(np.stack([direction_D, -direction_D, 2 * direction_D], axis=1), 0.7)
    assert result["n_groups"] == 2
    assert result["fraction_above"] == 1
    np.testing.assert_array_equal(result["order"], [0, 2, 1])


def test_neurons_are_columns_of_the_kernel():
    kernel_DxN = np.outer(normal(4, 9), np.ones(5, np.float32))  # equal columns, rows of either sign
    assert condensation(kernel_DxN, 0.7)["n_groups"] == 1
    assert condensation(kernel_DxN.T, 0.7)["n_groups"] == 2


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.2, 0.4, 0.7, 1.0])
def test_greedy_groups_follow_the_recipe(threshold):
    cosine_NxN = np.array(cosine_matrix(normal(5, 40, 6)))
    groups = greedy_by_hand(cosine_NxN, np.float32(threshold))
    group_N, order_N, n_groups = greedy_groups(cosine_NxN, threshold)
    assert n_groups == len(groups)
    for label, members in enumerate(groups):
        np.testing.assert_array_equal(np.flatnonzero(group_N == label), members)
    np.testing.assert_array_equal(order_N, np.concatenate(groups))


def test_grouping_is_by_the_founder_and_not_transitive():
    angle_N = np.deg2rad([0, 40, 80])
    _, order_N, n_groups = greedy_groups(jnp.asarray(np.cos(angle_N[:, None] - angle_N), jnp.float32), 0.7)
    assert n_groups == 2  # cos 40 = 0.77 joins 0 and 40; 80 is within 40 of the second only
    np.testing.assert_array_equal(order_N, [0, 1, 2])


def test_fraction_above_ignores_the_diagonal():
    assert fraction_above(jnp.eye(6), 0.5) == 0


def test_vmapped_rows_equal_lone_rows():
    kernels = np.stack([grouped_kernel(seed)[0] for seed in range(4)])
    together = jax.jit(jax.vmap(module.condensation, in_axes=(0, None)))(kernels, 0.7)
    for row, kernel in enumerate(kernels):
        alone = condensation(kernel, 0.7)
        for name in ("order", "n_groups", "fraction_above"):
            np.testing.assert_array_equal(together[name][row], alone[name])
        # Batched products may sum D = 16 terms in another order.
        np.testing.assert_allclose(together["cosine"][row], alone["cosine"], rtol=0, atol=2 * 16 * EPS)


def test_cosines_do_not_change_under_rescaled_neurons_or_rotated_inputs():
    kernel_DxN = normal(6, 12, 9)
    rotation_DxD = np.linalg.qr(normal(7, 12, 12))[0]
    scale_N = np.random.default_rng(8).uniform(1e-3, 1e3, 9).astype(np.float32)
    before, after = cosine_matrix(kernel_DxN.T), cosine_matrix((rotation_DxD @ kernel_DxN * scale_N).T)
    # The rotation is orthogonal to, and multiplied in, D eps each; then two cosine matrices' 2 D eps.
    np.testing.assert_allclose(after, before, rtol=0, atol=6 * 12 * EPS)
    # ... but they do under a stretch of the inputs.
    stretch_D = np.logspace(0, 2, 12).astype(np.float32)
    assert np.abs(cosine_matrix((stretch_D[:, None] * kernel_DxN).T) - before).max() > 0.1


def test_heads_are_those_the_attention_layer_makes():
    kernel_DxE, out_ExD, h_D = normal(9, 6, 12), normal(10, 12, 6), normal(11, 6)
    value_HxK = (h_D @ kernel_DxE).reshape(3, 4)  # as `lab.models.transformer` splits its projections
    # Equal products summed in another order: D = 6 terms of some 1, 4 standard deviations.
    by_head_HxK = np.einsum("d,hdk->hk", h_D, split_heads(kernel_DxE, 3))
    np.testing.assert_allclose(by_head_HxK, value_HxK, rtol=0, atol=6 * 16 * EPS)
    written_D = np.einsum("hk,hkd->d", value_HxK, split_output_heads(out_ExD, 3))
    np.testing.assert_allclose(written_D, value_HxK.reshape(12) @ out_ExD, rtol=0, atol=12 * 40 * EPS)


@pytest.mark.parametrize("n_heads", [0, 5])
def test_heads_that_do_not_divide_the_width_are_refused(n_heads):
    with pytest.raises(ValueError, match=f"n_heads={n_heads} does not divide 12"):
        split_heads(np.ones((4, 12)), n_heads)
    with pytest.raises(ValueError, match=f"n_heads={n_heads} does not divide 12"):
        split_output_heads(np.ones((12, 4)), n_heads)


def test_norm_mass_is_the_float64_formula_even_where_squares_underflow():
    kernel_DxN = normal(12, 5, 7)
    square_N = np.sum(kernel_DxN.astype(np.float64) ** 2, axis=0)
    tiny = np.float32(2.0**-90)
    # A sum of 5 terms, a root and two quotients round less than 20 times.
    np.testing.assert_allclose(norm_mass(kernel_DxN.T * tiny), square_N / square_N.sum(), rtol=20 * EPS)
    np.testing.assert_array_equal(norm_mass(np.zeros((3, 2), np.float32)), np.zeros(3))


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.7])
def test_clusters_are_those_of_sklearns_average_linkage(threshold):
    similarity_NxN = np.array(cosine_matrix(normal(16, 40, 4)))
    sklearns = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - threshold
    ).fit_predict(1 - similarity_NxN)
    group_N, order_N, n_groups = cluster_groups(similarity_NxN, threshold)
    assert n_groups == len(set(sklearns)) > 1
    np.testing.assert_array_equal(group_N[:, None] == group_N, sklearns[:, None] == sklearns)
    # Groups are numbered along the order, which therefore makes them contiguous.
    np.testing.assert_array_equal(np.sort(order_N), np.arange(40))
    assert set(np.diff(group_N[order_N])) <= {0, 1}


def test_clusters_do_not_depend_on_the_order_of_neurons():
    similarity_NxN = np.array(cosine_matrix(normal(17, 30, 4)))
    permutation_N = np.random.default_rng(18).permutation(30)
    group_N, _, _ = cluster_groups(similarity_NxN, 0.5)
    permuted_N, _, _ = cluster_groups(similarity_NxN[np.ix_(permutation_N, permutation_N)], 0.5)
    moved_N = group_N[permutation_N]
    np.testing.assert_array_equal(permuted_N[:, None] == permuted_N, moved_N[:, None] == moved_N)


def test_antiparallel_neurons_share_a_cluster_under_absolute_cosine():
    kernel_DxN, group_N = grouped_kernel(4)
    similarity_NxN = np.array(cosine_matrix(kernel_DxN.T * np.where(np.arange(group_N.size) % 2, 1, -1)[:, None]))
    clusters_N, _, _ = cluster_groups(np.abs(similarity_NxN), 0.7)
    np.testing.assert_array_equal(clusters_N[:, None] == clusters_N, group_N[:, None] == group_N)
    assert cluster_groups(similarity_NxN, 0.7)[2] > len(SIZES)


def test_clusters_of_nan_are_refused():
    with pytest.raises(ValueError, match="finite"):
        cluster_groups(np.full((3, 3), np.nan), 0.7)


def test_mean_absolute_cosine_of_gaussian_vectors_is_that_of_random_directions():
    n, d = 60, 400
    # sqrt(2 / (pi D)) to O(1/D). Pairs are uncorrelated, so the mean errs by 0.6 / sqrt(D n^2 / 2) = 0.0007,
    # |normal| having standard deviation 0.6: 5 of them.
    value = mean_absolute_cosine(cosine_matrix(normal(22, n, d)))
    assert value == pytest.approx(np.sqrt(2 / (np.pi * d)), abs=5 * 0.6 / np.sqrt(d * n**2 / 2))


def test_weighted_fraction_is_the_double_sum_and_the_fraction_for_equal_mass():
    cosine_NxN, mass_N = np.array(cosine_matrix(normal(23, 12, 3))), np.abs(normal(24, 12))
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    total = sum(float(mass_N[i]) * mass_N[j] for i, j in pairs)
    above = sum(float(mass_N[i]) * mass_N[j] for i, j in pairs if abs(cosine_NxN[i, j]) > 0.6)
    # Positive terms: 2 x 132 roundings at most.
    assert weighted_fraction_above(cosine_NxN, 0.6, mass_N) == pytest.approx(above / total, rel=264 * EPS)
    equal = weighted_fraction_above(cosine_NxN, 0.6, np.ones(12, np.float32))
    assert equal == pytest.approx(float(fraction_above(cosine_NxN, 0.6)), rel=4 * EPS)  # whole numbers, two quotients


def test_dead_neurons_count_but_weigh_nothing():
    kernel_DxN, _ = grouped_kernel(5)
    dead_DxM = 1e-9 * normal(25, 16, 30)
    alive, both = (condensation_numbers(k.T, 0.7) for k in (kernel_DxN, np.hstack([kernel_DxN, dead_DxM])))
    # 1e-18 of the norm is nothing in float32; sums of 11 or 41 terms, and the SVD's 41 eps, squared, 11 of them.
    for name in ("fraction_above", "direction_entropy", "effective_directions"):
        weighted = f"weighted_{name}"
        assert both[weighted] == pytest.approx(float(alive[weighted]), abs=2 * 41 * 11 * EPS)
        assert abs(both[name] - alive[name]) > 0.1
    assert both["n_groups"] > alive["n_groups"] + 10


def test_direction_entropy_is_scipys_over_the_groups():
    group_N, mass_N = np.array([0, 1, 0, 2, 1, 0], np.int32), np.abs(normal(26, 6))
    shares = [mass_N[group_N == g].sum() for g in range(3)]
    # p log p errs by 3 eps for each of three groups, after sums of six.
    assert direction_entropy(group_N, mass_N) == pytest.approx(entropy(shares), abs=18 * EPS)
    assert direction_entropy(group_N, np.zeros(6, np.float32)) == 0


def test_effective_directions_of_orthogonal_groups_is_the_exponential_of_their_entropy():
    kernel_DxN, _ = grouped_kernel(6)
    shares = np.array(SIZES) / sum(SIZES)
    found = condensation_numbers(kernel_DxN.T, 0.7)
    # The SVD errs by 16 eps of s_1, squares by twice that; exp(H) < 4 of 11 values of p log p with slope below 3, and
    # those that should vanish have p < (16 eps)^2 and add nothing.
    assert found["effective_directions"] == pytest.approx(np.exp(entropy(shares)), abs=4 * 11 * 3 * 32 * EPS)
    assert found["direction_entropy"] == pytest.approx(entropy(shares), abs=18 * EPS)  # as above


def test_effective_directions_are_eigenvalues_of_the_cosine_matrix(float64):
    vectors_NxD = np.random.default_rng(27).standard_normal((9, 5))
    eigenvalues_N = np.maximum(np.linalg.eigvalsh(np.corrcoef(np.hstack([vectors_NxD, -vectors_NxD]))), 0)
    # np.corrcoef of (w, -w), whose mean is 0, is the matrix of cosines. Errors of float64, N^2 eps and to spare.
    found = effective_directions(jnp.asarray(vectors_NxD), jnp.ones(9))
    assert found == pytest.approx(np.exp(entropy(eigenvalues_N)), abs=1e-12)


def test_norm_weighted_directions_are_the_effective_rank_of_the_weights():
    vectors_NxD = normal(28, 9, 6) * np.logspace(-2, 1, 9, dtype=np.float32)[:, None]
    found = effective_directions(vectors_NxD, norm_mass(vectors_NxD))
    # Two SVDs of 9 x 6, as bounded above: exp(H) < 6, six values, 2 x 9 eps.
    assert found == pytest.approx(float(effective_rank_squared(vectors_NxD)), abs=2 * 6 * 6 * 3 * 18 * EPS)


def test_flipped_neurons_are_the_same_direction_and_no_neurons_have_none():
    vectors_NxD = normal(29, 7, 4)
    flip_Nx1 = np.array([[1], [-1], [1], [-1], [-1], [1], [1]], np.float32)
    one_N = np.ones(7, np.float32)
    found, flipped = effective_directions(vectors_NxD, one_N), effective_directions(flip_Nx1 * vectors_NxD, one_N)
    assert flipped == pytest.approx(float(found), abs=2 * 4 * 4 * 3 * 14 * EPS)  # two SVDs, as above
    assert effective_directions(np.zeros((3, 2), np.float32), np.ones(3, np.float32)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_of_weights_that_are_not_finite_every_number_is_nan(bad):
    kernel = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    kernel[1, 2] = bad
    found = module.condensation(jnp.array(kernel), 0.7)
    for name, value in (found | module.condensation_numbers(jnp.array(kernel.T), 0.7)).items():
        assert name == "order" or np.isnan(value).all(), name
