import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from lab.analysis import embedding as module
from lab.analysis.embedding import cosine_by_distance, tsne

EPS = 2.0**-23  # float32
embedding = jax.jit(module.embedding, static_argnums=2)
spearman, value_order = jax.jit(module.spearman), jax.jit(module.value_order)
pca = jax.jit(module.pca, static_argnums=1)
mean_pairwise_cosine = jax.jit(module.mean_pairwise_cosine)
linear_cka, unbiased_linear_cka = jax.jit(module.linear_cka), jax.jit(module.unbiased_linear_cka)
cka_matrix, unbiased_cka_matrix = jax.jit(module.cka_matrix), jax.jit(module.unbiased_cka_matrix)
CKAS = (linear_cka, unbiased_linear_cka)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


@pytest.mark.parametrize("levels", [3, 10, 10_000])  # many ties, some, none
def test_spearman_is_scipys(levels):
    rng = np.random.default_rng(levels)
    a_N, b_N = rng.integers(levels, size=(2, 50))
    expected = spearmanr(a_N, b_N).statistic
    # Sums over whole numbers below 2^24 are exact; product, root and quotient round once each.
    assert spearman(a_N, b_N.astype(np.float32)) == pytest.approx(expected, abs=4 * EPS)


def test_spearman_sees_order_only():
    a_N = normal(2, 30)
    assert spearman(a_N, np.exp(a_N)) == pytest.approx(1, abs=2 * EPS)  # a root and a quotient
    assert spearman(a_N, -(a_N**3)) == pytest.approx(-1, abs=2 * EPS)


def test_spearman_of_a_constant_is_zero_and_of_nan_is_nan():
    a_N = jnp.arange(5.0)
    assert spearman(a_N, jnp.ones(5)) == 0
    assert np.isnan(spearman(a_N, a_N.at[2].set(jnp.nan)))


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


@pytest.mark.parametrize(
    ("vectors_NxD", "expected"),
    [
        (np.outer([1.0, 2.0, 3.0, 0.1], [1.0, -2.0]), 1.0),  # parallel
        (np.eye(6), 0.0),  # orthogonal
        (np.eye(5) - 1 / 5, -1 / 4),  # a simplex: -1/(N-1)
        (np.array([[1.0, 0], [2.0, 0], [0, 0]]), 2 / 6),  # a zero vector among two parallel ones
    ],
)
def test_mean_pairwise_cosine_is_the_closed_form(vectors_NxD, expected):
    mean = mean_pairwise_cosine(jnp.asarray(vectors_NxD, jnp.float32))
    # |sum|^2 <= N^2 with some eight roundings, over N (N - 1) >= N^2 / 2 pairs.
    assert mean == pytest.approx(expected, abs=16 * EPS)


def test_mean_pairwise_cosine_is_the_mean_over_pairs():
    vectors_NxD = normal(8, 9, 5) + 1
    unit = [w / np.linalg.norm(w) for w in vectors_NxD.astype(np.float64)]
    pairs = [unit[i] @ unit[j] for i in range(9) for j in range(9) if i != j]
    # |sum|^2 <= 81 with some ten roundings, over 72 pairs.
    assert mean_pairwise_cosine(vectors_NxD) == pytest.approx(np.mean(pairs), abs=12 * EPS)


def test_vmapped_rows_equal_lone_rows():
    tables_RxVxD = np.stack([spread_vectors(seed, n=20) for seed in range(3)])
    tokens_N = np.arange(4, 16)
    together = jax.jit(jax.vmap(lambda table: module.embedding(table, tokens_N, 2)))(tables_RxVxD)
    for r, table_VxD in enumerate(tables_RxVxD):
        for name, alone in embedding(table_VxD, tokens_N, 2).items():
            # The mean may be summed in another order: the bound of the comparison with sklearn.
            np.testing.assert_allclose(together[name][r], alone, rtol=0, atol=4 * 111 * EPS)


def clusters(n_each):
    """Three clusters, 20 apart and 1 wide."""
    return np.repeat(20 * np.eye(3, 5), n_each, axis=0) + normal(10, 3 * n_each, 5)


