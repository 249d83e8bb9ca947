import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import normal

from lab.analysis import description_length as module
from lab.analysis.description_length import intrinsic_dimension, ratio_of_sums
from lab.analysis.loss_fn import minibatches

EPS = 2.0**-23  # float32
quantize = jax.jit(module.quantize)
count_sketch = jax.jit(module.count_sketch, static_argnums=1)  # the number of columns is traced
by_quantization = jax.jit(module.by_quantization, static_argnames=("loss", "bits"))


def on_grid(bits, step, shape=(40, 3)):
    """Random multiples of the step, the largest among them."""
    largest = 2 ** (bits - 1) - 1
    integers = np.random.default_rng(bits).integers(-largest, largest + 1, shape)
    integers[0, 0] = -largest
    return (integers * step).astype(np.float32)


def squared_error(params, batch):
    """Sum over examples of |x W + b - y|^2."""
    x_BxI, y_BxO = batch
    error_BxO = x_BxI @ params["kernel"] + params["bias"][None] - y_BxO
    return jnp.sum(jnp.square(error_BxO)), jnp.asarray(len(x_BxI), x_BxI.dtype)


def regression(kernel_IxO, bias_O):
    """Data that these parameters fit exactly, in minibatches of 4."""
    x_NxI = normal(9, 12, kernel_IxO.shape[0])
    return minibatches((jnp.asarray(x_NxI), jnp.asarray(x_NxI @ kernel_IxO + bias_O)), 4)


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 12])
def test_tensor_on_the_grid_of_b_bits_is_kept_by_b_and_not_by_fewer(bits):
    leaf = on_grid(bits, 0.01)
    # scale, round, unscale: three roundings of a number up to max|w|
    np.testing.assert_allclose(quantize(leaf, bits), leaf, rtol=4 * EPS, atol=0)
    if bits > 2:
        step = 0.01 * (2 ** (bits - 1) - 1) / (2 ** (bits - 2) - 1)
        assert np.abs(quantize(leaf, bits - 1) - leaf).max() > step / 6


@pytest.mark.parametrize("scale", [1.0, 2.0**-100])
@pytest.mark.parametrize("bits", [2, 3, 7, 12])
def test_quantized_entry_moves_by_half_a_step_at_most_and_is_a_multiple_of_it(bits, scale):
    params = {"a": normal(0, 30, 4) * np.float32(scale), "b": 100 * normal(1, 8) * np.float32(scale)}
    for name, leaf in jax.device_get(quantize(params, bits)).items():
        largest = np.abs(params[name].astype(np.float64)).max()
        step = largest / (2 ** (bits - 1) - 1)
        rounding = 4 * EPS * largest
        assert np.abs(leaf.astype(np.float64) - params[name]).max() <= step / 2 + rounding
        multiples = np.asarray(leaf, np.float64) / step
        np.testing.assert_allclose(multiples, np.round(multiples), rtol=0, atol=rounding / step)
        assert len(np.unique(np.round(multiples))) <= 2**bits - 1


def test_zero_tensor_stays_zero_and_keeps_its_dtype():
    result = quantize({"w": np.zeros((2, 2), np.float32)}, 4)["w"]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, 0)


def test_fewest_bits_are_those_the_weights_were_made_of():
    kernel_IxO, bias_O = on_grid(5, 0.03, (6, 3)), on_grid(3, 0.2, (1, 3))[0]
    params, batches = {"kernel": kernel_IxO, "bias": bias_O}, regression(kernel_IxO, bias_O)
    result = by_quantization(squared_error, params, batches, 1e-6)
    # The bias' 3-bit grid (multiples of a third of its largest) is inside the 5-bit one: 15 / 3 = 5.
    assert result["bits"] == 5
    assert result["loss_by_bits"][module.BITS.index(4)] > 1e-3
    assert result["description_length"] == 5 * (18 + 3) + 2 * 32


