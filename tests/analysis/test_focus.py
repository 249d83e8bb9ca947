import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis.focus import (
    clustered_mean,
    distance_to_uniform,
    embedding_direction,
    entropy,
    focus,
    lift,
    log_slope,
    sink_mass,
    token_attention,
    unigram,
)

EPS = 2.0**-23  # float32
ATTENTION = jax.jit(token_attention)


def causal_pattern(seed, *shape):
    """Random attention of shape (..., Q, L) whose queries are the last Q positions: rows sum to one."""
    n_queries, length = shape[-2:]
    weight = np.random.default_rng(seed).exponential(size=shape)
    weight *= np.arange(length) <= np.arange(length - n_queries, length)[:, None]
    return (weight / weight.sum(axis=-1, keepdims=True)).astype(np.float32)


def tokens(seed, batch, length, vocab):
    return np.random.default_rng(seed).integers(0, vocab, (batch, length), dtype=np.int32)


def loops(pattern, ids, i, k):
    """A_ik, its clustered standard error and the count of i, one attention edge after the other."""
    batch, n_queries, length = pattern.shape
    mass, count = np.zeros(batch), np.zeros(batch)
    for b in range(batch):
        for row in range(n_queries):
            if ids[b, length - n_queries + row] == i:
                count[b] += 1
                for j in range(length):
                    if ids[b, j] == k:
                        mass[b] += float(pattern[b, row, j])
    n = count.sum()
    if n == 0:
        return np.nan, np.nan, 0
    value = mass.sum() / n
    drawn = count > 0
    if drawn.sum() < 2:
        return value, np.nan, n
    residual = (mass - value * count)[drawn]
    return value, np.sqrt(drawn.sum() * np.var(residual, ddof=1)) / n, n  # residuals have mean zero


@pytest.mark.parametrize("n_queries", [7, 3, 1])
def test_token_attention_is_the_average_over_edges(n_queries):
    # Token 5 is never seen, and 4 in one sequence only.
    ids = tokens(0, 6, 7, 4)
    ids[2, 6] = 4
    pattern = causal_pattern(1, 6, n_queries, 7)
    query_tokens, key_tokens = np.array([5, 0, 4, 2]), np.array([3, 1, 4])
    result = ATTENTION(pattern, ids, query_tokens, key_tokens)
    expected = np.array([[loops(pattern, ids, i, k) for k in key_tokens] for i in query_tokens])
    # At most 6 * 7 numbers below 1 for each row of A are added up; the residuals' squares keep twice that.
    np.testing.assert_allclose(result.value, expected[..., 0], rtol=0, atol=42 * EPS)
    np.testing.assert_allclose(result.standard_error, expected[..., 1], rtol=0, atol=84 * EPS)
    np.testing.assert_array_equal(result.count, expected[:, 0, 2])
    assert np.isnan(result.value[0]).all() and np.isnan(result.standard_error[2]).all()


def test_token_attention_keeps_float64(float64):
    pattern, ids = causal_pattern(1, 6, 3, 7).astype(float), tokens(0, 6, 7, 4)
    result = ATTENTION(pattern, ids, np.arange(4), np.arange(4))
    expected = np.array([[loops(pattern, ids, i, k) for k in range(4)] for i in range(4)])
    np.testing.assert_allclose(result.value, expected[..., 0], rtol=0, atol=42 * 2.0**-52)
    np.testing.assert_allclose(result.standard_error, expected[..., 1], rtol=0, atol=84 * 2.0**-52)


def test_rows_of_token_attention_over_all_keys_sum_to_one():
    ids = tokens(2, 5, 6, 3)
    result = ATTENTION(causal_pattern(3, 5, 6, 6), ids, np.arange(3), np.arange(3))
    np.testing.assert_allclose(result.value.sum(axis=1), 1, atol=30 * EPS)  # 30 masses to a row at most


def test_uniform_attention_gives_the_token_frequencies_of_the_prefix():
    ids, length = tokens(4, 5, 6, 3), 6
    uniform = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    pattern = np.broadcast_to(uniform, (5, length, length)).astype(np.float32)
    result = ATTENTION(pattern, ids, np.arange(3), np.arange(3))
    for i in range(3):
        prefixes = [ids[b, : q + 1] for b in range(5) for q in range(length) if ids[b, q] == i]
        expected = np.mean([[np.mean(prefix == k) for k in range(3)] for prefix in prefixes], axis=0)
        np.testing.assert_allclose(result.value[i], expected, atol=30 * EPS)  # 30 masses at most


