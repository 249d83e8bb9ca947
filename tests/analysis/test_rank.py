import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import normal

from lab import models
from lab.analysis import rank as module
from lab.analysis.rank import circuit_factors
from lab.analysis.weights import matrix_names, weight_matrices

EPS = 2.0**-23  # float32
stable_rank, effective_rank = jax.jit(module.stable_rank), jax.jit(module.effective_rank)
ranks, spectra = jax.jit(module.ranks), jax.jit(module.spectra)
soft_ranks, singular_values = jax.jit(module.soft_ranks), jax.jit(module.singular_values)
product_singular_values = jax.jit(module.product_singular_values)
circuit_spectra = jax.jit(module.circuit_spectra, static_argnums=1)


def soft_rank(name):
    return jax.jit(lambda matrix: module.soft_ranks(module.singular_values(matrix))[name])


effective_rank_squared, participation_ratio, nuclear_ratio = map(
    soft_rank, ("effective_squared", "participation", "nuclear")
)
RANKS = (stable_rank, effective_rank, effective_rank_squared, participation_ratio)
INVARIANTS = (*RANKS, nuclear_ratio)


def rounding(n_in, n_out):
    """Error bound of every soft rank of a well conditioned float32 matrix, K = min(n_in, n_out).

    LAPACK's s_i are within max(n_in, n_out) eps s_1 of the truth, so the relative ones within d = twice that.
    Then |d stable| <= 2 K d and |d exp H| <= exp(H) sum_i |log p_i + H| |dp_i| <= K * K * 3 d, where
    |dp_i| <= d, as |d s_i^2| <= 2 d is divided by a sum above 2, and |log p_i + H| <= 3 if p_i >= e^-3 / K.
    Participation is 1 / sum p_i^2 <= K: |d| <= K^2 sum 2 p_i |dp_i| <= 2 K^2 d. The nuclear ratio errs by less: K d.
    """
    return 3 * min(n_in, n_out) ** 2 * 2 * max(n_in, n_out) * EPS


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
        "conv": {"kernel": normal(5, 2, 4, 4)},
        "head": {"kernel": normal(6, 4, 3)},
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
        (participation_ratio, 6**2 / (16 + 1 + 1)),
        (nuclear_ratio, 4 / 6**0.5),
    ],
)
def test_rank_of_spectrum_2_1_1_is_the_closed_form(rank, expected):
    # diag: the SVD is exact up to rounding, then about ten operations.
    assert rank(jnp.diag(jnp.array([1.0, 2.0, 1.0]))) == pytest.approx(expected, rel=16 * EPS)


@pytest.mark.parametrize("rank", INVARIANTS)
def test_rank_does_not_change_under_scale_even_where_squares_underflow(rank):
    matrix = normal(1, 10, 7)
    # A power of two moves no mantissa, but LAPACK rescales tiny matrices by its own factor: two SVDs' errors.
    assert rank(matrix * np.float32(2.0**-90)) == pytest.approx(float(rank(matrix)), abs=2 * rounding(10, 7))


@pytest.mark.parametrize("rank", INVARIANTS)
def test_rank_of_the_transpose_is_the_rank(rank):
    matrix = normal(2, 10, 7)
    assert rank(matrix.T) == pytest.approx(float(rank(matrix)), abs=2 * rounding(10, 7))  # two SVDs


@pytest.mark.parametrize("rank", INVARIANTS)
def test_zero_matrix_has_rank_zero_and_nan_matrix_nan(rank):
    assert rank(jnp.zeros((4, 3))) == 0
    assert np.isnan(rank(jnp.full((4, 3), jnp.nan)))


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_ordered(seed):
    # exp H_inf <= exp H_1 on squares; the squares majorize the values; H <= log of the count.
    matrix = normal(seed, 8, 5) * np.array([4, 2, 1, 0.5, 0.1], np.float32)
    participation, squared, effective = (
        r(matrix) for r in (participation_ratio, effective_rank_squared, effective_rank)
    )
    assert 1 <= stable_rank(matrix) < participation < squared < effective < 5
    # exp H_2 <= exp H_1 on the values themselves
    assert 1 <= nuclear_ratio(matrix) ** 2 < effective


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


