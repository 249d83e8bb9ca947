import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.analysis import curvature, sharpness
from lab.analysis.loss_fn import everything, flatten, minibatches

EPS = 2.0**-53
D, F, V, N = 4, 6, 3, 12  # inputs, hidden units, classes, examples


class Data(NamedTuple):
    x_NxD: jax.Array
    y_N: jax.Array
    weight_N: jax.Array


def data(dtype=np.float64):
    """Weights from 0 to 3: minibatches of very different weight."""
    rng = np.random.default_rng(0)
    weight_N = np.sort(rng.uniform(0, 3, N))
    return Data(rng.standard_normal((N, D)).astype(dtype), rng.integers(0, V, N), weight_N.astype(dtype))


def mlp(seed=1, dtype=np.float64):
    rng = np.random.default_rng(seed)
    first = {"kernel": rng.standard_normal((D, F)), "bias": rng.standard_normal(F)}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), {"in": first, "out": {"kernel": rng.standard_normal((F, V))}})


def outputs(activation):
    def function(params, batch):
        pre_NxF = batch.x_NxD @ params["in"]["kernel"] + params["in"]["bias"][None]
        return activation(pre_NxF) @ params["out"]["kernel"]

    return function


def cross_entropy(z_NxV, batch):
    log_p_NxV = jax.nn.log_softmax(z_NxV)
    nll_N = -jnp.take_along_axis(log_p_NxV, batch.y_N[:, None], axis=1)[:, 0]
    return jnp.sum(nll_N * batch.weight_N), jnp.sum(batch.weight_N)


def loss_of(function):
    return lambda params, batch: cross_entropy(function(params, batch), batch)


tanh_loss = loss_of(outputs(jnp.tanh))
linear_outputs = lambda params, batch: batch.x_NxD @ params["kernel"]  # noqa: E731


def dense(operator):
    matvec, vector_P = operator
    return np.asarray(jax.jit(jax.vmap(matvec))(jnp.eye(vector_P.size, dtype=vector_P.dtype)))


def mean_by_hand(loss, batch, rebuild):
    """The whole batch at once, as a function of the vector."""
    return lambda vector_P: (lambda total, weight: total / weight)(*loss(rebuild(vector_P), batch))


def slopes(function, at_P, step=1e-5):
    """Rows d function / d at_p by central differences; errors of step^2 = 1e-10 and EPS / step = 1e-11, relative."""
    function = jax.jit(function)
    steps_PxP = step * np.eye(at_P.size)
    return np.stack([(function(at_P + d_P) - function(at_P - d_P)) / (2 * step) for d_P in steps_PxP])


@pytest.mark.parametrize(
    ("size", "where"), [(N, everything), (4, lambda name: name.endswith("/kernel"))], ids=["whole", "cut kernels"]
)
def test_hessian_of_a_choice_is_its_block_of_the_dense_one_however_the_data_are_cut(float64, size, where):
    params, batch = mlp(), data()
    whole_P, rebuild = flatten(params)
    expected_PxP = np.asarray(jax.jit(jax.hessian(mean_by_hand(tanh_loss, batch, rebuild)))(whole_P))
    kept = flatten(
        {name: {k: np.full(a.shape, where(f"{name}/{k}")) for k, a in d.items()} for name, d in params.items()}
    )
    (chosen,) = np.nonzero(kept[0])
    result = dense(curvature.hessian(tanh_loss, params, minibatches(batch, size), where))
    # Entries of order one, sums of N F terms.
    np.testing.assert_allclose(result, expected_PxP[np.ix_(chosen, chosen)], rtol=0, atol=100 * N * F * EPS)


