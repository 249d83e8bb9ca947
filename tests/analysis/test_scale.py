import numpy as np
import pytest

from lab.analysis import scale

EPS = 2.0**-23  # float32


def drawn():
    return np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


@pytest.mark.parametrize("power", [-100, -80, 0, 80, 120])
def test_norms_and_directions_are_those_of_float64_where_squares_leave_the_range_of_float32(power):
    array = drawn() * np.float32(2.0**power)
    exact = array.astype(np.float64)
    # A division, a sum of 35 squares in any order, a root and a product, below 40 roundings in all.
    assert float(scale.norm(array)) == pytest.approx(np.linalg.norm(exact), rel=40 * EPS)
    np.testing.assert_allclose(scale.unit(array), exact / np.linalg.norm(exact), rtol=40 * EPS)
    rows = np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(scale.unit_rows(array), exact / rows, rtol=40 * EPS)


def test_rows_of_any_scales_have_unit_norm_and_zero_rows_stay_zero():
    array = drawn() * np.float32(2.0) ** np.array([[-100], [-60], [0], [60], [0], [90], [-90]], np.float32)
    array[4] = 0
    norms_N = np.linalg.norm(np.asarray(scale.unit_rows(array), np.float64), axis=1)
    np.testing.assert_allclose(norms_N, [1, 1, 1, 1, 0, 1, 1], atol=20 * EPS)


def test_largest_magnitude_becomes_one_exactly():
    scaled, peak = scale.by_peak(-3 * drawn())
    assert np.abs(scaled).max() == 1
    assert peak == np.abs(3 * drawn()).max()
    scaled, peak_Nx1 = scale.by_peak(drawn(), axis=1)
    np.testing.assert_array_equal(np.abs(scaled).max(axis=1), np.ones(7))
    np.testing.assert_array_equal(peak_Nx1[:, 0], np.abs(drawn()).max(axis=1))


def test_zero_stays_zero_and_nan_stays_nan():
    zero, spoilt = np.zeros((2, 3), np.float32), np.array([[1, np.nan], [3, 4]], np.float32)
    assert scale.norm(zero) == 0 and np.isnan(scale.norm(spoilt))
    np.testing.assert_array_equal(scale.unit(zero), zero)
    assert np.isnan(scale.unit(spoilt)).all()
    # one row does not spoil another
    np.testing.assert_allclose(scale.unit_rows(spoilt), [[np.nan, np.nan], [0.6, 0.8]], rtol=8 * EPS)