def test_tsne_keeps_neighbours_and_repeats_itself_with_its_seed():
    vectors_NxD = clusters(8)
    with threadpool_limits(1):
        points_Nx2 = tsne(vectors_NxD, 3.0, 0)
        np.testing.assert_array_equal(tsne(vectors_NxD, 3.0, 0), points_Nx2)
        assert not np.array_equal(tsne(vectors_NxD, 5.0, 0), points_Nx2)  # the perplexity is used
    distance_NxN = np.linalg.norm(points_Nx2[:, None] - points_Nx2, axis=2)
    np.fill_diagonal(distance_NxN, np.inf)
    np.testing.assert_array_equal(np.argmin(distance_NxN, axis=1) // 8, np.arange(24) // 8)


def test_tsne_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"pip install gammalab\[tsne\]"):
        tsne(normal(11, 9, 3), 2.0, 0)


def test_tsne_refuses_a_perplexity_above_the_number_of_vectors():
    with pytest.raises(ValueError, match="perplexity"):
        tsne(normal(11, 9, 3), 9.0, 0)


def test_vectors_on_an_arc_have_the_cosine_of_their_distance():
    value_N = np.array([3, 0, 7, 1])
    angle_N = 0.2 * value_N
    length_Nx1 = np.array([[1.0], [0.1], [5], [2]])
    vectors_NxD = (length_Nx1 * np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)).astype(np.float32)
    found = jax.jit(lambda vectors: cosine_by_distance(vectors, value_N))(vectors_NxD)
    np.testing.assert_array_equal(found["distance"], [1, 2, 3, 4, 6, 7])
    np.testing.assert_array_equal(found["n_pairs"], [1, 1, 1, 1, 1, 1])
    # Rounding the vectors and a cosine in two dimensions: some six roundings.
    np.testing.assert_allclose(found["cosine"], np.cos(0.2 * np.asarray(found["distance"])), rtol=0, atol=8 * EPS)
    assert found["trend"] == pytest.approx(-1, abs=2 * EPS)


def test_cosine_by_distance_is_the_mean_over_pairs_and_scipys_trend():
    vectors_NxD, value_N = normal(12, 8, 5), np.array([4, 1, 2, 7, 7, 0, 3, 2])
    unit = [w / np.linalg.norm(w) for w in vectors_NxD.astype(np.float64)]
    pairs = [(abs(value_N[i] - value_N[j]), unit[i] @ unit[j]) for i in range(8) for j in range(i)]
    found = jax.jit(lambda vectors: cosine_by_distance(vectors, value_N))(vectors_NxD)
    assert list(found["distance"]) == sorted({distance for distance, _ in pairs})
    for distance, cosine, n_pairs in zip(found["distance"], found["cosine"], found["n_pairs"], strict=True):
        chosen = [c for d, c in pairs if d == distance]
        assert n_pairs == len(chosen)
        assert cosine == pytest.approx(np.mean(chosen), abs=2 * 5 * EPS + 4 * EPS)  # 2 D eps each, and the mean
    assert found["trend"] == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic, abs=4 * EPS)


@pytest.mark.parametrize("values", [[1, 2], [[1], [2], [3]]])
def test_distances_need_one_value_a_vector(values):
    with pytest.raises(ValueError, match="for 3 vectors; one for each"):
        cosine_by_distance(np.eye(3), values)


def hsic_by_traces(x_NxD, y_NxE):
    """tr(K H L H) of linear kernels, and Song et al.'s equation 5 times N (N - 3), as they are written."""
    k, y = x_NxD @ x_NxD.T, y_NxE @ y_NxE.T
    n = len(k)
    h, one = np.eye(n) - 1 / n, np.ones(n)
    biased = np.trace(k @ h @ y @ h)
    k, y = k - np.diag(np.diag(k)), y - np.diag(np.diag(y))
    cross = one @ k @ y @ one
    return biased, np.trace(k @ y) + (one @ k @ one) * (one @ y @ one) / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)


