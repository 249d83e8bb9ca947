"""Errors of a roll-out by band and place, and where a gate sends patches: against fields made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis import operators

N = 32
X, Y = np.meshgrid(np.arange(N) / N, np.arange(N) / N, indexing="ij")


def wave(kx, ky):
    return np.cos(2 * np.pi * (kx * X + ky * Y)).astype(np.float32)


def field(*waves):
    """(1, 1, N, N): one frame."""
    return jnp.asarray(sum(waves))[None, None]


def test_bands_and_shells_part_all_waves():
    for parts in (operators.bands(N), operators.shells(N)):
        assert parts.sum(axis=0).max() == 1
    assert (operators.bands(N).sum(axis=0) == 1).all()
    assert np.unique(operators.shells(N).any(axis=(1, 2))).tolist() == [True]


def test_error_of_a_band_is_that_of_its_waves():
    low, middle, high = wave(1, 2), wave(4, 0), wave(0, 9)
    true = field(low, middle, high)
    said = field(0.5 * low, middle, 1.25 * high)
    np.testing.assert_allclose(operators.band_errors(said, true), [0.5, 0, 0.25], atol=1e-5)


def test_power_is_the_mean_square_by_parseval():
    shown = field(wave(3, 0), 2 * wave(0, 7))
    power = np.asarray(operators.power(shown, operators.shells(N)))
    np.testing.assert_allclose(power[[3, 7]], [0.5, 2.0], rtol=1e-5)
    assert power.sum() == pytest.approx(float(jnp.mean(jnp.square(shown))), rel=1e-5)


def test_seam_is_the_error_of_the_border_over_that_inside():
    true = jnp.ones((3, 2, N, N), jnp.float32)
    edge = operators.on_border(N, 2)
    # two points on either side of four edges of 16: all but 12 x 12 of each patch
    assert (~edge).sum() == 4 * 12 * 12
    said = true + jnp.where(jnp.asarray(edge)[None, None], 0.3, 0.1)
    assert float(operators.seam(said, true, 2)) == pytest.approx(3, rel=1e-4)
    assert np.isnan(operators.seam(said, true, N // 4))  # patches of four points are all border


def test_fine_patches_are_those_of_the_fine_quadrant():
    region = jnp.array([0, 3, -1], jnp.int32)
    np.testing.assert_array_equal(operators.fine_patches(region, 2), [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    four = np.asarray(operators.fine_patches(region, 4)).reshape(3, 4, 4)
    assert four[0, :2, :2].all() and four[1, 2:, 2:].all() and four.sum() == 8


def test_routing_is_right_wrong_or_a_half():
    region = jnp.array([1, 2], jnp.int32)
    right = 1 - np.asarray(operators.fine_patches(region, 2)).astype(np.int32)
    right_BxTxP = jnp.asarray(np.repeat(right[:, None], 3, axis=1))
    assert float(operators.routing_accuracy(right_BxTxP, region)) == 1
    assert float(operators.routing_accuracy(1 - right_BxTxP, region)) == 0
    for expert in (0, 1):
        assert float(operators.routing_accuracy(jnp.full_like(right_BxTxP, expert), region)) == 0.5
    assert np.isnan(float(operators.routing_accuracy(right_BxTxP, jnp.full_like(region, -1))))
