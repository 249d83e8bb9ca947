"""Ancestral sampling against chains with a closed form for every step; the judge on bits it can and cannot read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.analysis import attributes, diffusion
from lab.tasks import shapes

EPS = 2.0**-23
N_TIMES = 40
BETAS, KEPT = shapes.betas(N_TIMES), shapes.signal(N_TIMES)


def at(values_T, share):
    return jnp.asarray(values_T, jnp.float32)[jnp.round(share * N_TIMES).astype(jnp.int32) - 1]


def test_one_picture_told_apart_from_all_noise_is_drawn_exactly():
    """Where all data are one picture c, the noise is (x - sqrt(abar) c) / sqrt(1 - abar), and the last step says c."""
    c_3x3 = jnp.arange(9, dtype=jnp.float32).reshape(3, 3) / 9

    def noise_of(x, share):
        return (x - at(np.sqrt(KEPT), share) * c_3x3) / at(np.sqrt(1 - KEPT), share)

    found = jax.jit(lambda key: diffusion.generate(noise_of, key, (3, 3), BETAS))(jax.random.key(0))
    # numbers below 2, some ten roundings, and a coefficient of x_1 that is 1 - 1
    np.testing.assert_allclose(found, c_3x3, rtol=0, atol=16 * EPS)


def test_chain_of_normal_data_has_the_moments_of_its_recursion():
    """Data N(m, s^2) make e linear in x, and every step too: mean and variance follow by hand, in float64."""
    m, s = 0.7, 0.3

    slope_T = np.sqrt(1 - KEPT) / (KEPT * s**2 + 1 - KEPT)
    offset_T = -slope_T * np.sqrt(KEPT) * m

    def noise_of(x, share):
        return at(slope_T, share) * x + at(offset_T, share)

    mean, variance = 0.0, 1.0
    for t in reversed(range(N_TIMES)):
        kept, beta = KEPT[t], BETAS[t]
        gain = (1 - beta / np.sqrt(1 - kept) * slope_T[t]) / np.sqrt(1 - beta)
        mean = gain * mean - beta / np.sqrt(1 - kept) * offset_T[t] / np.sqrt(1 - beta)
        variance = gain**2 * variance + (beta if t else 0)
    n = 40_000
    found = np.asarray(jax.jit(lambda key: diffusion.generate(noise_of, key, (n,), BETAS))(jax.random.key(1)))
    assert found.mean() == pytest.approx(mean, abs=5 * (variance / n) ** 0.5)
    assert found.var() == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)
    assert mean == pytest.approx(m, abs=0.05) and variance**0.5 == pytest.approx(s, abs=0.05)  # 40 steps: nearly data


@pytest.mark.usefixtures("standard_promotion")
def test_judge_reads_what_is_in_the_pixels_and_no_more(monkeypatch):
    monkeypatch.setattr(attributes, "STEPS", 300)

    def sample(key, n):
        bit_key, noise_key = jax.random.split(key)
        bits_BxK = jax.random.bernoulli(bit_key, 0.5, (n, 2)).astype(jnp.int32)
        image_Bx3x3 = jax.random.normal(noise_key, (n, 3, 3), jnp.float32)
        return image_Bx3x3.at[:, 1, 1].set(2 * bits_BxK[:, 0].astype(jnp.float32) - 1), bits_BxK

    judge = jax.jit(lambda key: attributes.train(sample, key))(jax.random.key(0))
    image, bits = sample(jax.random.key(1), 2000)
    accuracy_K = np.asarray(attributes.right(judge, image, bits)).mean(axis=0)
    # the first bit is the sign of a pixel; of the second nothing is shown: a coin, within 5 standard errors
    assert accuracy_K[0] > 0.99 and accuracy_K[1] == pytest.approx(0.5, abs=5 * 0.5 / 2000**0.5)
    broken = image.at[0].set(jnp.nan)
    assert not attributes.right(judge, broken, bits)[0].any()
