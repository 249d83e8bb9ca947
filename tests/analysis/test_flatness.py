import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lab import models
from lab.analysis import flatness, loss_fn
from lab.tasks.task import Batch

pytestmark = pytest.mark.usefixtures("float64")

EPS = 2.0**-52  # float64
ALPHAS_A = np.array([-0.5, -0.1, 0.0, 0.2, 0.5])


def is_bias(name):
    return name.endswith("bias")


def regression(params, batch):
    """Linear least squares on the parameters as one vector: L is quadratic with Hessian X^T W X / sum W."""
    theta_P = ravel_pytree(params)[0]
    error_B = batch.x_BxP @ theta_P - batch.y_B
    return jnp.sum(batch.weight_B * error_B**2) / 2, jnp.sum(batch.weight_B)


class Data(NamedTuple):
    x_BxP: np.ndarray
    y_B: np.ndarray
    weight_B: np.ndarray


def small_params(seed=0):
    rng = np.random.default_rng(seed)
    return {"layer": {"kernel": jnp.asarray(rng.standard_normal((3, 2))), "bias": jnp.asarray(rng.standard_normal(2))}}


def data(seed=1, n=24, n_params=8):
    """Examples of weights 0 to 3, so that minibatches of them weigh differently."""
    rng = np.random.default_rng(seed)
    return Data(
        x_BxP=rng.standard_normal((n, n_params)),
        y_B=rng.standard_normal(n),
        weight_B=rng.integers(0, 4, n).astype(float),
    )


def vector(tree):
    """Leaves in the order of their sorted names, as JAX ravels dicts."""
    return np.concatenate([np.ravel(leaf) for leaf in (tree["layer"]["bias"], tree["layer"]["kernel"])])


def quadratic(d, theta_P):
    """L, gradient and Hessian at theta, by numpy from all examples at once."""
    w_B = d.weight_B / d.weight_B.sum()
    error_B = d.x_BxP @ theta_P - d.y_B
    return np.sum(w_B * error_B**2) / 2, d.x_BxP.T @ (w_B * error_B), (d.x_BxP.T * w_B) @ d.x_BxP


def at_minimum(d):
    """The data with targets moved so that `small_params` are their exact solution."""
    return Data(x_BxP=d.x_BxP, y_B=d.x_BxP @ vector(small_params()), weight_B=d.weight_B)


# Sums of 24 examples and of 8 products, numbers below 100 in all: rounding is
# below (24 + 8) eps 100 for each of the few passes, here 20 of them at most.
ROUNDING = 1e5 * EPS


def test_tensor_normalized_direction_has_the_norm_of_every_chosen_tensor():
    params = small_params()
    direction = flatness.tensor_normalized(jax.random.key(0), params, lambda name: name.endswith("kernel"))
    kernel = np.asarray(params["layer"]["kernel"])
    # Norms of six numbers, twice, and a division.
    assert np.sum(np.asarray(direction["layer"]["kernel"]) ** 2) == pytest.approx(np.sum(kernel**2), rel=32 * EPS)
    assert not np.any(direction["layer"]["bias"])


def test_filter_normalized_direction_has_the_norm_of_every_filter():
    rng = np.random.default_rng(3)
    params = {
        "embed": {"token": {"embedding": rng.standard_normal((5, 4))}},
        "query": {"kernel": rng.standard_normal((4, 2, 3))},  # (D, H, K)
        "out": {
            "kernel": rng.standard_normal((4, 6)) * np.array([1, 1e-3, 0, 1, 1, 1]),
            "bias": rng.standard_normal(6),
        },
    }
    direction = jax.device_get(jax.jit(flatness.filter_normalized)(jax.random.key(1), params))
    axes = {("query", "kernel"): 0, ("out", "kernel"): 0, ("out", "bias"): 0}

    def norms(tree):
        by_leaf = {
            path: np.sqrt(np.sum(np.asarray(tree[path[0]][path[1]]) ** 2, axis=axis)) for path, axis in axes.items()
        }
        return by_leaf | {"rows": np.sqrt(np.sum(np.asarray(tree["embed"]["token"]["embedding"]) ** 2, axis=1))}

    for path, expected in norms(params).items():
        # Norms of at most six numbers, twice, a division and a product.
        np.testing.assert_allclose(norms(direction)[path], expected, rtol=32 * EPS)