def test_hessian_of_a_transformer_is_the_slope_of_its_gradient(float64):
    # Without LayerNorm: Flax promotes float64 there itself, which strict forbids.
    model = models.Transformer(
        vocab_size=5, max_length=3, n_layers=1, n_heads=1, d_model=4, d_head=4, d_ff=4, activation="gelu", norm="none",
        use_bias=False, head_bias=False, final_norm=False, tied_head=False, readout="last",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tokens_BxL = jnp.array(rng.integers(0, 5, (4, 3)))
    params = jax.jit(lambda key: models.init(model, key, tokens_BxL))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)

    def loss(params, tokens_BxL):
        logits_BxV = models.forward(model, params, tokens_BxL)[0][:, 0]
        return -jnp.sum(jax.nn.log_softmax(logits_BxV)[:, 0]), jnp.float64(len(tokens_BxL))

    matvec, vector_P = curvature.hessian(loss, params, minibatches(tokens_BxL, 2))
    _, rebuild = flatten(params)
    gradient = jax.jit(jax.grad(mean_by_hand(loss, tokens_BxL, rebuild)))
    v_P = rng.standard_normal(vector_P.size)
    near_P, far_P = ((gradient(vector_P + h * v_P) - gradient(vector_P - h * v_P)) / (2 * h) for h in (4e-6, 8e-6))
    # Central differences err by c h^2: the near one by a third of the step between the two. Rounding is 1e-8.
    bound = np.abs(far_P - near_P).max()
    np.testing.assert_allclose(jax.jit(matvec)(v_P), near_P, rtol=0, atol=bound)
    assert bound < 1e-6 * np.abs(near_P).max()


def test_hessian_of_linear_regression_is_the_second_moment_of_its_inputs(float64):
    batch = data()

    def squares(params, batch):
        error_N = batch.x_NxD @ params["kernel"] - batch.weight_N
        return jnp.sum(jnp.square(error_N)) / 2, jnp.asarray(float(len(error_N)))

    result = dense(curvature.hessian(squares, {"kernel": jnp.ones(D)}, minibatches(batch, 3)))
    np.testing.assert_allclose(result, batch.x_NxD.T @ batch.x_NxD / N, rtol=0, atol=10 * N * EPS)


def test_hessian_and_gauss_newton_of_logistic_regression_are_the_closed_form(float64):
    batch = data()
    params = {"kernel": jnp.linspace(-1.0, 1.0, D)}

    def logistic(z_N, batch):
        return jnp.sum(jax.nn.softplus(z_N) - jnp.where(batch.y_N > 0, z_N, 0)), jnp.asarray(float(len(z_N)))

    p_N = 1 / (1 + np.exp(-batch.x_NxD @ np.linspace(-1, 1, D)))
    expected_DxD = (batch.x_NxD.T * (p_N * (1 - p_N))) @ batch.x_NxD / N
    by_loss = curvature.hessian(lambda p, b: logistic(linear_outputs(p, b), b), params, minibatches(batch, 3))
    for operator in (by_loss, curvature.gauss_newton(linear_outputs, logistic, params, minibatches(batch, 3))):
        np.testing.assert_allclose(dense(operator), expected_DxD, rtol=0, atol=10 * N * EPS)


@pytest.mark.parametrize("size", [N, 3])
def test_weighted_softmax_regression_has_the_closed_form_of_both(float64, size):
    batch = data()
    kernel_DxV = np.random.default_rng(2).standard_normal((D, V))
    z_NxV = batch.x_NxD @ kernel_DxV
    p_NxV = np.exp(z_NxV) / np.exp(z_NxV).sum(axis=1, keepdims=True)
    curved_NxVxV = p_NxV[:, :, None] * np.eye(V) - p_NxV[:, :, None] * p_NxV[:, None, :]
    share_N = batch.weight_N / batch.weight_N.sum()
    expected = np.einsum("n,nd,nvw,ne->dvew", share_N, batch.x_NxD, curved_NxVxV, batch.x_NxD).reshape(D * V, D * V)
    params, batches = {"kernel": jnp.array(kernel_DxV)}, minibatches(batch, size)
    for operator in (
        curvature.hessian(loss_of(linear_outputs), params, batches),
        curvature.gauss_newton(linear_outputs, cross_entropy, params, batches),
    ):
        np.testing.assert_allclose(dense(operator), expected, rtol=0, atol=10 * N * EPS)


