import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis.rank import (
    effective_rank,
    effective_rank_squared,
    matrix_names,
    ranks,
    singular_values,
    stable_rank,
)

EPS = 2.0**-23  # float32
RANKS = (stable_rank, effective_rank, effective_rank_squared)


def rounding(n_in, n_out):
    """Error bound of every soft rank of a well conditioned float32 matrix, K = min(n_in, n_out).

    LAPACK's s_i are within max(n_in, n_out) eps s_1 of the truth, so the relative ones within d = twice that.
    Then |d stable| <= 2 K d and |d exp H| <= exp(H) sum_i |log p_i + H| |dp_i| <= K * K * 3 d, where
    |dp_i| <= d, as |d s_i^2| <= 2 d is divided by a sum above 2, and |log p_i + H| <= 3 if p_i >= e^-3 / K.
    """
    return 3 * min(n_in, n_out) ** 2 * 2 * max(n_in, n_out) * EPS


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_spectrum(seed, n_in, n_out, s_K):
    """A matrix with these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((n_in, len(s_K))))[0]
    v = np.linalg.qr(rng.standard_normal((n_out, len(s_K))))[0]
    return ((u * s_K) @ v.T).astype(np.float32)


def small_tree():
    return {
        "embed": {"token": {"embedding": normal(0, 9, 4)}},
        "block_0": {
            "attn": {"query": {"kernel": normal(1, 4, 6), "bias": normal(2, 6)}},
            "attn_norm": {"scale": normal(3, 4), "bias": normal(4, 4)},
        },
        "scan": {"kernel": normal(5, 2, 4, 4)},  # not a matrix
        "head": {"kernel": normal(6, 4, 9)},
    }


@pytest.mark.parametrize("rank", RANKS)
def test_rank_of_r_equal_singular_values_is_r(rank):
    # The 4 values that should vanish come out as p < 12 eps / 5 and add 5 p log(1/p) <= 80 p each: 800 eps.
    # The five equal ones are off by 12 eps: their squares by 24 eps each, 120 eps in the sum.
    assert rank(with_spectrum(0, 12, 9, np.full(5, 0.3))) == pytest.approx(5, abs=920 * EPS)


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (stable_rank, (4 + 1 + 1) / 4),
        (effective_rank, 2**1.5),  # H(1/2, 1/4, 1/4) = 3/2 ln 2
        (effective_rank_squared, (2 / 3) ** (-2 / 3) * (1 / 6) ** (-1 / 3)),  # H(2/3, 1/6, 1/6)
    ],
)
def test_rank_of_spectrum_2_1_1_is_the_closed_form(rank, expected):
    # diag: the SVD is exact up to rounding, then about ten operations.
    assert rank(jnp.diag(jnp.array([1.0, 2.0, 1.0]))) == pytest.approx(expected, rel=16 * EPS)


@pytest.mark.parametrize("rank", RANKS)
def test_rank_does_not_change_under_scale_even_where_squares_underflow(rank):
    matrix = normal(1, 10, 7)
    # A power of two moves no mantissa, but LAPACK rescales tiny matrices by its own factor: two SVDs' errors.
    assert rank(matrix * np.float32(2.0**-90)) == pytest.approx(float(rank(matrix)), abs=2 * rounding(10, 7))


@pytest.mark.parametrize("rank", RANKS)
def test_rank_of_the_transpose_is_the_rank(rank):
    matrix = normal(2, 10, 7)
    assert rank(matrix.T) == pytest.approx(float(rank(matrix)), abs=2 * rounding(10, 7))  # two SVDs


@pytest.mark.parametrize("rank", RANKS)
def test_zero_matrix_has_rank_zero_and_nan_matrix_nan(rank):
    assert rank(jnp.zeros((4, 3))) == 0
    assert np.isnan(rank(jnp.full((4, 3), jnp.nan)))


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_ordered(seed):
    # exp H_inf <= exp H_1 on squares; the squares majorize the values; H <= log of the count.
    matrix = normal(seed, 8, 5) * np.array([4, 2, 1, 0.5, 0.1], np.float32)
    assert 1 <= stable_rank(matrix) < effective_rank_squared(matrix) < effective_rank(matrix) < 5


def test_singular_values_are_the_square_roots_of_gram_eigenvalues():
    matrix = normal(3, 12, 8)
    gram = matrix.astype(np.float64).T @ matrix.astype(np.float64)
    expected_K = np.sqrt(np.linalg.eigvalsh(gram))[::-1]
    # Weyl: |ds| <= |dW|_2, and LAPACK's backward error is below max(I, O) eps |W|_2.
    np.testing.assert_allclose(singular_values(matrix), expected_K, rtol=0, atol=12 * EPS * expected_K[0])


def test_square_gaussian_has_stable_rank_a_quarter_of_its_width():
    n = 256
    # |W|_F^2 = n^2 (1 +- sqrt(2)/n) and |W|_2^2 = 4 n + 2^(4/3) n^(1/3) TW, TW = -1.2 +- 1.3 (Tracy-Widom).
    # The ratio is n/4 times 1 + 0.02 +- 0.02; 0.1 is four standard deviations off.
    assert stable_rank(normal(4, n, n)) == pytest.approx(n / 4, rel=0.1)


def test_ranks_cover_every_matrix_in_the_order_of_its_names():
    params = small_tree()
    names = matrix_names(params)
    assert names == ["block_0/attn/query/kernel", "embed/token/embedding", "head/kernel"]
    result = jax.jit(ranks)(params)
    for i, name in enumerate(names):
        matrix = params
        for part in name.split("/"):
            matrix = matrix[part]
        s_K = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        p_K = s_K / s_K.sum()
        entropy = -np.sum(p_K * np.log(p_K))
        assert result["stable"][i] == pytest.approx(np.sum(s_K**2) / s_K[0] ** 2, abs=rounding(*matrix.shape))
        assert result["effective"][i] == pytest.approx(np.exp(entropy), abs=rounding(*matrix.shape))


def test_vmapped_rows_equal_lone_rows():
    rows = [jax.tree.map(lambda leaf, scale=scale: leaf + scale, small_tree()) for scale in (0.0, 0.5, 1.0)]
    rows = jax.tree.map(lambda leaf: leaf.astype(np.float32), rows)
    together = jax.vmap(ranks)(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
    for r, row in enumerate(rows):
        for name, alone in ranks(row).items():
            # Same SVD, whatever the batch; the sums after it have four terms.
            np.testing.assert_allclose(together[name][r], alone, rtol=8 * EPS)
