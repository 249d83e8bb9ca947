import jax
import numpy as np
import pytest

from lab.analysis.heads import (
    EDGES,
    cosines,
    duplicate_token_edges,
    edge_score,
    head_scores,
    induction_edges,
    previous_token_edges,
    repeated_sequences,
)

EPS = 2.0**-23  # float32
SCORES = jax.jit(head_scores)
TOKENS = np.array([[4, 7, 2, 4, 7, 2], [1, 0, 5, 1, 0, 5]], np.int32)  # three distinct tokens, twice


def one_hot(reads_L):
    """(2, 1, 6, 6): a head whose query q reads key reads_L[q]."""
    return np.broadcast_to(np.eye(6, dtype=np.float32)[reads_L], (2, 1, 6, 6))


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        # Queries 1-5 have a previous token, 3-5 a duplicate and, one later, an induction edge.
        ([0, 0, 1, 2, 3, 4], {"previous_token": 1, "duplicate_token": 0, "induction": 0}),
        ([0, 1, 2, 0, 1, 2], {"previous_token": 0, "duplicate_token": 1, "induction": 0}),
        ([0, 1, 2, 1, 2, 3], {"previous_token": 0, "duplicate_token": 0, "induction": 1}),
        ([0, 1, 2, 3, 4, 5], {"previous_token": 0, "duplicate_token": 0, "induction": 0}),
        ([0, 0, 0, 1, 2, 4], {"previous_token": 2 / 5, "duplicate_token": 0, "induction": 2 / 3}),
    ],
)
def test_head_that_reads_one_edge_kind_scores_one_there_and_zero_elsewhere(reads, expected):
    scores = SCORES(one_hot(np.array(reads)), TOKENS)
    for name, score in expected.items():
        assert scores[name].value[0] == pytest.approx(score, abs=2 * EPS)
        assert scores[name].standard_error[0] == pytest.approx(0, abs=8 * EPS)  # the two sequences are alike


def test_edges_are_those_of_a_loop():
    tokens = np.random.default_rng(0).integers(0, 3, 8).astype(np.int32)
    previous, duplicate, induction = np.zeros((3, 8, 8), bool)
    for q in range(8):
        for j in range(q + 1):
            previous[q, j] = j == q - 1
            duplicate[q, j] = j < q and tokens[j] == tokens[q]
            induction[q, j] = j > 0 and j - 1 < q and tokens[j - 1] == tokens[q]
    np.testing.assert_array_equal(previous_token_edges(tokens), previous)
    np.testing.assert_array_equal(duplicate_token_edges(tokens), duplicate)
    np.testing.assert_array_equal(induction_edges(tokens), induction)


@pytest.mark.parametrize("n_queries", [7, 3])
def test_scores_are_the_mass_averaged_over_queries_that_have_an_edge(n_queries):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 4, (5, 7)).astype(np.int32)
    pattern = rng.dirichlet(np.ones(7), (5, 2, 7))[:, :, 7 - n_queries :].astype(np.float32)
    scores = SCORES(pattern, tokens)
    for name, edges in EDGES.items():
        marked = np.stack([np.asarray(edges(row)) for row in tokens])[:, None, 7 - n_queries :]
        mass = (pattern.astype(float) * marked).sum(axis=3)  # (5, 2, Q)
        has_edge = marked.any(axis=3)[:, 0]
        for head in range(2):
            drawn = has_edge.any(axis=1)
            value = mass[:, head][has_edge].mean()
            residual = (mass[:, head].sum(axis=1) - value * has_edge.sum(axis=1))[drawn]
            error = np.sqrt(drawn.sum() * residual.var(ddof=1)) / has_edge.sum()
            # At most 5 * 7 * 7 numbers that sum to 35 at most, over at least 5 queries.
            assert scores[name].value[head] == pytest.approx(value, abs=50 * EPS)
            assert scores[name].standard_error[head] == pytest.approx(error, abs=100 * EPS)


def test_score_without_edges_is_nan():
    distinct = np.arange(12, dtype=np.int32).reshape(2, 6)
    scores = SCORES(one_hot(np.zeros(6, int)), distinct)
    assert np.isnan(scores["induction"].value).all() and np.isnan(scores["duplicate_token"].value).all()
    assert scores["previous_token"].value[0] == pytest.approx(1 / 5, abs=EPS)  # only query 1 reads its previous token
    assert np.isnan(edge_score(one_hot(np.zeros(6, int))[:1], np.ones((1, 6, 6), bool)).standard_error).all()


def test_repeated_sequences_are_distinct_tokens_twice_and_uniform():
    allowed = np.array([3, 8, 11, 20, 21], np.int32)
    draw = jax.jit(lambda key: repeated_sequences(key, allowed, 400, 4))
    tokens = np.asarray(draw(jax.random.key(0)))
    np.testing.assert_array_equal(tokens[:, :4], tokens[:, 4:])
    assert all(len(set(row)) == 4 and set(row) <= set(allowed) for row in tokens[:, :4])
    share = (tokens[:, :1] == allowed).mean(axis=0)
    np.testing.assert_allclose(share, 0.2, atol=4.5 * np.sqrt(0.2 * 0.8 / 400))  # binomial, 4.5 deviations
    # Every query of the second half has one duplicate; all but those reading "what followed" at its own end, one more.
    edges = np.asarray(jax.vmap(induction_edges)(tokens))
    np.testing.assert_array_equal(edges.sum(axis=2), np.broadcast_to([0, 0, 0, 0, 1, 1, 1, 1], (400, 8)))
    assert all(tokens[b, j] == tokens[b, q + 1] for b, q, j in np.argwhere(edges) if q < 7)


def test_halves_longer_than_the_tokens_are_refused():
    with pytest.raises(ValueError, match="half of 6 distinct tokens cannot be drawn from 5"):
        repeated_sequences(jax.random.key(0), np.arange(5), 2, 6)


def factors(seed, layers=2, heads=3, d=12, k=4):
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((layers, heads, *shape)).astype(np.float32) for shape in ((d, k), (k, d))]


def test_cosines_of_heads_are_those_of_the_dense_products_as_vectors():
    first, second = factors(0)
    flat_NxHxP = (first.astype(np.float64) @ second).reshape(2, 3, -1)
    unit_NxHxP = flat_NxHxP / np.linalg.norm(flat_NxHxP, axis=-1, keepdims=True)
    found = jax.jit(cosines)(first, second)
    # sums of at most 12 x 16 terms of order one, relative to the norm
    np.testing.assert_allclose(found, unit_NxHxP @ unit_NxHxP.transpose(0, 2, 1), rtol=0, atol=200 * EPS)


def test_heads_of_one_matrix_are_at_cosine_one_whatever_their_basis_and_size_and_opposite_ones_at_minus_one():
    first, second = factors(1)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((4, 4)))[0].astype(np.float32)
    first[:, 1], second[:, 1] = 1e-25 * first[:, 0] @ turn, turn.T @ second[:, 0]
    first[:, 2], second[:, 2] = -first[:, 0], second[:, 0]
    first[1, 2] = 0  # a dead head
    found = np.asarray(jax.jit(cosines)(first, second))
    np.testing.assert_allclose(found[0], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=200 * EPS)
    np.testing.assert_allclose(found[1], [[1, 1, 0], [1, 1, 0], [0, 0, 0]], atol=200 * EPS)
