import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import losses
from lab.tasks import Batch

EPS = 2.0**-23  # float32
B, L, V = 5, 7, 11


def rounding(logits_BxQxV, total):
    """Absolute error of the sum `total` of the float32 losses at all positions, with weights at most 1.

    A loss is max - logit + log sum exp: four roundings of numbers below 2 M + log V, where M is the largest logit, and
    V + 2 eps from the exponentials and their sum. Adding n positive numbers is off by n eps of the total.
    """
    n_terms = logits_BxQxV.shape[0] * logits_BxQxV.shape[1]
    one = (2 * np.abs(logits_BxQxV).max() + np.log(V)) * 4 * EPS + (V + 2) * EPS
    return n_terms * (one + total * EPS)


def problem(seed, n_positions, scale=3.0):
    rng = np.random.default_rng(seed)
    logits_BxQxV = (scale * rng.standard_normal((B, n_positions, V))).astype(np.float32)
    targets_BxL = rng.integers(0, V, (B, L)).astype(np.int32)
    weights_BxL = (rng.random((B, L)) * (rng.random((B, L)) < 0.6)).astype(np.float32)
    weights_BxL[0, -1] = 1  # a position that every readout scores
    return logits_BxQxV, targets_BxL, weights_BxL


def by_hand(logits_BxQxV, targets_BxL, weights_BxL):
    """The same in Python floats, one position at a time."""
    total = mass = 0.0
    n_positions = logits_BxQxV.shape[1]
    for b in range(len(logits_BxQxV)):
        for q in range(n_positions):
            position = L - n_positions + q
            p_V = np.exp(logits_BxQxV[b, q].astype(np.float64))
            weight = float(weights_BxL[b, position])
            total -= weight * np.log(p_V[targets_BxL[b, position]] / p_V.sum())
            mass += weight
    return total, mass


@pytest.mark.parametrize("n_positions", [1, 3, L])
def test_weighted_nll_is_that_of_a_loop_over_the_last_positions(n_positions):
    logits, targets, weights = problem(0, n_positions)
    nll, mass = losses.cross_entropy(logits, targets, weights)
    expected_nll, expected_mass = by_hand(logits, targets, weights)
    tolerance = rounding(logits, expected_nll)
    assert nll == pytest.approx(expected_nll, rel=0, abs=tolerance)
    assert mass == pytest.approx(expected_mass, rel=B * n_positions * EPS)  # a sum of positive numbers
    mean = losses.mean_cross_entropy(logits, Batch(jnp.zeros_like(targets), targets, weights, {}))
    expected = expected_nll / expected_mass
    # Both errors, and one division.
    assert mean == pytest.approx(
        expected, rel=0, abs=tolerance / expected_mass + expected * (B * n_positions + 1) * EPS
    )


@pytest.mark.parametrize("n_positions", [1, 3, L])
def test_positions_before_the_last_ones_and_those_without_weight_do_not_count(n_positions):
    logits, targets, weights = problem(1, n_positions)
    changed = targets.copy()
    changed[:, : L - n_positions] = (changed[:, : L - n_positions] + 1) % V
    changed[weights == 0] = (changed[weights == 0] + 1) % V
    heavier = weights.copy()
    heavier[:, : L - n_positions] += 5
    assert losses.cross_entropy(logits, changed, heavier) == losses.cross_entropy(logits, targets, weights)


def test_last_takes_the_final_columns():
    values = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(losses.last(values, 1), [[5], [11]])
    np.testing.assert_array_equal(losses.last(values, 6), values)


@pytest.mark.parametrize("level", [0.0, 1e4, -1e4])
def test_uniform_logits_cost_log_v_at_any_level(level):
    _, targets, weights = problem(2, L)
    nll, mass = losses.cross_entropy(jnp.full((B, L, V), level, jnp.float32), targets, weights)
    # The level cancels exactly; a loss is one logarithm, then B L products and additions of positive numbers.
    assert nll == pytest.approx(float(mass) * np.log(V), rel=(2 * B * L + 2) * EPS)


def test_certain_answer_costs_the_gap():
    logits = np.zeros((1, 1, V), np.float32)
    logits[0, 0, 4] = 1000
    weight = np.ones((1, L), np.float32)
    for target, expected in ((4, 0), (5, 1000)):  # log(1 + 10 exp(-1000)) is below every float
        nll, _ = losses.cross_entropy(logits, np.full((1, L), target, np.int32), weight)
        assert nll == expected


def test_sums_of_two_batches_add_up_to_those_of_their_union():
    one, other = problem(3, 3), problem(4, 3)
    other[2][:] *= 0.25  # unequal masses, so that the mean of the means is another number
    union = losses.cross_entropy(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))
    parts = [losses.cross_entropy(*one), losses.cross_entropy(*other)]
    tolerance = 2 * rounding(np.concatenate([one[0], other[0]]), float(union[0]))  # either side
    assert union[0] == pytest.approx(float(parts[0][0] + parts[1][0]), rel=0, abs=tolerance)
    mean_of_means = np.mean([float(nll / mass) for nll, mass in parts])
    assert abs(union[0] / union[1] - mean_of_means) > 100 * tolerance / union[1]  # the test can tell


def test_gradient_is_softmax_minus_target_times_weight():
    logits, targets, weights = problem(5, 3)
    grad = jax.grad(lambda z: losses.cross_entropy(z, targets, weights)[0])(logits)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    expected = (p - np.eye(V)[targets[:, -3:]]) * weights[:, -3:, None]
    # A probability is the exponential of a log-probability below 2 M + log V, so it carries that many eps, and sums.
    largest = 2 * np.abs(logits).max() + np.log(V)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=(4 * largest + V + 8) * EPS)


def test_half_precision_logits_lose_nothing_more_than_their_own_rounding():
    logits, targets, weights = problem(6, 3)
    half = jnp.asarray(logits, jnp.bfloat16)
    nll, mass = losses.cross_entropy(half, targets, weights)
    assert (nll.dtype, mass.dtype) == (jnp.float32, jnp.float32)
    expected, _ = by_hand(np.asarray(half.astype(jnp.float32)), targets, weights)
    assert nll == pytest.approx(expected, rel=0, abs=rounding(logits, expected))


def test_logits_without_positions_are_those_of_one():
    logits_BxV, targets_Bx1 = jnp.array([[0.0, 1.0, 3.0], [2.0, 0.0, 1.0]]), jnp.array([[2], [1]])
    weights_Bx1 = jnp.array([[1.0], [0.5]])
    alike = [losses.cross_entropy(logits, targets_Bx1, weights_Bx1) for logits in (logits_BxV, logits_BxV[:, None])]
    assert alike[0] == alike[1]
