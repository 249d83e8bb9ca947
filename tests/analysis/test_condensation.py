import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis import condensation as module
from lab.analysis.condensation import cosine_matrix, fraction_above

EPS = 2.0**-23  # float32
condensation, greedy_groups = jax.jit(module.condensation), jax.jit(module.greedy_groups)
SIZES = (5, 1, 3, 2)  # neurons in each group of `grouped_kernel`


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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
    together = jax.vmap(condensation, in_axes=(0, None))(kernels, 0.7)
    for row, kernel in enumerate(kernels):
        alone = condensation(kernel, 0.7)
        for name in ("order", "n_groups", "fraction_above"):
            np.testing.assert_array_equal(together[name][row], alone[name])
        # Batched products may sum D = 16 terms in another order.
        np.testing.assert_allclose(together["cosine"][row], alone["cosine"], rtol=0, atol=2 * 16 * EPS)
