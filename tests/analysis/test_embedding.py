import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from synthetic import normal

from lab.analysis import embedding as module

EPS = 2.0**-23  # float32
embedding = jax.jit(module.embedding, static_argnums=2)
value_order = jax.jit(module.value_order)
pca = jax.jit(module.pca, static_argnums=1)


def spread_vectors(seed, n=12, d=6):
    """Vectors away from the origin, of variances so far apart that every component is well conditioned."""
    return (normal(seed, n, d) * 2.0 ** -np.arange(d) + 3).astype(np.float32)


def test_pca_is_sklearns_with_its_signs():
    vectors_NxD = spread_vectors(0)
    reference = PCA(3, svd_solver="full").fit(vectors_NxD.astype(np.float64))
    coordinates_NxC, explained_C = pca(vectors_NxD, 3)
    # Centring errs by 2 eps |mean| = 6 eps an entry, so by 6 eps sqrt(N D) = 51 eps in norm, and the SVD by
    # N s_1 eps = 60 eps. A coordinate errs by (1 + s_i / gap_i) times that; values halve, so s_i < 3 gap_i.
    expected_NxC = reference.transform(vectors_NxD.astype(np.float64))
    np.testing.assert_allclose(coordinates_NxC, expected_NxC, rtol=0, atol=4 * 111 * EPS)
    # d(s_i^2 / sum s^2) <= 4 |ds| / s_1 with s_1 > 3.
    expected_C = reference.explained_variance_ratio_
    np.testing.assert_allclose(explained_C, expected_C, rtol=0, atol=4 / 3 * 111 * EPS)


def test_points_on_a_line_have_one_component_with_their_distances_along_it():
    position_N = np.array([-3.0, -1.0, 0.0, 4.0], np.float32)  # mean 0
    direction_D = np.array([0.6, -0.8, 0.0], np.float32)
    coordinates_NxC, explained_C = pca(np.outer(position_N, direction_D), 2)
    # The largest loading, -0.8, is made positive. Backward error max(N, D) eps s_1, s_1 = sqrt(26) = 5.1.
    np.testing.assert_allclose(coordinates_NxC[:, 0], -position_N, rtol=0, atol=4 * 5.1 * EPS)
    np.testing.assert_allclose(explained_C, [1, 0], rtol=0, atol=4 * EPS)


def test_all_components_keep_all_distances_and_all_variance():
    vectors_NxD = spread_vectors(1)
    coordinates_NxC, explained_C = pca(vectors_NxD, 6)

    def distances(points_NxC):
        return np.linalg.norm(points_NxC[:, None] - points_NxC[None], axis=2)

    # Each end of a distance carries the SVD's N s_1 eps = 60 eps; an error of the mean is shared and cancels.
    np.testing.assert_allclose(distances(np.asarray(coordinates_NxC)), distances(vectors_NxD), rtol=0, atol=120 * EPS)
    assert np.sum(explained_C) == pytest.approx(1, abs=6 * EPS)  # six roundings


def test_equal_vectors_explain_nothing():
    coordinates_NxC, explained_C = pca(jnp.full((5, 4), 0.25), 2)
    np.testing.assert_array_equal(coordinates_NxC, np.zeros((5, 2)))
    np.testing.assert_array_equal(explained_C, np.zeros(2))


@pytest.mark.parametrize("direction", [1, -1])
def test_value_order_is_one_when_any_component_sorts_the_tokens(direction):
    value_N = np.arange(20, 40)
    sorted_N = direction * value_N.astype(np.float32) ** 3
    coordinates_NxC = np.stack([normal(3, 20), sorted_N, normal(4, 20)], axis=1)
    assert value_order(coordinates_NxC, value_N) == pytest.approx(1, abs=2 * EPS)


def test_value_order_is_the_largest_scipy_correlation():
    coordinates_NxC, value_N = normal(5, 15, 4), np.arange(15)
    expected = max(abs(spearmanr(coordinates_NxC[:, c], value_N).statistic) for c in range(4))
    assert value_order(coordinates_NxC, value_N) == pytest.approx(expected, abs=4 * EPS)


def test_embedding_reads_the_tokens_asked_for_only():
    table_VxD = normal(6, 50, 8)
    # Tokens 20..39 lie on a line in order of value, plus noise too small to swap neighbours.
    line_N = np.arange(20, dtype=np.float32)
    table_VxD[20:40] = np.outer(line_N, normal(7, 8)) + 1e-3 * table_VxD[20:40]
    result = embedding(table_VxD, np.arange(20, 40), 2)
    assert result["components"].shape == (20, 2) and result["explained"].shape == (2,)
    assert result["order"] == pytest.approx(1, abs=2 * EPS)
    # The noise has 1e-6 of the variance of a step, and the line (20^2 - 1) / 12 = 33 times that of a step.
    assert result["explained"][0] > 1 - 1e-6
    # Tokens in no order: a correlation has standard deviation 1/sqrt(19) = 0.23.
    assert embedding(table_VxD, np.arange(0, 20), 2)["order"] < 0.9


def test_vmapped_rows_equal_lone_rows():
    tables_RxVxD = np.stack([spread_vectors(seed, n=20) for seed in range(3)])
    tokens_N = np.arange(4, 16)
    together = jax.jit(jax.vmap(lambda table: module.embedding(table, tokens_N, 2)))(tables_RxVxD)
    for r, table_VxD in enumerate(tables_RxVxD):
        for name, alone in embedding(table_VxD, tokens_N, 2).items():
            # The mean may be summed in another order: the bound of the comparison with sklearn.
            np.testing.assert_allclose(together[name][r], alone, rtol=0, atol=4 * 111 * EPS)