def test_curve_is_that_of_numpys_quantized_regression_in_float64():
    kernel_IxO, bias_O = normal(1, 6, 3), normal(2, 3)
    batches = regression(kernel_IxO, bias_O)
    x_NxI, y_NxO = (np.concatenate(np.asarray(part, np.float64)) for part in batches)

    def rounded(leaf, bits):
        grid = np.linspace(-1, 1, 2**bits - 1) * np.abs(leaf).max()
        return grid[np.argmin(np.abs(leaf[..., None] - grid), axis=-1)]

    bits = (2, 3, 4, 6, 8)
    expected = [np.sum((x_NxI @ rounded(kernel_IxO, b) + rounded(bias_O, b) - y_NxO) ** 2) / 12 for b in bits]
    result = by_quantization(squared_error, {"kernel": kernel_IxO, "bias": bias_O}, batches, 0.01, bits)
    # Errors of 6-term sums of numbers below 10 are below d = 60 eps; the loss, a mean of 3 squares a row, then errs by
    # 2 sqrt(3 loss) d + 3 d^2.
    for loss, reference in zip(result["loss_by_bits"], expected, strict=True):
        d = 60 * EPS
        assert loss == pytest.approx(reference, abs=2 * np.sqrt(3 * reference) * d + 3 * d**2 + 40 * EPS * reference)
    assert result["bits"] == bits[np.flatnonzero(np.array(expected) <= 0.01)[0]]


def test_no_bits_suffice_for_a_tolerance_below_every_error():
    kernel_IxO, bias_O = normal(1, 6, 3), normal(2, 3)
    params, batches = {"kernel": kernel_IxO, "bias": bias_O}, regression(kernel_IxO, bias_O)
    result = by_quantization(squared_error, params, batches, 0.0, (2, 3))
    assert np.isinf(result["bits"]) and np.isinf(result["description_length"])


@pytest.mark.parametrize("bits", [(), (1, 2), (3, 2), (2, 17)])
def test_bits_out_of_order_or_range_are_refused(bits):
    with pytest.raises(ValueError, match="ascending whole numbers from 2 to 16"):
        module.by_quantization(squared_error, {}, None, 0.1, bits)


def dense(column_P, entry_P, n_dims):
    """P x d matrix of a sketch."""
    matrix = np.zeros((len(column_P), n_dims))
    matrix[np.arange(len(column_P)), column_P] = entry_P
    return matrix


@pytest.mark.parametrize("n_dims", [1, 5, 7, 12, 13])
def test_columns_of_a_sketch_are_orthonormal(n_dims):
    sketch = dense(*count_sketch(jax.random.key(n_dims), 13, n_dims), n_dims)
    # a column is n equal entries, each rounded to eps: its squared length errs by 2 eps + n eps / n
    np.testing.assert_allclose(sketch.T @ sketch, np.eye(n_dims), rtol=0, atol=4 * EPS)


def test_sketch_prefers_no_direction_on_average():
    n_params, n_dims, n = 7, 3, 1000
    keys = jax.random.split(jax.random.key(0), n)
    sketches = jax.device_get(jax.vmap(count_sketch, in_axes=(0, None, None))(keys, n_params, n_dims))
    projections = [dense(*sketch, n_dims) @ dense(*sketch, n_dims).T for sketch in zip(*sketches, strict=True)]
    # P P^T has trace d and exchangeable diagonal: mean d / P, entries 1/2 or 1/3, deviation below 1/12. Off the
    # diagonal the sign makes the mean 0, the deviation below 1/2. Five standard errors.
    mean = np.mean(projections, axis=0)
    np.testing.assert_allclose(np.diag(mean), n_dims / n_params, rtol=0, atol=5 / 12 / np.sqrt(n))
    np.testing.assert_allclose(mean - np.diag(np.diag(mean)), 0, rtol=0, atol=5 / 2 / np.sqrt(n))


N_CONSTRAINED, N_PARAMS, DIMS = 4, 24, (1, 3, 4, 8, 24)
CONSTRAINTS_KxP = normal(3, N_CONSTRAINED, N_PARAMS) / np.float32(np.sqrt(N_PARAMS))
START = {"a": normal(4, 4, 3), "b": normal(5, 12)}


def constrained(params, batch):
    """|A theta|^2 / 2 a unit of weight: zero on a subspace of codimension 4, for any positive weights."""
    error_K = jnp.asarray(CONSTRAINTS_KxP) @ jnp.concatenate([params["a"].ravel(), params["b"]])
    return jnp.sum(jnp.square(error_K)) / 2 * jnp.sum(batch), jnp.sum(batch)


def sample(key):
    return jax.random.uniform(key, (3,), minval=0.5, maxval=1.5)


