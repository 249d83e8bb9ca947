import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis import estimate


@pytest.mark.parametrize("axis", [0, 1])
def test_mean_and_error_are_numpys_in_double_precision(axis):
    samples = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    result, exact = estimate.mean(samples, axis), samples.astype(np.float64)
    n = samples.shape[axis]
    # Sums of n terms of order one: n roundings.
    np.testing.assert_allclose(result.value, exact.mean(axis), rtol=0, atol=n * 2.0**-23)
    expected = np.sqrt(exact.var(axis) * n / (n - 1)) / np.sqrt(n)
    np.testing.assert_allclose(result.standard_error, expected, rtol=4 * n * 2.0**-23)


def test_error_of_the_mean_is_the_spread_of_means():
    means, errors = estimate.mean(np.random.default_rng(0).standard_normal((4, 2000)).astype(np.float32))
    # 2000 means of 4 draws of unit variance: both variances are 1/4, known to 3 and 2 % (2 of them in a t of 3: 4 %).
    assert np.var(means) == pytest.approx(1 / 4, rel=4 * np.sqrt(2 / 2000))
    assert np.mean(np.square(errors)) == pytest.approx(1 / 4, rel=4 * np.sqrt(2 / 3 / 2000))


def test_counts_are_averaged_as_numbers():
    result = estimate.mean(jnp.array([1, 2, 4, 9]))
    # Mean 4, deviations -3 -2 0 5: s^2 = 38 / 3, exact up to a few roundings.
    np.testing.assert_allclose(result, [4, np.sqrt(38 / 3) / 2], rtol=8 * 2.0**-23)


def test_single_draw_has_no_error_bar():
    result = estimate.mean(jnp.array([[3.0, 5.0]]))
    np.testing.assert_array_equal(result.value, [3, 5])
    assert np.isnan(result.standard_error).all()


def test_double_precision_is_kept(float64):
    result = estimate.mean(jnp.array([1.0, 1.0 + 1e-12]))
    # The deviation 1e-12 / sqrt(2) over sqrt(2), with the rounding 2e-16 of the draws.
    np.testing.assert_allclose(result.standard_error, 0.5e-12, rtol=1e-3)
