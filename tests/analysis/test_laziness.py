import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.analysis import laziness
from lab.analysis.laziness import tensor_names
from lab.tasks import Batch

EPS = 2.0**-23  # float32
EPS64 = 2.0**-52
relative_distance, direction_change = jax.jit(laziness.relative_distance), jax.jit(laziness.direction_change)
kernel_alignment = jax.jit(laziness.kernel_alignment)
centred_kernel_alignment = jax.jit(laziness.centred_kernel_alignment)
projected_alignment = jax.jit(laziness.projected_alignment, static_argnums=(0, 5))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def linear(params, x_BxD):
    return x_BxD @ params["w"]


def curved(params, x_BxD):
    return jnp.tanh(x_BxD @ params["in"] + params["bias"][None]) @ params["out"]


def kernel(outputs, params, batch):
    """(1/C) sum_c J_c J_c^T, from the whole Jacobian J (B, C, P)."""
    jacobian = jax.tree.leaves(jax.jacrev(outputs)(params, batch))
    jacobian_BxCxP = np.concatenate([np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in jacobian], axis=2)
    return np.einsum("acp,bcp->ab", jacobian_BxCxP, jacobian_BxCxP) / jacobian_BxCxP.shape[1]


def tree(seed, n_out=3):
    return {"bias": normal(seed, 6), "in": normal(seed + 1, 4, 6), "out": normal(seed + 2, 6, n_out)}


def flat_vector(params):
    return np.concatenate([np.ravel(leaf) for leaf in params.values()])


def test_relative_distance_is_the_quotient_of_norms_per_tensor_and_of_the_whole(float64):
    now, then = tree(0), tree(10)
    found = relative_distance(now, then)
    assert tensor_names(now) == list(now)
    expected_T = [np.linalg.norm(now[name] - then[name]) / np.linalg.norm(then[name]) for name in now]
    # Sums of at most 48 squares, two roots and a quotient.
    np.testing.assert_allclose(found["tensor"], expected_T, rtol=60 * EPS64)
    whole = np.linalg.norm(flat_vector(now) - flat_vector(then)) / np.linalg.norm(flat_vector(then))
    assert found["whole"] == pytest.approx(whole, rel=60 * EPS64)


def test_direction_change_is_one_minus_the_cosine(float64):
    now, then = tree(0), tree(10)
    found = direction_change(now, then)

    def change(a, b):
        return 1 - np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))

    np.testing.assert_allclose(found["tensor"], [change(now[n], then[n]) for n in now], rtol=0, atol=60 * EPS64)
    assert found["whole"] == pytest.approx(change(flat_vector(now), flat_vector(then)), abs=60 * EPS64)


def test_small_turns_keep_their_digits_in_float32():
    angle = 1e-5  # 1 - cos = 5e-11 is below the eps of 1
    now, then = ({"w": jnp.array([np.cos(a), np.sin(a)], jnp.float32)} for a in (angle, 0))
    # sin(a) to eps, squared.
    assert direction_change(now, then)["whole"] == pytest.approx(angle**2 / 2, rel=8 * EPS)


def test_shrinking_changes_distance_and_no_direction_even_where_squares_underflow():
    then = jax.tree.map(lambda leaf: (2.0**-80 * leaf).astype(np.float32), tree(20))
    now = jax.tree.map(lambda leaf: leaf / 4, then)
    # |W/4 - W| = 3/4 |W| without rounding but in the norms.
    np.testing.assert_allclose(relative_distance(now, then)["tensor"], 0.75, rtol=60 * EPS)
    assert relative_distance(now, then)["whole"] == pytest.approx(0.75, rel=60 * EPS)
    # Two norms' relative errors, squared: nothing.
    np.testing.assert_array_less(direction_change(now, then)["tensor"], (60 * EPS) ** 2)


def test_what_left_zero_is_infinitely_far_and_what_stayed_is_not():
    then = {"gone": jnp.zeros(2), "here": jnp.ones(2), "still": jnp.zeros(2)}
    now = {"gone": jnp.ones(2), "here": jnp.ones(2), "still": jnp.zeros(2)}
    np.testing.assert_array_equal(relative_distance(now, then)["tensor"], [np.inf, 0, 0])
    np.testing.assert_array_equal(np.isnan(direction_change(now, then)["tensor"]), [True, False, True])


def test_alignment_is_the_cosine_of_matrices_and_knows_no_scale():
    k, other = (m @ m.T for m in (normal(40, 6, 3), normal(41, 6, 4)))
    expected = np.sum(k * other) / np.sqrt(np.sum(k * k) * np.sum(other * other))
    k, other = k.astype(np.float32), other.astype(np.float32)
    # 36 products in the dot product and half as many in each norm.
    assert kernel_alignment(k, other) == pytest.approx(expected, abs=2 * 36 * EPS)
    assert kernel_alignment(k * np.float32(2.0**-80), other) == kernel_alignment(k, other)
    assert kernel_alignment(k, 3 * k) == pytest.approx(1, abs=2 * 36 * EPS)