def test_gauss_newton_of_an_mlp_is_j_h_j_and_positive_semidefinite_where_the_hessian_is_not(float64):
    params, batch, function = mlp(), data(), outputs(jnp.tanh)
    vector_P, rebuild = flatten(params)
    j_PxNxV = slopes(lambda vector_P: function(rebuild(vector_P), batch), vector_P)
    p_NxV = np.asarray(jax.nn.softmax(function(params, batch)))
    h_NxVxV = p_NxV[:, :, None] * np.eye(V) - p_NxV[:, :, None] * p_NxV[:, None, :]
    expected = np.einsum("n,pnv,nvw,qnw->pq", batch.weight_N / batch.weight_N.sum(), j_PxNxV, h_NxVxV, j_PxNxV)
    result = dense(curvature.gauss_newton(function, cross_entropy, params, minibatches(batch, 4)))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-8)  # 1e-10 of slopes of order one, up to 100 times
    assert np.linalg.eigvalsh(result)[0] > -1e-12  # rounding of entries of order one
    assert np.linalg.eigvalsh(dense(curvature.hessian(tanh_loss, params, minibatches(batch, 4))))[0] < -1e-3


def test_gradient_is_the_slope_of_the_mean_loss_and_second_moment_that_of_each_minibatch_squared(float64):
    params, batch = mlp(), data()
    vector_P, rebuild = flatten(params)
    batches = minibatches(batch, 4)
    expected_P = slopes(mean_by_hand(tanh_loss, batch, rebuild), vector_P)
    parts = [Data(*(leaf[i : i + 4] for leaf in batch)) for i in range(0, N, 4)]
    squares = [np.square(slopes(mean_by_hand(tanh_loss, part, rebuild), vector_P)) for part in parts]
    # Slopes are good to 1e-9.
    np.testing.assert_allclose(jax.jit(lambda: curvature.gradient(tanh_loss, params, batches))(), expected_P, atol=1e-8)
    second_P = jax.jit(lambda: curvature.second_moment(tanh_loss, params, batches, 4))()
    np.testing.assert_allclose(second_P, np.mean(squares, axis=0), rtol=0, atol=1e-8)
    of_biases_F = curvature.gradient(tanh_loss, params, batches, lambda name: name == "in/bias")
    np.testing.assert_allclose(of_biases_F, expected_P[:F], rtol=0, atol=1e-8)  # `in/bias` is the first leaf


def test_second_moment_at_any_batch_size_is_that_of_its_minibatches_on_average(float64):
    """Over all ways to draw two minibatches of two from three examples, against all ways to draw a training batch."""
    x_ExD = np.random.default_rng(5).standard_normal((3, 2))

    def linear(params, batch):  # its gradient is the mean of x
        return jnp.sum(batch @ params["w"]), jnp.asarray(float(len(batch)))

    def estimate(index_MxB, batch_size):
        return curvature.second_moment(linear, {"w": jnp.ones(2)}, jnp.asarray(x_ExD)[index_MxB], batch_size)

    ways_WxMxB = np.array(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2)
    for batch_size in (1, 2, 3, 4):
        found_WxD = jax.jit(jax.vmap(functools.partial(estimate, batch_size=batch_size)))(ways_WxMxB)
        drawn_WxB = np.array(list(itertools.product(range(3), repeat=batch_size)))
        expected_D = np.mean(np.square(x_ExD[drawn_WxB].mean(axis=1)), axis=0)
        # Means of 81 numbers below ten.
        np.testing.assert_allclose(np.mean(found_WxD, axis=0), expected_D, rtol=0, atol=10 * 81 * EPS)
        assert (np.asarray(found_WxD) >= -10 * EPS).all()


@pytest.mark.parametrize("batch_size", [0, N + 1])
def test_second_moment_of_batches_that_were_not_seen_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} from 3 minibatches of 4"):
        curvature.second_moment(tanh_loss, mlp(), minibatches(data(), 4), batch_size)
    with pytest.raises(ValueError, match=f"from 1 minibatches of {N}: want at least two"):
        curvature.second_moment(tanh_loss, mlp(), minibatches(data(), N), 4)