def test_direction_of_a_leaf_is_gaussian_and_depends_on_its_own_name_only():
    params = {"a": {"kernel": jnp.ones((400, 3))}}
    d = np.asarray(flatness.tensor_normalized(jax.random.key(2), params)["a"]["kernel"]).ravel()
    # |theta|^2 = n: entries are normal to O(1/n). Kurtosis of n = 1200 normals is 3 +- sqrt(24/n); five of these.
    assert np.mean(d**4) == pytest.approx(3, abs=5 * np.sqrt(24 / 1200))
    assert abs(np.mean(d)) < 5 / np.sqrt(1200)
    both = jax.device_get(flatness.tensor_normalized(jax.random.key(2), params | {"b": {"kernel": jnp.ones((400, 3))}}))
    np.testing.assert_array_equal(both["a"]["kernel"].ravel(), d)
    correlation = np.mean(np.asarray(both["b"]["kernel"]).ravel() * d)
    assert abs(correlation) < 5 / np.sqrt(1200)


def test_rise_of_a_quadratic_along_a_line_is_its_taylor_series_however_the_data_are_cut():
    params, d = small_params(), data()
    direction = small_params(seed=5)
    _, g_P, h_PxP = quadratic(d, vector(params))
    d_P = vector(direction)
    expected_A = ALPHAS_A * (g_P @ d_P) + ALPHAS_A**2 / 2 * (d_P @ h_PxP @ d_P)
    for size in (24, 6):
        run = jax.jit(lambda b: flatness.along(regression, params, direction, ALPHAS_A, b))
        rise_A = jax.device_get(run(loss_fn.minibatches(d, size)))
        np.testing.assert_allclose(rise_A, expected_A, atol=ROUNDING)
        assert rise_A[2] == 0


def test_random_lines_of_a_quadratic_rise_by_its_scaled_trace():
    params, d = small_params(), at_minimum(data())
    batches = loss_fn.minibatches(d, 12)
    draw = flatness.tensor_normalized
    run = jax.jit(lambda p: flatness.random_lines(regression, p, jax.random.key(3), draw, 400, ALPHAS_A, batches))
    estimate = jax.device_get(run(params))
    _, _, h_PxP = quadratic(d, vector(params))
    bias, kernel = params["layer"]["bias"], params["layer"]["kernel"]
    # A direction uniform on the sphere of radius |theta_i| has covariance |theta_i|^2 / P_i; tensors are independent.
    variance_P = np.repeat([np.sum(bias**2) / 2, np.sum(kernel**2) / 6], [2, 6])
    expected_A = ALPHAS_A**2 / 2 * np.sum(np.diag(h_PxP) * variance_P)
    # Five standard errors, themselves known to 1 / sqrt(800).
    assert np.all(np.abs(estimate.value - expected_A) <= 5 * estimate.standard_error + ROUNDING)
    assert np.all(estimate.standard_error[[0, 1, 3, 4]] < 0.1 * expected_A[[0, 1, 3, 4]])


def test_standard_error_of_random_lines_is_the_spread_of_independent_runs():
    params, batches = small_params(), loss_fn.minibatches(data(), 24)
    run = jax.jit(
        jax.vmap(
            lambda key: flatness.random_lines(
                regression, params, key, flatness.filter_normalized, 8, ALPHAS_A[-1:], batches
            )
        )
    )
    runs = run(jax.random.split(jax.random.key(4), 200))
    # The spread of 200 values is known to 1 / sqrt(400), a mean square error to less than
    # 2 / sqrt(8 * 200) (kurtosis of a quadratic form below 15): five of their sum.
    assert np.std(runs.value) == pytest.approx(np.sqrt(np.mean(runs.standard_error**2)), rel=0.5)


def test_sam_rise_of_a_quadratic_is_rho_g_plus_half_rho_squared_curvature_along_g():
    params, d = small_params(), data()
    _, g_P, h_PxP = quadratic(d, vector(params))
    norm = np.linalg.norm(g_P)
    run = jax.jit(jax.vmap(lambda rho: flatness.sam(regression, params, loss_fn.minibatches(d, 6), rho)))
    for rho, value in zip((0.1, 2.0), run(jnp.array([0.1, 2.0])), strict=True):
        assert value == pytest.approx(rho * norm + rho**2 * (g_P @ h_PxP @ g_P) / (2 * norm**2), abs=ROUNDING)


