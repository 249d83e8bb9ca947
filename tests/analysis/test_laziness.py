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
ntk = jax.jit(laziness.ntk, static_argnums=(0, 3))
traced_ntk = jax.jit(laziness.traced_ntk, static_argnums=0)
projected_ntk = jax.jit(laziness.projected_ntk, static_argnums=(0, 4))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def linear(params, x_BxD):
    return x_BxD @ params["w"]


def two_layers(params, x_BxD):
    return x_BxD @ params["in"] @ params["out"]


def curved(params, x_BxD):
    return jnp.tanh(x_BxD @ params["in"] + params["bias"][None]) @ params["out"]


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


def test_ntk_of_a_linear_model_is_the_inner_product_of_inputs(float64):
    x_BxD = normal(30, 5, 4)
    expected = np.kron(x_BxD @ x_BxD.T, np.eye(3))
    found = ntk(linear, {"w": normal(31, 4, 3)}, x_BxD, 4)  # 15 columns: a chunk is left over
    # Sums of 4 products below 10.
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * EPS64)
    np.testing.assert_allclose(traced_ntk(linear, {"w": normal(31, 4, 3)}, x_BxD), x_BxD @ x_BxD.T, atol=100 * EPS64)


def two_layer_kernel(params, x_BxD):
    """f = x A B: df/dA contracts to (x x') B^T B, df/dB to (x A)(x' A)^T 1."""
    hidden_BxF, out = x_BxD @ params["in"], params["out"]
    return np.kron(x_BxD @ x_BxD.T, out.T @ out) + np.kron(hidden_BxF @ hidden_BxF.T, np.eye(out.shape[1]))


def test_ntk_of_a_two_layer_linear_net_is_the_closed_form(float64):
    params, x_BxD = tree(32), normal(33, 5, 4)
    expected = two_layer_kernel(params, x_BxD)
    bound = 200 * np.abs(expected).max() * EPS64  # products and sums of 4 x 6 x 6 terms
    np.testing.assert_allclose(ntk(two_layers, params, x_BxD, 32), expected, rtol=0, atol=bound)
    traced = np.einsum("acbc->ab", expected.reshape(5, 3, 5, 3)) / 3
    np.testing.assert_allclose(traced_ntk(two_layers, params, x_BxD), traced, rtol=0, atol=bound)


def test_ntk_is_the_gram_matrix_of_finite_differences(float64):
    params, x_BxD = tree(34), normal(35, 3, 4)
    columns, step = [], 1e-5
    for name, leaf in params.items():
        for i in np.ndindex(leaf.shape):
            shift = np.zeros_like(leaf)
            shift[i] = step
            up, down = (curved(params | {name: leaf + sign * shift}, x_BxD) for sign in (1, -1))
            columns.append(np.ravel(up - down) / (2 * step))
    jacobian_NxP = np.stack(columns, axis=1)
    # Central differences err by step^2 f''' / 6 and eps / step, some 2e-10 in a derivative below 10, of 48 parameters.
    np.testing.assert_allclose(ntk(curved, params, x_BxD, 32), jacobian_NxP @ jacobian_NxP.T, rtol=0, atol=1e-7)


def test_projected_ntk_is_the_traced_one_within_its_error(float64):
    params, x_BxD = tree(36, n_out=40), normal(37, 4, 4)
    exact = traced_ntk(curved, params, x_BxD)
    value, error = projected_ntk(curved, params, x_BxD, jax.random.key(0), 200)
    deviation = (value - exact) / error
    # Ten different entries, each within 4 of its standard errors; together they are neither all 0 nor far too small.
    assert np.abs(deviation).max() < 4
    assert 0.3 < np.sqrt(np.mean(np.square(deviation))) < 2
    assert np.all(error < 0.2 * np.abs(exact).max())


def test_projected_ntk_of_one_output_needs_no_luck(float64):
    params, x_BxD = tree(38, n_out=1), normal(39, 4, 4)
    value, error = projected_ntk(curved, params, x_BxD, jax.random.key(1), 3)
    # A sign squared is 1: no variance, and each entry is a sum of 48 products below 100.
    np.testing.assert_allclose(value, traced_ntk(curved, params, x_BxD), rtol=0, atol=48 * 100 * EPS64)
    np.testing.assert_allclose(error, 0, atol=48 * 100 * EPS64)


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
    kernels = [traced_ntk(curved, params, x_BxD) for params in (now, then)]
    exact = centred_kernel_alignment(*kernels)
    assert exact < 0.95
    assert 0 < rich.standard_error < 0.02
    assert abs(rich.value - exact) < 4 * rich.standard_error


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
    # Example by example and column by column are two routes to one kernel.
    full = np.asarray(ntk(outputs, params, batch, 32)).reshape(2, 7, 2, 7)
    traced = traced_ntk(outputs, params, batch)
    np.testing.assert_allclose(traced, np.einsum("acbc->ab", full) / 7, rtol=0, atol=200 * EPS * np.abs(full).max())


def test_vmapped_rows_equal_lone_rows():
    rows = [jax.tree.map(lambda leaf: leaf.astype(np.float32), tree(seed)) for seed in (60, 70)]
    x_BxD = normal(80, 3, 4).astype(np.float32)
    kernel = functools.partial(laziness.traced_ntk, curved)
    together = jax.jit(jax.vmap(kernel, in_axes=(0, None)))(jax.tree.map(lambda *each: np.stack(each), *rows), x_BxD)
    for r, row in enumerate(rows):
        # Sums of some 50 products in another order.
        alone = traced_ntk(curved, row, x_BxD)
        np.testing.assert_allclose(together[r], alone, rtol=0, atol=100 * EPS * np.abs(alone).max())