def test_standard_error_is_the_spread_over_fresh_batches():
    # Every query of a sequence shares its level, so its positions must not count as independent.
    rng = np.random.default_rng(5)

    def batch():
        level = rng.uniform(size=(64, 1, 1)) * np.ones((1, 4, 1))
        pattern = np.concatenate([level, np.zeros((64, 4, 2)), 1 - level], axis=2).astype(np.float32)
        ids = np.concatenate([np.zeros((64, 1)), np.ones((64, 3))], axis=1).astype(np.int32)
        return ATTENTION(pattern, ids, np.array([1]), np.array([0]))

    drawn = [batch() for _ in range(200)]
    spread = np.std([float(one.value[0, 0]) for one in drawn])
    # The spread of 200 draws is known to 1 / sqrt(400) = 5%; four of these. Independent positions would give 1/sqrt(3).
    assert np.mean([float(one.standard_error[0, 0]) for one in drawn]) == pytest.approx(spread, rel=0.2)


def test_clustered_mean_weighs_sequences_by_their_weight():
    sums, weights = np.float32([[1, 2], [0, 4], [0, 0]]), np.float32([[2], [1], [0]])
    (value, error), weight = clustered_mean(lambda pair: pair, (sums, weights))
    np.testing.assert_allclose(value, [1 / 3, 2], rtol=2 * EPS)
    assert weight == 3
    # Residuals 1 - 2/3, 0 - 1/3 and 2 - 4, 4 - 2; two sequences count, the third has no weight.
    np.testing.assert_allclose(error, np.sqrt(2 * np.array([2 / 9, 8])) / 3, rtol=8 * EPS)


def test_unigram_is_the_share_of_each_token():
    ids = np.array([[0, 3, 3], [1, 3, 0]], np.int32)
    np.testing.assert_allclose(unigram(ids, 5), np.array([2, 1, 0, 3, 0]) / 6, rtol=EPS)


def test_focus_leaves_out_tokens_never_seen():
    to_top, pi = jnp.array([0.9, jnp.nan, 0.3]), jnp.array([0.5, 0.3, 0.2])
    assert focus(to_top, pi) == pytest.approx((0.45 + 0.06) / 0.7, rel=4 * EPS)
    assert focus(to_top, jnp.ones(3)) == pytest.approx(0.6, rel=4 * EPS)


def test_attention_at_the_base_rate_has_lift_one():
    pi = jnp.array([0.75, 0.19, 0.05, 0.01])
    attention = jnp.stack([pi, jnp.array([1.0, 0, 0, 0]), jnp.full(4, 0.25)])
    expected = np.array([[1, 1, 1, 1], [4 / 3, 0, 0, 0], [1 / 3, 0.25 / 0.19, 5, 25]])
    np.testing.assert_allclose(lift(attention, pi), expected, rtol=2 * EPS)
    # H(pi) = 0.7271 as printed in the notes on the paper; H of one token is 0, of four alike log 4.
    np.testing.assert_allclose(entropy(attention), [0.7271, 0, np.log(4)], atol=0.5e-4 + 8 * EPS)
    assert np.isnan(lift(attention, jnp.array([1.0, 0, 0, 0]))[:, 1:]).all()
    assert entropy(jnp.full((2, 8), 0.125)).shape == (2,) and entropy(jnp.full(8, 0.125)) == pytest.approx(np.log(8))


@pytest.mark.parametrize("n_queries", [5, 2])
def test_distance_to_uniform_is_that_of_every_visible_edge(n_queries):
    pattern = causal_pattern(6, 3, 2, n_queries, 5)
    result = distance_to_uniform(pattern)
    for head in range(2):
        distances = [
            abs(float(pattern[b, head, row, j]) - 1 / (5 - n_queries + row + 1))
            for b in range(3)
            for row in range(n_queries)
            for j in range(5 - n_queries + row + 1)
        ]
        assert result["max"][head] == pytest.approx(max(distances), abs=2 * EPS)
        assert result["mean"][head] == pytest.approx(np.mean(distances), abs=45 * EPS)  # 45 edges at most


def test_sink_mass_leaves_the_first_query_out():
    pattern = causal_pattern(7, 4, 2, 5, 5)
    expected = pattern[:, :, 1:, 0].astype(float).mean(axis=2)
    result = jax.jit(sink_mass)(pattern)
    np.testing.assert_allclose(result.value, expected.mean(axis=0), atol=16 * EPS)  # 16 numbers below 1
    np.testing.assert_allclose(result.standard_error, expected.std(axis=0, ddof=1) / 2, atol=32 * EPS)
    np.testing.assert_allclose(
        sink_mass(pattern[:, :, 2:]).value, pattern[:, :, 2:, 0].mean(axis=(0, 2)), atol=16 * EPS
    )
    assert np.isnan(sink_mass(pattern[:, :, :1, :1]).value).all()