@pytest.mark.usefixtures("standard_promotion")
def test_loss_that_constrains_k_directions_is_solved_from_dimension_k_on_and_no_sooner():
    key = jax.random.key(0)
    solve = jax.jit(lambda key: module.subspace_losses(constrained, START, sample, key, DIMS, 1500, 0.05, 2))
    result = solve(key)
    theta_P = np.concatenate([START["a"].ravel(), START["b"]]).astype(np.float64)
    start = np.sum((CONSTRAINTS_KxP @ theta_P) ** 2) / 2
    for d, n_dims in enumerate(DIMS):
        # which sketch was drawn, to know the best any training could reach in it
        sketch = dense(*count_sketch(jax.random.split(key, 3)[0], N_PARAMS, n_dims), n_dims)
        best_z = np.linalg.lstsq(CONSTRAINTS_KxP @ sketch, -CONSTRAINTS_KxP @ theta_P, rcond=None)[0]
        best = np.sum((CONSTRAINTS_KxP @ (theta_P + sketch @ best_z)) ** 2) / 2
        assert (best > 0.01 * start) == (n_dims < N_CONSTRAINED)  # the theorem, by least squares
        # Nothing below the minimum but for rounding; training ends within 1e-4 of the start's loss above it.
        assert best - 1e-5 * start <= result["loss"].value[d] <= best + 1e-4 * start
    assert intrinsic_dimension(result["loss"].value, DIMS, 1e-3 * start) == N_CONSTRAINED
    assert np.isinf(intrinsic_dimension(result["loss"].value, DIMS, -1.0))
    # All dimensions see the same first batch, at z = 0: the loss of the initial parameters.
    np.testing.assert_allclose(result["train_loss"][:, 0], start, rtol=32 * EPS)


@pytest.mark.usefixtures("standard_promotion")
def test_changing_the_learning_rate_compiles_nothing_and_zero_trains_nothing():
    n_traces = 0

    @jax.jit
    def solve(learning_rate):
        nonlocal n_traces
        n_traces += 1
        return module.subspace_losses(constrained, START, sample, jax.random.key(0), (2, 4), 5, learning_rate, 2)

    trained, untrained = solve(0.1), solve(0.0)
    assert n_traces == 1
    np.testing.assert_allclose(untrained["train_loss"], untrained["train_loss"][0, 0], rtol=32 * EPS)
    assert (trained["loss"].value < untrained["loss"].value).all()


@pytest.mark.usefixtures("standard_promotion")
def test_float64_models_are_measured_in_float64(float64):
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) + 1 / 3, START)

    def loss(params, batch):
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)) * jnp.sum(batch), jnp.sum(batch)

    result = jax.jit(lambda: module.subspace_losses(loss, start, sample, jax.random.key(0), (2, 24), 3, 0.0, 2))()
    expected = sum(np.sum(np.square(leaf)) for leaf in start.values())
    np.testing.assert_allclose(result["loss"].value, expected, rtol=32 * 2.0**-52)  # a sum of 24 terms
    largest = np.abs(start["b"]).max()
    multiples = module.quantize(start, 8)["b"] / largest * 127
    np.testing.assert_allclose(multiples, np.round(multiples), rtol=0, atol=4 * 127 * 2.0**-52)  # four roundings


@pytest.mark.parametrize(("dims", "n_steps", "n_eval"), [((0, 2), 1, 2), ((4, 2), 1, 2), ((25,), 1, 2), ((2,), 0, 2)])
def test_dims_and_steps_out_of_range_are_refused(dims, n_steps, n_eval):
    with pytest.raises(ValueError, match=r"ascending whole numbers from 1 to 24|at least 1 step and 2 batches"):
        module.subspace_losses(constrained, START, sample, jax.random.key(0), dims, n_steps, 0.1, n_eval)


def test_ratio_of_sums_and_its_error_are_those_of_many_simulated_evaluations():
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 9, (20_000, 50)).astype(np.float32)
    sums = (weights * 2 + rng.standard_normal(weights.shape) * np.sqrt(weights)).astype(np.float32)
    estimate = jax.tree.map(np.asarray, jax.vmap(ratio_of_sums)(sums, weights))
    # Ratio 2. Spread over 20 000 evaluations is known to 1 / sqrt(40 000) = 0.5 %, three of them; the linearization
    # of 50 batches is low by about 1 / (2 * 50) = 1 %.
    assert np.mean(estimate.value) == pytest.approx(2, abs=4 * np.std(estimate.value) / np.sqrt(20_000))
    assert np.sqrt(np.mean(estimate.standard_error**2)) == pytest.approx(np.std(estimate.value), rel=0.025)