def test_sam_moves_only_chosen_leaves_and_rises_by_zero_without_a_gradient():
    params, d = small_params(), data()
    batches = loss_fn.minibatches(d, 24)
    _, g_P, h_PxP = quadratic(d, vector(params))
    g_P[2:] = 0  # the bias comes first
    norm = np.linalg.norm(g_P)
    rise = jax.jit(lambda p: flatness.sam(regression, p, batches, 0.3, is_bias))(params)
    assert rise == pytest.approx(0.3 * norm + 0.3**2 * (g_P @ h_PxP @ g_P) / (2 * norm**2), abs=ROUNDING)
    assert (
        jax.jit(
            lambda p: flatness.sam(lambda params, batch: (0 * params["layer"]["bias"].sum(), 1.0), p, batches, 0.3)
        )(params)
        == 0
    )


def missing(h_PxP, start_P, rho, n_steps):
    """Bound on what ascent misses of lambda_max rho^2 / 2 after n steps from `start_P`.

    Per step, the ratio of the part along eigenvector i to that along the first shrinks by (1 + c x) / (1 + c) with
    x = lambda_i / lambda_1 and c = lambda_1 rho / |H delta| >= 1: by (1 + x) / 2 or less.
    """
    lambda_P, vectors_PxP = np.linalg.eigh(h_PxP)
    ratio_P = (vectors_PxP.T @ start_P / (vectors_PxP[:, -1] @ start_P)) ** 2
    return (
        rho**2 / 2 * np.sum((lambda_P[-1] - lambda_P) * ratio_P * ((1 + lambda_P / lambda_P[-1]) / 2) ** (2 * n_steps))
    )


def test_worst_case_at_the_minimum_of_a_quadratic_is_half_lambda_max_rho_squared():
    params, d = small_params(), at_minimum(data())
    batches = loss_fn.minibatches(d, 6)
    _, _, h_PxP = quadratic(d, vector(params))
    top = np.linalg.eigvalsh(h_PxP)[-1]
    key = jax.random.key(5)
    start_P = np.asarray(jax.random.normal(key, (8,), float))
    run = jax.jit(jax.vmap(lambda rho: flatness.worst_case(regression, params, key, batches, rho, 40)))
    for rho, rise in zip((0.05, 1.0), run(jnp.array([0.05, 1.0])), strict=True):
        assert rise <= top * rho**2 / 2 + ROUNDING
        assert rise >= top * rho**2 / 2 - missing(h_PxP, start_P, rho, 40) - ROUNDING
        assert missing(h_PxP, start_P, rho, 40) < 0.01 * top * rho**2 / 2


def test_adaptive_worst_case_of_a_quadratic_is_half_lambda_max_of_d_h_d():
    params, d = small_params(), at_minimum(data())
    _, _, h_PxP = quadratic(d, vector(params))
    scale_P = np.abs(vector(params))
    dhd_PxP = scale_P[:, None] * h_PxP * scale_P[None]
    top, rho = np.linalg.eigvalsh(dhd_PxP)[-1], 0.5
    key = jax.random.key(6)
    batches = loss_fn.minibatches(d, 8)
    rise = jax.jit(lambda p: flatness.worst_case_adaptive(regression, p, key, batches, rho, 40))(params)
    bound = missing(dhd_PxP, np.asarray(jax.random.normal(key, (8,), float)), rho, 40)
    assert top * rho**2 / 2 - bound - ROUNDING <= rise <= top * rho**2 / 2 + ROUNDING
    assert bound < 0.01 * top * rho**2 / 2


def test_worst_case_of_a_linear_loss_is_rho_g_after_enough_steps():
    # The direction turns towards g: tan of half the angle halves a step. cos >= 1 - 2 tan^2(half) and the start, a
    # random one in 8 dimensions, is not within 0.1 degree of -g: tan(half) <= 1200 2^-30.
    g_P = np.arange(1.0, 9.0)

    def linear(params, batch):
        return ravel_pytree(params)[0] @ g_P + 0 * jnp.sum(batch), 1.0

    rise = flatness.worst_case(linear, small_params(), jax.random.key(7), jnp.zeros((1, 1)), 3.0, 30)
    assert rise == pytest.approx(3 * np.linalg.norm(g_P), rel=3e-12)