@pytest.mark.parametrize("rank", INVARIANTS)
def test_ranks_do_not_change_under_rotations_but_under_rescaled_columns(rank):
    matrix = normal(5, 10, 7)
    left, right = (np.linalg.qr(normal(seed, n, n))[0] for seed, n in ((6, 10), (7, 7)))
    # The rotations multiply in 17 eps more, relative to the SVD's 10 eps: three times its bound, and the plain one.
    assert rank(left @ matrix @ right) == pytest.approx(float(rank(matrix)), abs=4 * rounding(10, 7))
    assert abs(rank(matrix * np.logspace(0, 2, 7, dtype=np.float32)) - rank(matrix)) > 0.5


def test_gaussian_matrix_has_the_participation_and_nuclear_ratio_of_marchenko_and_pastur():
    n_in, n_out = 240, 160
    matrix = normal(8, n_in, n_out)
    # E tr(W^T W) = IO and E tr(W^T W)^2 = IO (I + O + 1); linear statistics fluctuate by O(1) of n, some 1%.
    assert participation_ratio(matrix) == pytest.approx(n_in * n_out / (n_in + n_out), rel=0.03)
    # Square: the quarter circle's E s = 8 / (3 pi) in units of sqrt(E s^2).
    assert nuclear_ratio(normal(9, 200, 200)) == pytest.approx(200**0.5 * 8 / (3 * np.pi), rel=0.01)


def test_ranks_cover_every_matrix_in_the_order_of_its_names():
    params = small_tree()
    names = matrix_names(params)
    assert names == ["block_0/attn/query/kernel", "conv/kernel", "embed/token/embedding", "head/kernel"]
    result, spectrum = ranks(params), spectra(params)
    for i, (name, matrix) in enumerate(weight_matrices(params).items()):
        assert name == names[i]
        s_K = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        p_K, q_K = s_K / s_K.sum(), s_K**2 / np.sum(s_K**2)
        expected = {
            "stable": 1 / q_K[0],
            "effective": np.exp(-np.sum(p_K * np.log(p_K))),
            "effective_squared": np.exp(-np.sum(q_K * np.log(q_K))),
            "participation": 1 / np.sum(q_K**2),
            "nuclear": np.linalg.norm(matrix, "nuc") / np.linalg.norm(matrix),
        }
        assert set(result) == set(expected)
        for measure, value in expected.items():
            assert result[measure][i] == pytest.approx(value, abs=rounding(*matrix.shape))
        # Weyl, as above; NaN after the last
        np.testing.assert_allclose(spectrum[i, : s_K.size], s_K, rtol=0, atol=max(matrix.shape) * EPS * s_K[0])
        assert np.isnan(spectrum[i, s_K.size :]).all() and spectrum.shape[1] == 4


