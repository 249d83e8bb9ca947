"""Scores that are needed against their closed forms; a copier copies up to as many tokens as it has states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis import copying
from lab.models import ssm
from lab.tasks import CopyStrings
from lab.tasks.answers import exact_match

E = copying.SHARE
RESOLUTION = 2 * copying.HIGHEST * 2.0**-24 + 1e-4  # of float32 sums of up to 1024 weights: (L eps) / share


@pytest.mark.parametrize("length", [2, 7, 64, 1024])
def test_softmax_needs_a_gap_that_grows_as_the_logarithm(length):
    expected = np.log(length - 1) + np.log((1 - E) / E)
    np.testing.assert_allclose(copying.softmax_gap(length), expected, rtol=0, atol=RESOLUTION)


@pytest.mark.parametrize(("length", "rate"), [(2, 0.9), (16, 0.9), (96, 0.5), (64, 0.8)])
def test_a_state_that_decays_needs_a_score_that_grows_as_a_power(length, rate):
    others = np.sum(rate ** np.arange(length - 1))
    expected = -(length - 1) * np.log(rate) + np.log(others) + np.log((1 - E) / E)
    np.testing.assert_allclose(copying.decay_log_score(length, rate), expected, rtol=0, atol=RESOLUTION)


def answered(n_tokens, n_states, seed=0):
    """(largest error, share of strings that are right) of 32 random strings."""
    task = CopyStrings(longest=n_tokens, shortest=n_tokens)
    batch = task.sample(jax.random.key(seed), 32, "train", {})
    model, params = copying.copier(n_tokens, n_states, task.vocab_size, task.end)
    logits, _ = model.apply({"params": params}, batch.tokens_BxL, {})
    error = copying.copy_error(model, params, batch.tokens_BxL, batch.targets_BxL)
    return float(error), float(jnp.mean(exact_match(logits, batch)))


@pytest.mark.parametrize(("n_tokens", "n_states"), [(1, 1), (5, 6), (6, 6), (20, 20)])
def test_as_many_states_as_tokens_copy_exactly(n_tokens, n_states):
    error, right = answered(n_tokens, n_states)
    assert error < 1e-5 and right == 1


@pytest.mark.parametrize(("n_tokens", "n_states"), [(7, 6), (12, 6), (21, 20)])
def test_one_token_more_is_not_copied(n_tokens, n_states):
    error, right = answered(n_tokens, n_states)
    # two letters in one state, of norm sqrt(1/2) each, where one of norm 1 should be
    assert error > np.sqrt(0.5) - 1e-5 and right < 1


@pytest.mark.parametrize("n_states", [3, 8])
def test_no_keys_queries_and_decays_copy_more_orthonormal_vectors_than_states(n_states):
    """What queries after all keys read has the rank of the state, so its best least-squares copy misses the rest."""
    draw, n = np.random.default_rng(0), 8
    b, c = draw.normal(size=(2, 1, 2 * n, n_states)).astype(np.float32)
    a = -draw.uniform(0.01, 0.1, size=(1, 1, 2 * n)).astype(np.float32)
    read_NxN = np.asarray(ssm.quadratic(c, b, a))[0, 0, n:, :n]
    assert np.linalg.matrix_rank(read_NxN, tol=1e-5 * np.linalg.norm(read_NxN)) == n_states
    left, _, _ = np.linalg.svd(read_NxN)
    best_NxN = left[:, :n_states] @ left[:, :n_states].T  # the identity, projected on what can be answered
    error = np.sqrt(np.mean(np.sum(np.square(best_NxN - np.eye(n)), axis=1)))
    np.testing.assert_allclose(error, copying.least_error(n, n_states), atol=1e-6)