def relu_net(params, batch):
    hidden_BxF = jax.nn.relu(batch.x_BxP @ params["in"]["kernel"] + params["in"]["bias"][None])
    return jnp.sum((hidden_BxF @ params["out"]["kernel"] - batch.y_B[:, None]) ** 2), 1.0 * len(batch.y_B)


def test_adaptive_worst_case_does_not_change_where_rescaling_leaves_the_function_alone_but_the_plain_one_does():
    rng = np.random.default_rng(8)
    a_F = np.array([16.0, 0.125, 32.0, 0.0625])  # powers of two: rescaling is exact
    params = {
        "in": {"kernel": jnp.asarray(rng.standard_normal((3, 4))), "bias": jnp.asarray(rng.standard_normal(4))},
        "out": {"kernel": jnp.asarray(rng.standard_normal((4, 1)))},
    }
    scaled = {
        "in": {"kernel": params["in"]["kernel"] * a_F[None], "bias": params["in"]["bias"] * a_F},
        "out": {"kernel": params["out"]["kernel"] / a_F[:, None]},
    }
    batches = loss_fn.minibatches(data(n=12, n_params=3), 12)
    rises = {}
    for measure in (flatness.worst_case, flatness.worst_case_adaptive):
        run = jax.jit(lambda p, measure=measure: measure(relu_net, p, jax.random.key(9), batches, 0.3, 5))
        rises[measure] = [float(run(p)) for p in (params, scaled)]
    plain, adaptive = rises.values()
    # Products with powers of two are exact; only sums of several terms may be reordered by the compiler.
    assert adaptive[0] == pytest.approx(adaptive[1], rel=ROUNDING)
    assert adaptive[0] > 0 and abs(plain[0] / plain[1] - 1) > 0.5


def test_weight_noise_adds_half_sigma_squared_times_the_scaled_trace_to_a_quadratic():
    params, d = small_params(), data()
    sigmas_S = np.array([0.0, 0.1, 1.0])
    loss, _, h_PxP = quadratic(d, vector(params))
    bias, kernel = params["layer"]["bias"], params["layer"]["kernel"]
    variance_P = np.repeat([np.mean(bias**2), np.mean(kernel**2)], [2, 6])
    for chosen_P, where, size in ((np.ones(8), loss_fn.everything, 24), (np.arange(8) < 2, is_bias, 6)):
        noise = functools.partial(flatness.weight_noise, regression, params, jax.random.key(10), sigmas_S, 1000)
        estimate = jax.device_get(jax.jit(functools.partial(noise, where=where))(loss_fn.minibatches(d, size)))
        expected_S = loss + sigmas_S**2 / 2 * np.sum(np.diag(h_PxP) * variance_P * chosen_P)
        assert np.all(np.abs(estimate.value - expected_S) <= 5 * estimate.standard_error + ROUNDING)
        assert estimate.standard_error[-1] < 0.1 * (expected_S[-1] - loss)  # the rise is resolved


def test_weight_noise_is_the_same_for_every_sigma():
    def linear(params, batch):
        return ravel_pytree(params)[0] @ np.arange(8.0) + 0 * jnp.sum(batch), 1.0

    run = functools.partial(flatness.weight_noise, linear, small_params(), jax.random.key(11))
    curve_S = run(np.array([0.0, 1.0, 2.0]), 1, jnp.zeros((1, 1))).value
    # One draw of a linear score is a straight line, only if the noise is shared.
    assert curve_S[2] - curve_S[1] == pytest.approx(float(curve_S[1] - curve_S[0]), rel=ROUNDING)


MODEL = models.EmbMLP(vocab_size=7, d_model=5, d_ff=6, activation="tanh")
N, LENGTH = 12, 3


def tokens(seed=14):
    rng = np.random.default_rng(seed)
    weights_BxL = np.zeros((N, LENGTH), np.float32)
    weights_BxL[:, -1] = rng.integers(0, 3, N)
    return Batch(
        tokens_BxL=rng.integers(0, 7, (N, LENGTH)).astype(np.int32),
        targets_BxL=rng.integers(0, 7, (N, LENGTH)).astype(np.int32),
        weights_BxL=weights_BxL,
        info={},
    )