def test_embedding_on_the_base_rates_is_condensed_and_redistributes_nothing_else():
    pi = np.array([0.05, 0.75, 0.2], np.float32)
    direction = np.float32([0.6, -0.8, 0, 0])
    result = embedding_direction(3 * np.outer(pi, direction), pi, 1)
    # LAPACK's backward error, 4 eps s_1, and a few operations.
    assert result["alignment"] == pytest.approx(1, abs=16 * EPS)
    assert result["top_share"] == pytest.approx(1, abs=16 * EPS)
    assert result["second_ratio"] < 16 * EPS and result["off_direction"] < (16 * EPS) ** 2
    np.testing.assert_allclose(result["gamma"], 3 * pi, atol=3 * 16 * EPS)
    assert result["redistribution"] == pytest.approx(0, abs=3 * 32 * EPS)  # gamma ~ pi: 3 (pi_1 - pi_1 sum pi)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_embedding_direction_is_that_of_the_leading_eigenvector(shape):
    rng = np.random.default_rng(8)
    table = rng.standard_normal(shape)
    pi = rng.dirichlet(np.ones(shape[0]))
    v_1 = np.linalg.eigh(table.T @ table)[1][:, -1]
    gamma = table @ v_1 * np.sign((table @ v_1)[2])
    rest = table @ (np.eye(shape[1]) - np.outer(v_1, v_1))
    with jax.enable_x64(True):
        result = jax.jit(embedding_direction, static_argnums=2)(table, pi, 2)
    # float64; eigenvectors of a Gram matrix of condition below 1e3 carry 1e-16 times its relative gap's inverse.
    tolerance = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(result["gamma"], gamma, **tolerance)
    rho = (1 - pi[2]) * gamma[2] - pi[2] * sum(gamma[i] for i in range(shape[0]) if i != 2)
    np.testing.assert_allclose(result["redistribution"], rho, **tolerance)
    np.testing.assert_allclose(result["off_direction"], np.sum(rest**2) / np.sum(table**2), **tolerance)
    np.testing.assert_allclose(result["top_share"], np.sum(gamma**2) / np.sum(table**2), **tolerance)
    np.testing.assert_allclose(
        result["alignment"], abs(gamma @ pi) / np.linalg.norm(gamma) / np.linalg.norm(pi), **tolerance
    )
    assert result["second_ratio"] == pytest.approx(np.linalg.norm(rest, 2) / np.linalg.norm(gamma), abs=1e-12)
    assert result["singular_ratios"][0] == result["second_ratio"]


def test_zero_embedding_has_no_direction_and_is_not_nan():
    result = embedding_direction(jnp.zeros((3, 2)), jnp.array([0.5, 0.3, 0.2]), 0)
    assert all(np.all(np.asarray(value) == 0) for value in result.values())


def test_log_slope_and_its_error_are_those_of_least_squares():
    rng = np.random.default_rng(9)
    step = np.arange(100, 400, 20)
    value = 3e-3 * np.exp(0.02 * step + 0.1 * rng.standard_normal(step.size))
    (expected, _), covariance = np.polyfit(step, np.log(value), 1, cov=True)
    with jax.enable_x64(True):
        slope, error = jax.jit(log_slope)(step, value)
        # Two float64 least squares; polyfit's goes through a matrix of condition 10.
        np.testing.assert_allclose([slope, error], [expected, np.sqrt(covariance[0, 0])], rtol=1e-11)
        assert np.isnan(jax.jit(log_slope)(step, -value).value)
        assert np.isnan(jax.jit(log_slope)(step[:2], value[:2]).standard_error)


def test_vmapped_heads_equal_lone_heads():
    pattern, ids = causal_pattern(10, 5, 2, 6, 6), tokens(11, 5, 6, 3)
    probes = np.arange(3)
    together = jax.vmap(ATTENTION, in_axes=(1, None, None, None))(pattern, ids, probes, probes)
    for head in range(2):
        alone = ATTENTION(pattern[:, head], ids, probes, probes)
        for of_all, of_one in zip(together, alone, strict=True):
            np.testing.assert_allclose(of_all[head], of_one, rtol=0, atol=60 * EPS)  # 30 masses, twice
