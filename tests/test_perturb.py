"""Weights moved before the gradient is taken, against numpy and against what their definitions say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import grid, perturb
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
AXES = {"gamma": (0.5,), "weight_decay": (0.0,), "learning_rate": (1e-3,), "seed": (1,)}


def tree(seed, size=1.0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(size * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {
        "embed": {"embedding": draw(50, 40)},
        "in": {"kernel": 7 * draw(40, 60), "bias": draw(60)},
        "norm": {"scale": draw(40)},
    }


def vector(params):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


def test_ascent_goes_the_radius_along_the_gradient_of_all_leaves():
    params, grads = tree(0), tree(1, 1e-3)
    moved = vector(perturb.sam_ascent(params, grads, 0.3)) - vector(params)
    # a weight below 32 rounds to 32 eps / 2; the norm's rounding is far below
    np.testing.assert_allclose(moved, 0.3 * vector(grads) / np.linalg.norm(vector(grads)), rtol=0, atol=16 * EPS)
    assert np.linalg.norm(moved) == pytest.approx(0.3, abs=16 * EPS * np.sqrt(moved.size))


def test_ascent_stays_where_the_gradient_vanishes_or_the_radius_does():
    params = tree(0)
    for grads, radius in ((jax.tree.map(jnp.zeros_like, params), 0.3), (tree(1), 0.0)):
        jax.tree.map(np.testing.assert_array_equal, perturb.sam_ascent(params, grads, radius), params)


def test_jitter_is_normal_with_sigma_times_the_rms_of_each_matrix_and_leaves_vectors_alone():
    params, key = tree(0), jax.random.key(3)
    before, after = (named_leaves(params), named_leaves(perturb.weight_noise(params, key, 0.1)))
    for name in ("embed/embedding", "in/kernel"):
        rms = np.sqrt(np.mean(np.square(before[name], dtype=np.float64)))
        noise = (np.asarray(after[name], np.float64) - before[name]).ravel() / (0.1 * rms)
        n = noise.size  # moments 2 and 4 of normal numbers have variances 2 / n and 96 / n: 4 standard errors
        assert abs(noise.mean()) < 4 / np.sqrt(n)
        assert np.mean(noise**2) == pytest.approx(1, abs=4 * np.sqrt(2 / n))
        assert np.mean(noise**4) == pytest.approx(3, abs=4 * np.sqrt(96 / n))
    for name in ("in/bias", "norm/scale"):
        np.testing.assert_array_equal(after[name], before[name])
    jax.tree.map(np.testing.assert_array_equal, perturb.weight_noise(params, key, 0.0), params)


def test_noise_of_a_leaf_depends_on_its_name_and_key_alone():
    params, key = tree(0), jax.random.key(3)
    whole = perturb.weight_noise(params, key, 0.1)
    part = perturb.weight_noise({"in": params["in"], "other": {"kernel": params["in"]["kernel"]}}, key, 0.1)
    np.testing.assert_array_equal(part["in"]["kernel"], whole["in"]["kernel"])
    assert (np.asarray(part["other"]["kernel"]) != part["in"]["kernel"]).mean() > 0.99
    other = perturb.weight_noise(params, jax.random.key(4), 0.1)
    assert (np.asarray(other["in"]["kernel"]) != whole["in"]["kernel"]).all()


@pytest.mark.parametrize("name", ["sam_radius", "weight_noise"])
def test_every_grid_knows_the_perturbations_and_refuses_negative_ones(name):
    assert grid.product(AXES | {name: (0.0, 0.1)}).axes[name] == (0.0, 0.1)
    with pytest.raises(ValueError, match=rf"grid\.{name}=\(0\.1, -0\.2\): -0\.2 is negative"):
        grid.product(AXES | {name: (0.1, -0.2)})