def float32_params(model, batch):
    """Normal parameters, float32 as the cross-entropy is."""
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0), batch.tokens_BxL)
    rng = np.random.default_rng(17)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


@functools.cache
def emb_mlp():
    params = float32_params(MODEL, tokens())
    # Tokens of very different length: noise relative to each is not noise relative to their mean.
    length_Vx1 = np.float32([[0.05], [0.1], [0.2], [0.5], [1], [2], [4]])
    return params | {"embed": {"embedding": params["embed"]["embedding"] * length_Vx1}}


def by_hand(params, batch, noise_BxLxD):
    """Each sequence's cross-entropy and correctness of G(X) = tanh((sum of noised embeddings) W_1) W_2, by numpy."""
    e_BxLxD = np.asarray(params["embed"]["embedding"], np.float64)[batch.tokens_BxL]
    e_BxLxD = e_BxLxD + np.sqrt(np.mean(e_BxLxD**2, axis=2, keepdims=True)) * noise_BxLxD
    hidden_BxF = np.tanh(e_BxLxD.sum(axis=1) @ np.asarray(params["in"]["kernel"], np.float64))
    logits_BxV = hidden_BxF @ np.asarray(params["head"]["kernel"], np.float64)
    target_B = batch.targets_BxL[:, -1]
    nll_B = np.log(np.sum(np.exp(logits_BxV), axis=1)) - logits_BxV[np.arange(len(target_B)), target_B]
    return nll_B, np.argmax(logits_BxV, axis=1) == target_B


@pytest.mark.parametrize(("score_of", "which"), [(loss_fn.answer_loss_of, 0), (loss_fn.answer_accuracy_of, 1)])
def test_embedding_noise_is_the_mean_over_noised_embeddings(score_of, which):
    params, batch, score = emb_mlp(), tokens(), flatness.with_embedding_edit(MODEL, score_of)
    sigmas_S = np.array([0.0, 0.5, 2.0], np.float32)
    run = jax.jit(lambda b: flatness.embedding_noise(score, params, jax.random.key(13), sigmas_S, 300, b))
    estimate = jax.device_get(run(loss_fn.minibatches(batch, 4)))
    rng, weight_B = np.random.default_rng(14), batch.weights_BxL[:, -1] / batch.weights_BxL.sum()
    for s, sigma in enumerate(sigmas_S):
        draws = [
            np.sum(weight_B * by_hand(params, batch, sigma * rng.standard_normal((N, LENGTH, 5)))[which])
            for _ in range(300)
        ]
        # Two independent means of 300 draws: five standard errors of their difference; at sigma = 0 float32 rounding of
        # sums of at most 12 numbers below 10, relative 12 * 2^-24, and no spread.
        spread = np.hypot(estimate.standard_error[s], np.std(draws, ddof=1) / np.sqrt(300))
        assert abs(estimate.value[s] - np.mean(draws)) <= 5 * spread + 1e-5
        assert estimate.standard_error[s] == pytest.approx(np.std(draws, ddof=1) / np.sqrt(300), rel=0.3, abs=1e-6)


def test_embedding_noise_is_shared_by_all_sigma_proportional_to_rms_and_new_in_every_minibatch():
    scale_M = jnp.array([1.0, 3.0])

    # A score that reads the noise itself, of a vector of RMS `scale`; its weight tells the minibatches apart.
    def read(params, scale, edit):
        return edit(scale * jnp.ones((1, 2))).sum() - 2 * scale, 1 / (scale * scale)

    value_S = flatness.embedding_noise(read, {}, jax.random.key(15), jnp.array([1.0, 2.0]), 1, scale_M).value
    alone_M = [
        flatness.embedding_noise(read, {}, jax.random.key(15), jnp.array([1.0]), 1, scale_M[i : i + 1]).value[0]
        / scale_M[i] ** 3
        for i in range(2)
    ]
    assert value_S[1] == pytest.approx(2 * float(value_S[0]), rel=8 * EPS)  # shared by all sigma
    # sigma scale noise / (1 / scale^2), the noise being that of minibatch 0 in both
    assert alone_M[0] == pytest.approx(float(alone_M[1]), rel=8 * EPS)  # proportional to the RMS
    # A neighbour ten times longer changes nothing: the RMS is each vector's own.
    beside_R = jax.vmap(
        lambda length: flatness.embedding_noise(
            lambda _, length, edit: (edit(jnp.stack([jnp.ones(2), length * jnp.ones(2)]))[0].sum(), 1.0),
            {}, jax.random.key(15), jnp.ones(1), 1, length[None],
        ).value[0]
    )(jnp.array([1.0, 10.0]))  # fmt: skip
    assert beside_R[0] == beside_R[1]
    same_noise = alone_M[0] * (1 + 3) / (1 + 1 / 9)
    assert abs(value_S[0] / same_noise - 1) > 0.01  # other noise in the second minibatch