def test_cka_is_the_quotient_of_traces(float64):
    rng = np.random.default_rng(13)
    x_NxD = rng.standard_normal((7, 4)) + 2
    y_NxE = rng.standard_normal((7, 3)) + x_NxD[:, :3] - 5
    cross, x_self, y_self = (hsic_by_traces(*pair) for pair in ((x_NxD, y_NxE), (x_NxD, x_NxD), (y_NxE, y_NxE)))
    # A few hundred roundings of 2e-16, cancelling by factors below 10.
    for i, cka in enumerate(CKAS):
        expected = cross[i] / np.sqrt(x_self[i] * y_self[i])
        assert cka(jnp.asarray(x_NxD), jnp.asarray(y_NxE)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cka", CKAS)
def test_cka_does_not_change_under_rotation_scale_and_shift_but_under_other_linear_maps(cka):
    x_NxD, y_NxE = normal(14, 20, 6), normal(15, 20, 6)
    y_NxE = y_NxE + x_NxD
    rotation = np.linalg.qr(normal(16, 6, 6))[0]
    before = float(cka(x_NxD, y_NxE))
    # D eps for rotating and N eps for centring each of 6 x 6 products of unit norm, twice.
    tolerance = 2 * 36 * 26 * EPS
    assert cka(x_NxD @ rotation * 7 + 1, y_NxE) == pytest.approx(before, abs=tolerance)
    assert cka(x_NxD, -0.1 * y_NxE @ rotation - 2) == pytest.approx(before, abs=tolerance)
    assert cka(x_NxD, x_NxD @ rotation) == pytest.approx(1, abs=tolerance)
    # Powers of two move no mantissa; fourth powers of 2^-60 are no numbers.
    assert cka(x_NxD * np.float32(2.0**-60), y_NxE * np.float32(2.0**-60)) == before
    assert cka(x_NxD * np.logspace(0, 2, 6, dtype=np.float32), x_NxD) < 0.9


def test_unbiased_cka_of_independent_representations_is_zero_on_average_and_the_biased_is_not():
    x_SxNxD, y_SxNxE = normal(17, 200, 8, 30), normal(18, 200, 8, 30)
    unbiased_S = np.asarray(jax.jit(jax.vmap(module.unbiased_linear_cka))(x_SxNxD, y_SxNxE))
    error = unbiased_S.std(ddof=1) / np.sqrt(200)
    assert abs(unbiased_S.mean()) < 4 * error and error < 0.05
    # Eight points in 30 dimensions are nearly orthogonal, their kernels nearly H: CKA near 1 (30 / (30 + 8) = 0.8).
    assert np.asarray(jax.jit(jax.vmap(module.linear_cka))(x_SxNxD, y_SxNxE)).mean() > 0.7


def test_matrix_of_ckas_is_every_pair():
    # The pairs go by D x E products and the matrix by N x N kernels.
    representations = [normal(19, 9, 4) + 1, normal(20, 9, 7), normal(21, 9, 7)]
    representations[1][:, :4] += representations[0]
    for matrix, pair in ((cka_matrix, linear_cka), (unbiased_cka_matrix, unbiased_linear_cka)):
        found_SxS = np.asarray(matrix(representations))
        # Sums of N^2 = 81 products of unit norm, after kernels of 7 terms; the unbiased divide by a norm above 0.2.
        tolerance = 5 * (81 + 7) * EPS
        np.testing.assert_allclose(found_SxS, found_SxS.T, rtol=0, atol=tolerance)
        np.testing.assert_allclose(np.diag(found_SxS), 1, rtol=0, atol=tolerance)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert found_SxS[i, j] == pytest.approx(float(pair(representations[i], representations[j])), abs=tolerance)


@pytest.mark.parametrize("cka", CKAS)
def test_cka_of_a_constant_is_zero_and_of_nan_is_nan(cka):
    x_NxD = normal(23, 20, 6)
    assert cka(np.ones((20, 6), np.float32), x_NxD) == 0
    assert np.isnan(cka(x_NxD, np.where(x_NxD > 1, np.float32(np.nan), x_NxD)))


def test_unbiased_cka_of_three_examples_is_refused():
    with pytest.raises(ValueError, match="3 examples; it takes at least 4"):
        unbiased_linear_cka(normal(24, 3, 2), normal(25, 3, 2))
    with pytest.raises(ValueError, match="3 examples; it takes at least 4"):
        unbiased_cka_matrix([normal(24, 3, 2), normal(25, 3, 2)])