def test_vmapped_rows_equal_lone_rows():
    rows = [jax.tree.map(lambda leaf, scale=scale: leaf + scale, small_tree()) for scale in (0.0, 0.5, 1.0)]
    rows = jax.tree.map(lambda leaf: leaf.astype(np.float32), rows)
    together = jax.jit(jax.vmap(module.ranks))(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
    for r, row in enumerate(rows):
        for name, alone in ranks(row).items():
            # Same SVD, whatever the batch; the sums after it have four terms.
            np.testing.assert_allclose(together[name][r], alone, rtol=8 * EPS)


@pytest.mark.parametrize(("n_in", "rank", "n_out"), [(20, 3, 12), (4, 9, 7), (6, 6, 6)])
def test_product_singular_values_are_those_of_the_dense_product(float64, n_in, rank, n_out):
    rng = np.random.default_rng(10)
    a, b = jnp.asarray(rng.standard_normal((n_in, rank))), jnp.asarray(rng.standard_normal((rank, n_out)))
    expected_K = np.linalg.svd(np.asarray(a) @ np.asarray(b), compute_uv=False)
    found_K = product_singular_values(a, b)
    assert found_K.shape == (min(n_in, rank, n_out),)
    # Both routes err by a few tens of eps |A| |B|, here below 100: 1e-12 is 50 such.
    np.testing.assert_allclose(found_K, expected_K[: found_K.size], rtol=0, atol=1e-12)
    np.testing.assert_allclose(expected_K[found_K.size :], 0, atol=1e-12)  # and nothing was left out


def test_products_of_low_rank_have_that_rank():
    shared = np.linalg.qr(normal(11, 12, 3))[0]
    a, b = normal(12, 30, 3) @ shared.T, shared @ np.diag([1.0, 1.0, 1e-6]).astype(np.float32) @ normal(13, 3, 20)
    found_K = product_singular_values(a, b)
    assert found_K.shape == (12,)
    # |A| |B| < 12 x 8 here and QR, product and SVD err by 30 eps of it each.
    np.testing.assert_array_less(found_K[2:], 3 * 30 * EPS * 100)
    assert found_K[1] > 1


def test_soft_ranks_of_a_product_are_those_of_the_dense_product(float64):
    rng = np.random.default_rng(14)
    a, b = jnp.asarray(rng.standard_normal((9, 3))), jnp.asarray(rng.standard_normal((3, 8)))
    found = soft_ranks(product_singular_values(a, b))
    by_matrix = {
        "stable": stable_rank,
        "effective": effective_rank,
        "effective_squared": effective_rank_squared,
        "participation": participation_ratio,
        "nuclear": nuclear_ratio,
    }
    assert set(found) == set(by_matrix)
    # The dense product has 5 more values, of some 1e-16 of the first: p log(1/p) of each adds below 1e-14.
    for name, rank in by_matrix.items():
        assert found[name] == pytest.approx(float(rank(a @ b)), abs=1e-12)


def transformer(n_layers):
    return models.Transformer(
        vocab_size=11, max_length=5, n_layers=n_layers, n_heads=2, d_model=8, d_head=3, d_ff=10, activation="relu",
        norm="none", use_bias=False, head_bias=False, final_norm=False, tied_head=False, readout="all",
    )  # fmt: skip


def test_circuits_are_what_the_model_computes():
    model, tokens_BxL = transformer(2), np.array([[1, 5, 2, 9, 3]], np.int32)
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0), tokens_BxL))
    draw = np.random.default_rng(20)
    params = jax.tree.map(lambda leaf: (draw.standard_normal(leaf.shape) / 8**0.5).astype(np.float32), shapes)
    _, acts = jax.jit(models.forward, static_argnums=0)(model, params, tokens_BxL)
    factors = jax.jit(circuit_factors, static_argnums=1)(params, 2)
    qk_NxHxDxD, ov_NxHxDxD = (np.matmul(*pair) for pair in (factors["qk"], factors["ov"]))
    causal_LxL = np.tril(np.ones((5, 5), bool))
    for i in range(2):
        x_LxD = np.asarray(acts[f"block_{i}/resid_pre"][0])
        score_HxLxL = x_LxD @ qk_NxHxDxD[i] @ x_LxD.T / 3**0.5
        # Sums of 8 x 3 x 8 products of numbers below 10, summed in another order.
        found_HxLxL = np.asarray(acts[f"block_{i}/attn/score"][0])
        np.testing.assert_allclose(found_HxLxL[:, causal_LxL], score_HxLxL[:, causal_LxL], rtol=0, atol=200 * 10 * EPS)
        written_HxLxD = acts[f"block_{i}/attn/pattern"][0] @ (x_LxD @ ov_NxHxDxD[i])
        found_LxD = acts[f"block_{i}/attn/out"][0]
        np.testing.assert_allclose(found_LxD, written_HxLxD.sum(axis=0), rtol=0, atol=200 * 10 * EPS)
    dense_NxHxK = np.linalg.svd(qk_NxHxDxD.astype(np.float64), compute_uv=False)[..., :3]
    spectra_of = circuit_spectra(params, 2)
    # |W_Q| |W_K| < 10, each of three steps errs by 8 eps of it; the dense product as well.
    np.testing.assert_allclose(spectra_of["qk"], dense_NxHxK, rtol=0, atol=4 * 8 * 10 * EPS)
    dense_NxHxK = np.linalg.svd(ov_NxHxDxD.astype(np.float64), compute_uv=False)[..., :3]
    np.testing.assert_allclose(spectra_of["ov"], dense_NxHxK, rtol=0, atol=4 * 8 * 10 * EPS)


def test_blocks_are_in_the_order_of_their_numbers():
    params = {f"block_{i}": {"attn": {n: {"kernel": np.full((2, 2), i + 1.0, np.float32)}
              for n in ("query", "key", "value", "out")}} for i in range(11)}  # fmt: skip
    params = jax.tree.map(jnp.asarray, params)  # jax sorts block_10 before block_2
    np.testing.assert_array_equal(circuit_factors(params, 1)["ov"][1][:, 0, 0, 0], np.arange(11) + 1.0)


def test_trees_without_blocks_and_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="no block_<i> among embed, scan"):
        circuit_factors({"embed": {}, "scan": {}}, 1)
    tree = {"block_0": {"attn": {"query": {"kernel": np.ones((4, 6))}}}}
    with pytest.raises(ValueError, match="n_heads=4 does not divide 6"):
        circuit_factors(tree, 4)