def test_embedding_noise_of_a_transformer_is_noise_at_what_its_first_block_reads():
    model = models.Transformer(
        vocab_size=7, max_length=LENGTH, n_layers=1, n_heads=1, d_model=4, d_head=4, d_ff=8, activation="gelu",
        norm="pre", use_bias=True, head_bias=False, final_norm=True, tied_head=False, readout="last",
    )  # fmt: skip
    batch = tokens()
    params = float32_params(model, batch)
    shift_1x1xD = jnp.arange(4, dtype=jnp.float32)[None, None]
    score = flatness.with_embedding_edit(model, loss_fn.answer_loss_of)
    edited = jax.jit(lambda p, scale: score(p, batch, lambda h_BxLxD: h_BxLxD + scale * shift_1x1xD))
    loss, weight = edited(params, 1.0)
    # The same edit made in the parameters: every position's embedding moved by the shift.
    moved = params | {
        "embed": params["embed"]
        | {"position": {"embedding": params["embed"]["position"]["embedding"] + shift_1x1xD[0]}}
    }
    expected, expected_weight = jax.jit(loss_fn.answer_loss(model))(moved, batch)
    # float32 through a forward pass of numbers of order one, in another order of two additions.
    assert loss == pytest.approx(float(expected), rel=1e-5) and weight == expected_weight
    assert abs(loss - edited(params, 0.0)[0]) > 1e-3 * loss  # and the edit does something


def test_answer_accuracy_is_the_weighted_fraction_of_right_answers():
    params, batch = emb_mlp(), tokens()
    total, weight = jax.jit(loss_fn.score(MODEL, loss_fn.answer_accuracy_of))(params, batch)
    _, correct_B = by_hand(params, batch, np.zeros((N, LENGTH, 5)))
    assert total == np.sum(batch.weights_BxL[:, -1] * correct_B) and weight == batch.weights_BxL.sum()
    assert 0 < total < weight
    diverged = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), params)
    untargeted = batch._replace(targets_BxL=0 * batch.targets_BxL)
    assert loss_fn.score(MODEL, loss_fn.answer_accuracy_of)(diverged, untargeted)[0] == 0


def test_bad_counts_are_refused():
    params, batches = small_params(), loss_fn.minibatches(data(), 24)
    key, draw = jax.random.key(0), flatness.tensor_normalized
    with pytest.raises(ValueError, match="n_directions=0"):
        flatness.random_lines(regression, params, key, draw, 0, ALPHAS_A, batches)
    with pytest.raises(ValueError, match="n_draws=0"):
        flatness.weight_noise(regression, params, key, ALPHAS_A, 0, batches)
    with pytest.raises(ValueError, match="n_steps=-1"):
        flatness.worst_case(regression, params, key, batches, 0.1, -1)


def test_vmapped_rows_equal_lone_rows():
    batches = loss_fn.minibatches(data(), 8)
    rows = [small_params(seed) for seed in (0, 1)]

    @jax.jit
    def measure(params):
        rho_rise = flatness.worst_case(regression, params, jax.random.key(1), batches, 0.1, 3)
        return rho_rise, flatness.sam(regression, params, batches, 0.1)

    together = jax.vmap(measure)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))
    for r, row in enumerate(rows):
        np.testing.assert_allclose([v[r] for v in together], measure(row), rtol=ROUNDING)
