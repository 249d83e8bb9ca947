"""Entropies of laws of strings: by contexts against joint laws summed one by one, and by sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis import entropy

V, T = 3, 4
EPS = 2.0**-23  # float32
N_TERMS = V**T


def law(seed, concentration=0.5):
    """log P(x_t = v | context), float32 (V^(T-1), T, V): of equal beginnings equal; and the joint law (V, V, V, V)."""
    draw, log_law = np.random.default_rng(seed), np.empty((V,) * (T - 1) + (T, V))
    joint = np.ones((V,) * T)
    for t in range(T):
        table = draw.dirichlet([concentration] * V, V**t).reshape((V,) * (t + 1)) + 1e-3
        table /= table.sum(axis=-1, keepdims=True)
        log_law[..., t, :] = np.log(table.reshape((V,) * t + (1,) * (T - 1 - t) + (V,)))
        joint = joint * table.reshape((V,) * (t + 1) + (1,) * (T - 1 - t))
    return jnp.asarray(log_law.reshape(-1, T, V), jnp.float32), joint


P, JOINT_P = law(0)
Q, JOINT_Q = law(1)


def joint_entropy(joint):
    return -np.sum(joint * np.log(joint))


def test_entropies_and_divergences_are_those_of_the_joint_laws():
    # sums of V^T products of T factors, of numbers up to 10, each rounded in float32
    atol = 10 * (N_TERMS + T) * EPS
    assert entropy.entropy(P) == pytest.approx(joint_entropy(JOINT_P), abs=atol)
    expected = np.sum(JOINT_P * np.log(JOINT_P / JOINT_Q))
    assert entropy.divergence(P, Q) == pytest.approx(expected, abs=atol)
    assert entropy.divergence(P, P) == 0
    assert entropy.top_mass(Q, 5) == pytest.approx(np.sort(JOINT_Q.ravel())[-5:].sum(), abs=atol)
    contexts = np.exp(np.asarray(entropy.log_contexts(P), float))
    np.testing.assert_allclose(contexts, JOINT_P.sum(axis=-1).ravel(), rtol=0, atol=atol)


def test_entropy_by_depth_is_the_growth_of_the_entropy_of_prefixes():
    atol = 10 * (N_TERMS + T) * EPS
    prefixes = [0.0, *(joint_entropy(JOINT_P.reshape(V**t, -1).sum(axis=1)) for t in range(1, T + 1))]
    np.testing.assert_allclose(entropy.by_depth(entropy.log_contexts(P), P), np.diff(prefixes), rtol=0, atol=atol)


def test_gap_is_the_divergence_and_what_q_says_otherwise():
    """H(Q) - H(P) = KL(P || Q) + sum (P - Q) log Q."""
    gap = entropy.entropy(Q) - entropy.entropy(P)
    other = np.sum((JOINT_P - JOINT_Q) * np.log(JOINT_Q))
    assert gap == pytest.approx(float(entropy.divergence(P, Q)) + other, abs=40 * (N_TERMS + T) * EPS)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_best_temperature_undoes_one_and_makes_teacher_forced_entropy_the_cross_entropy(temperature):
    """Calibration identity: where the loss is stationary in the scale of all logits the two are equal."""
    colder = jax.nn.log_softmax(P / temperature)
    # the slope's root, where rounding of N_TERMS terms moves it by some eps / curvature, curvature of about 0.1
    assert entropy.best_temperature(P, colder) == pytest.approx(1 / temperature, rel=1e-3)
    like_p = jax.nn.log_softmax((P + Q) / temperature)
    tempered = jax.nn.log_softmax(like_p / entropy.best_temperature(P, like_p))
    forced = jnp.sum(entropy.by_depth(entropy.log_contexts(P), tempered))
    crossed = entropy.entropy(P) + entropy.divergence(P, tempered)
    assert forced == pytest.approx(float(crossed), abs=1e-3)


def test_excluded_symbols_count_nothing_and_exclude_what_needs_them():
    sure = jnp.broadcast_to(jnp.where(jnp.arange(V) == 1, 0.0, -jnp.inf), (V ** (T - 1), T, V))
    assert entropy.entropy(sure) == 0
    assert entropy.divergence(sure, P) == pytest.approx(-np.log(JOINT_P[1, 1, 1, 1]), abs=T * 10 * EPS)
    assert np.isposinf(entropy.divergence(P, sure))


def test_sampling_agrees_with_enumeration_within_its_error():
    def next_law(tokens_BxT):  # of what was said after the first token, by the table of contexts
        place_B = tokens_BxT[:, 1:] @ jnp.array([V ** (T - 2 - t) for t in range(T - 1)], jnp.int32)
        return Q[place_B]

    def sample(seed):
        return entropy.sampled(next_law, jax.random.key(seed), 4000, T, 0)

    found, strings = jax.jit(sample)(0)
    assert abs(found.value - joint_entropy(JOINT_Q)) < 4 * found.standard_error  # once in 16,000 seeds it is not
    assert 0 < found.standard_error < 0.02
    count = np.bincount(np.asarray(strings) @ [27, 9, 3, 1], minlength=V**T)
    expected = 4000 * JOINT_Q.ravel()
    assert np.sum((count - expected) ** 2 / expected) < 81 + 5 * np.sqrt(2 * 80)  # chi squared, 80 degrees of freedom


def test_sample_has_the_entropy_of_its_counts():
    strings = [[0, 1], [0, 1], [1, 0], [1, 1]]
    assert entropy.of_sample(strings) == pytest.approx(1.5 * np.log(2), rel=1e-14)


def test_band_is_around_the_law_less_the_bias_of_small_counts():
    """(K - 1) / (2 n) where every outcome is drawn many times."""
    median, low, high = entropy.sample_band(np.full(16, 1 / 16), 4096, 400, 0)
    # the bias is a mean over chi squared of 15 degrees of freedom: its spread over 2 n, of 400 draws
    assert np.log(16) - median == pytest.approx(15 / 8192, abs=4 * np.sqrt(30) / 8192 / 20 + 1 / 8192)
    assert low < median < high


def test_every_context_of_a_lexicographic_order_has_its_own_probability():
    found = np.exp(np.asarray(entropy.log_contexts(P), float))
    for place, symbols in enumerate(itertools.product(range(V), repeat=T - 1)):
        assert found[place] == pytest.approx(JOINT_P[symbols].sum(), abs=10 * T * EPS)