def test_preconditioned_is_symmetric_with_the_spectrum_of_the_scaled_hessian():
    rng = np.random.default_rng(0)
    a_PxP = rng.standard_normal((8, 8)).astype(np.float32)
    h_PxP, scale_P = a_PxP + a_PxP.T, rng.uniform(0.5, 2, 8).astype(np.float32)
    matvec = curvature.preconditioned(lambda v_P: h_PxP @ v_P, jnp.asarray(scale_P))
    result = dense((matvec, jnp.asarray(scale_P)))
    bound = 8 * 2.0**-23 * np.linalg.norm(h_PxP) / 0.5  # entries good to a few roundings, divided by 0.5 at most
    np.testing.assert_allclose(result, result.T, rtol=0, atol=bound)
    expected_P = np.sort(np.linalg.eigvals(h_PxP.astype(np.float64) / scale_P[:, None]).real)
    np.testing.assert_allclose(np.linalg.eigvalsh(result), expected_P, rtol=0, atol=bound)


def relu_hessian(params, batch):
    return np.linalg.eigvalsh(dense(curvature.hessian(loss_of(outputs(jax.nn.relu)), params, minibatches(batch, 4))))


def test_turning_coordinates_keeps_the_spectrum_and_rescaling_a_relu_net_does_not(float64):
    params, batch = mlp(), data()
    spectrum_P = relu_hessian(params, batch)
    turn_DxD = np.linalg.qr(np.random.default_rng(3).standard_normal((D, D)))[0]
    turned = {"in": {**params["in"], "kernel": turn_DxD.T @ params["in"]["kernel"]}, "out": params["out"]}
    turned_data = batch._replace(x_NxD=batch.x_NxD @ turn_DxD)
    np.testing.assert_allclose(relu_hessian(turned, turned_data), spectrum_P, rtol=0, atol=1e-12)
    # Dinh et al. 2017: the same function, arbitrarily sharp.
    rescaled = {"in": jax.tree.map(lambda w: w / 10, params["in"]), "out": {"kernel": params["out"]["kernel"] * 10}}
    np.testing.assert_allclose(*(outputs(jax.nn.relu)(p, batch) for p in (params, rescaled)), rtol=0, atol=1e-13)
    # The input's block is multiplied by 100, and the top eigenvalue is at least a block's.
    assert relu_hessian(rescaled, batch)[-1] > 10 * spectrum_P[-1]


def test_top_eigenvalues_of_rows_in_single_precision_are_those_of_the_dense_hessian_in_double():
    batches = minibatches(data(np.float32), 4)
    rows = [mlp(seed, np.float32) for seed in (1, 2)]

    def measure(params):
        operator = curvature.hessian(tanh_loss, params, batches)
        return sharpness.extremes(*operator, jax.random.key(0), 2, 40, 1e-4)

    top, bottom = jax.jit(jax.vmap(measure))(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
    assert top.converged_K.all()
    assert bottom.converged_K.all()
    with jax.enable_x64(True):
        batch = jax.tree.map(lambda leaf: leaf.astype(np.float64), data(np.float32))._replace(y_N=data().y_N)
        exact = [jax.tree.map(lambda leaf: leaf.astype(np.float64), row) for row in rows]
        _, rebuild = flatten(exact[0])
        hessian = jax.jit(jax.hessian(mean_by_hand(tanh_loss, batch, rebuild)))
        for r, row in enumerate(exact):
            eigenvalue_P = np.linalg.eigvalsh(hessian(flatten(row)[0]))
            # Products are good to about 10 roundings of the largest eigenvalue; three times that is stated.
            bound = 30 * 2.0**-23 * eigenvalue_P[-1]
            np.testing.assert_allclose(top.value_K[r], eigenvalue_P[::-1][:2], rtol=0, atol=bound)
            np.testing.assert_allclose(bottom.value_K[r], eigenvalue_P[:2], rtol=0, atol=bound)


@pytest.mark.parametrize(
    "function", [curvature.hessian, curvature.gradient, functools.partial(curvature.second_moment, batch_size=4)]
)
def test_choosing_nothing_is_refused(function):
    with pytest.raises(ValueError, match="in/kernel"):
        function(tanh_loss, mlp(dtype=np.float32), minibatches(data(np.float32), 4), where=lambda name: False)