def test_centred_alignment_leaves_the_constant_out():
    k, other = (m @ m.T for m in (normal(42, 6, 3), normal(43, 6, 4)))
    h = np.eye(6) - 1 / 6
    centred, shifted = h @ k @ h, h @ other @ h
    expected = np.sum(centred * shifted) / np.sqrt(np.sum(centred**2) * np.sum(shifted**2))
    large = (k + 100).astype(np.float32), (other + 100).astype(np.float32)
    # Entries of 100 are rounded to 100 eps, by 36 of them, relative to norms above 10.
    assert centred_kernel_alignment(*large) == pytest.approx(expected, abs=2 * 36 * 100 / 10 * EPS)
    assert kernel_alignment(*large) > 0.99


def test_a_linear_model_keeps_its_kernel_and_a_net_that_learns_does_not(float64):
    x_BxD, key = normal(44, 6, 4), jax.random.key(2)
    lazy = projected_alignment(linear, {"w": normal(45, 4, 20)}, {"w": normal(46, 4, 20)}, x_BxD, key, 8)
    assert lazy.value == pytest.approx(1, abs=100 * EPS64)  # some 50 roundings
    # The jackknife's deviations are of those roundings, times the root of 7.
    assert lazy.standard_error < 300 * EPS64

    now, then = tree(47, n_out=20), tree(50, n_out=20)
    rich = projected_alignment(curved, now, then, x_BxD, key, 200)
    kernels = [kernel(curved, params, x_BxD) for params in (now, then)]
    exact = centred_kernel_alignment(*kernels)
    assert exact < 0.95
    assert 0 < rich.standard_error < 0.02
    assert abs(rich.value - exact) < 4 * rich.standard_error


def test_alignment_of_one_output_needs_no_luck(float64):
    x_BxD, now, then = normal(39, 4, 4), tree(38, n_out=1), tree(58, n_out=1)
    found = projected_alignment(curved, now, then, x_BxD, jax.random.key(1), 3)
    exact = centred_kernel_alignment(*(kernel(curved, params, x_BxD) for params in (now, then)))
    # A sign squared is 1: no variance, and each entry is a sum of 48 products below 100.
    assert float(found.value) == pytest.approx(float(exact), abs=48 * 100 * EPS64)
    assert float(found.standard_error) == pytest.approx(0, abs=48 * 100 * EPS64)


def test_jackknife_error_is_the_spread_over_keys(float64):
    x_BxD, now, then = normal(53, 4, 4), tree(54, n_out=20), tree(57, n_out=20)
    keys = jax.random.split(jax.random.key(3), 100)
    found = jax.jit(jax.vmap(lambda key: laziness.projected_alignment(curved, now, then, x_BxD, key, 30)))(keys)
    # A standard deviation of 100 draws errs by 1/sqrt(200) = 7%; the jackknife overstates by O(1/30) and varies itself.
    spread = np.std(np.asarray(found.value), ddof=1)
    assert np.sqrt(np.mean(np.square(found.standard_error))) == pytest.approx(spread, rel=0.25)


def test_alignment_of_one_probe_is_refused():
    with pytest.raises(ValueError, match="n_probes=1; an error bar takes at least 2"):
        projected_alignment(linear, {}, {}, None, jax.random.key(0), 1)


def test_answer_logits_are_the_models_at_the_last_position_of_each_example():
    model = models.EmbMLP(vocab_size=7, d_model=4, d_ff=5, activation="tanh")
    tokens_BxL = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    params = jax.tree.map(
        lambda leaf: 0.5 * leaf, jax.jit(models.init, static_argnums=0)(model, jax.random.key(4), tokens_BxL)
    )
    batch = Batch(tokens_BxL, tokens_BxL, np.ones((2, 3), np.float32), {"position": np.arange(2)})
    outputs = laziness.answer_logits(model)
    params = jax.tree.map(np.asarray, params)
    hidden_BxF = np.tanh(params["embed"]["embedding"][tokens_BxL].sum(axis=1) @ params["in"]["kernel"])
    # Sums of 3 x 4 x 5 products below 1.
    expected_BxV = hidden_BxF @ params["head"]["kernel"]
    np.testing.assert_allclose(outputs(params, batch), expected_BxV, rtol=0, atol=60 * EPS)


def test_vmapped_rows_equal_lone_rows():
    rows = [jax.tree.map(lambda leaf: leaf.astype(np.float32), tree(seed)) for seed in (60, 70)]
    x_BxD, initial = normal(80, 3, 4).astype(np.float32), jax.tree.map(lambda leaf: leaf / 2, rows[0])
    align = functools.partial(laziness.projected_alignment, curved, n_probes=4)
    together = jax.jit(jax.vmap(align, in_axes=(0, None, None, None)))(
        jax.tree.map(lambda *each: np.stack(each), *rows), initial, x_BxD, jax.random.key(5)
    )
    for r, row in enumerate(rows):
        alone = projected_alignment(curved, row, initial, x_BxD, jax.random.key(5), 4)
        # Kernels are sums of some 50 products in another order, and centring cancels to no less than a tenth.
        np.testing.assert_allclose(together.value[r], alone.value, rtol=0, atol=10 * 100 * EPS)
