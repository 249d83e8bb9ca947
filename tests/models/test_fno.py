"""The Fourier operator: its transform, its init rate, its roll-out, and what it is measured as."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import init, matrices, models
from lab.analysis import condensation, rank, weights
from lab.models import fno
from lab.tree import named_leaves, size

EPS, EPS64 = 2.0**-23, 2.0**-52
WIDTH, MODES = 6, 3
MODEL = models.FNO2D(WIDTH, MODES, n_layers=2, projection=5, horizon=3, activation="tanh")
SIDE, FRAMES = 8, 2


def fields(n=2, height=SIDE, width=SIDE, frames=FRAMES, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (n, frames, height, width), dtype)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: models.init(MODEL, jax.random.key(0), fields()))()


@functools.cache
def shapes(model, frames=10):
    return jax.eval_shape(lambda: models.init(model, jax.random.key(0), jnp.zeros((1, frames, 64, 64))))


def test_published_model_has_the_published_number_of_parameters():
    """Table 1 of arXiv 2010.08895; its normalization has the 160 parameters of ours."""
    published = models.FNO2D(20, 8, n_layers=4, projection=128, horizon=10, instance_norm=True)
    assert size(shapes(published)) == 414_517
    assert size(shapes(published, 1)) == 414_517 - 9 * 20  # the Markov form reads nine frames less
    assert size(shapes(published.clone(instance_norm=False))) == 414_517 - 160
    assert size(shapes(published.clone(modes=12))) == 926_517  # of the authors' script


# --- one layer ---


def spectral(spectrum, h):
    """By FFT, in complex numbers."""
    height, width = h.shape[1:3]
    m, n_out = spectrum.shape[2], spectrum.shape[-1]
    found = np.fft.rfft2(h, axes=(1, 2))
    kept = np.r_[0:m, height - m : height]
    of_modes = np.einsum("bkmi,kmio->bkmo", found[:, kept, :m], (spectrum[0] + 1j * spectrum[1]) / np.sqrt(2))
    whole = np.zeros((len(h), height, width // 2 + 1, n_out), complex)
    whole[:, kept, :m] = of_modes
    return np.fft.irfft2(whole, (height, width), axes=(1, 2))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("height", "width", "m"), [(8, 8, 4), (8, 12, 3), (9, 7, 2), (6, 8, 1)])
def test_layer_is_the_product_in_fourier_space(height, width, m):
    rng = np.random.default_rng(0)
    h, spectrum = rng.normal(size=(2, height, width, 3)), rng.normal(size=(2, 2 * m, m, 3, 4))
    found = fno.SpectralConv(4, m).apply({"params": {"spectrum": spectrum}}, jnp.asarray(h))
    expected = spectral(spectrum, h)
    # sums of at most 12 x 9 x 2 x 6 terms, a few at a time
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * EPS64 * np.abs(expected).max() * np.sqrt(h.size))


@pytest.mark.usefixtures("float64")
def test_layer_commutes_with_translations_of_the_torus():
    rng = np.random.default_rng(0)
    h, spectrum = jnp.asarray(rng.normal(size=(1, 8, 8, 2))), rng.normal(size=(2, 6, 3, 2, 2))
    layer = functools.partial(fno.SpectralConv(2, 3).apply, {"params": {"spectrum": spectrum}})
    moved = jnp.roll(layer(h), (3, 5), (1, 2))
    np.testing.assert_allclose(layer(jnp.roll(h, (3, 5), (1, 2))), moved, rtol=0, atol=1e3 * EPS64)


@pytest.mark.usefixtures("float64")
def test_layer_is_one_function_at_every_resolution():
    """Of a field without modes that the coarser grid has not."""
    rng = np.random.default_rng(0)
    spectrum = rng.normal(size=(2, 6, 3, 1, 1))
    angle_N = 2 * np.pi * np.arange(16) / 16
    fine = np.cos(2 * angle_N[:, None] + angle_N[None] + 0.3) + np.sin(angle_N[:, None] - 2 * angle_N[None])
    layer = functools.partial(fno.SpectralConv(1, 3).apply, {"params": {"spectrum": spectrum}})
    found = layer(jnp.asarray(fine[None, ::2, ::2, None]))
    np.testing.assert_allclose(found, layer(jnp.asarray(fine[None, ..., None]))[:, ::2, ::2], rtol=0, atol=1e3 * EPS64)


# --- init rate ---


@pytest.mark.parametrize("gamma", [0.5, 0.8])
def test_spectral_weights_have_the_rate_of_all_others_over_both_parts(gamma):
    model = MODEL.clone(width=16, modes=6)
    inputs = fields(height=16, width=16)
    table = init.leaves_of(model, inputs)
    drawn = jax.jit(lambda: models.init(model, jax.random.key(0), inputs))()
    leaves = named_leaves(init.rescale(drawn, dict.fromkeys(init.GROUPS, gamma), leaves=table))
    kernels = {name for name in leaves if name.endswith(("kernel", "spectrum"))}
    assert kernels == set(table) and matrices.find(model, inputs).matrices.keys() == kernels
    name = "operator/block_1_spectral/spectrum"
    assert table[name].d_in == table[name].fan == 16
    real, imaginary = np.asarray(leaves[name], np.float64)
    weight = (real + 1j * imaginary) / np.sqrt(2)
    # 5 standard errors of a standard deviation of as many real numbers
    assert np.sqrt(np.mean(np.abs(weight) ** 2)) == pytest.approx(16**-gamma, rel=5 / np.sqrt(4 * weight.size))
    for part in (real, imaginary):
        assert np.std(part) == pytest.approx(16**-gamma, rel=5 / np.sqrt(2 * part.size))


def test_at_the_usual_rate_a_mode_keeps_its_power():
    """E|r|^2 = 1 / d_in of every entry of R_k, whose products add up over d_in inputs."""
    d, m = 64, 2
    h = jax.random.normal(jax.random.key(0), (1, 8, 8, d), jnp.float32)
    layer = fno.SpectralConv(d, m)
    out, _ = layer.init_with_output(jax.random.key(1), h)
    before, after = (np.abs(np.fft.rfft2(np.asarray(of, np.float64), axes=(1, 2))[:, :m, 1:m]) ** 2 for of in (h, out))
    # a mode: a mean of 64 chi-squared numbers of 2 degrees before and after, of relative error 1 / 8 each; 5 of them
    assert after.mean() / before.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / (64 * 2)))


# --- the operator and its roll-out ---


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, {"padding": 2}, {"instance_norm": True}, {"residual": True}])
def test_operator_equals_the_one_written_out(options):
    model = MODEL.clone(horizon=1, **options)
    inputs = fields(height=8, width=6, dtype=jnp.float64)
    params = jax.jit(lambda: models.init(model, jax.random.key(0), inputs))()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) + 0.1, params)  # norms and biases, too
    found, _ = jax.jit(lambda params: models.forward(model, params, inputs))(params)
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(params["operator"]).items()}

    def dense(h, name):
        return h @ leaves[f"{name}/kernel"] + leaves[f"{name}/bias"]

    place = np.stack(np.meshgrid(np.arange(8) / 8, np.arange(6) / 6, indexing="ij"), axis=-1)
    channels = np.concatenate([np.moveaxis(inputs, 1, -1), np.broadcast_to(place, (2, 8, 6, 2))], axis=-1)
    pad = options.get("padding", 0)
    h = np.pad(dense(channels, "lift"), ((0, 0), (0, pad), (0, pad), (0, 0)))
    for i in range(2):
        h = spectral(leaves[f"block_{i}_spectral/spectrum"], h) + dense(h, f"block_{i}_local")
        if model.instance_norm:
            rate = 1 / np.sqrt(h.var(axis=(1, 2), keepdims=True) + 1e-5)
            h = (h - h.mean(axis=(1, 2), keepdims=True)) * rate
            h = h * leaves[f"block_{i}_norm/scale"] + leaves[f"block_{i}_norm/bias"]
        h = np.tanh(h) if i < 1 else h
    expected = dense(np.tanh(dense(h[:, :8, :6], "projection")), "head")[..., 0]
    expected = expected + inputs[:, -1] if model.residual else expected
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e5 * EPS64)


@pytest.mark.parametrize("residual", [False, True])
def test_roll_out_reads_what_it_said(params, residual):
    model = MODEL.clone(residual=residual)
    rolled, _ = models.forward(model, params, fields())
    once = jax.jit(functools.partial(models.forward, model.clone(horizon=1)))
    assert rolled.shape == (2, 3, SIDE, SIDE)
    seen = fields()
    for t in range(3):
        frame = once(params, seen)[0]
        np.testing.assert_allclose(rolled[:, t], frame[:, 0], rtol=0, atol=1e3 * EPS)
        seen = jnp.concatenate([seen[:, 1:], frame], axis=1)


def test_each_field_is_predicted_for_itself(params):
    together, _ = models.forward(MODEL, params, fields())
    other, _ = models.forward(MODEL, params, fields().at[1].set(0))
    np.testing.assert_array_equal(together[0], other[0])
    assert np.abs(together[1] - other[1]).max() > 1e-3


def test_activations_are_the_documented_ones_and_edits_reach_them(params):
    frames, acts = models.forward(MODEL, params, fields())
    block = dict.fromkeys(("spectral", "local", "out"), (SIDE, SIDE, WIDTH))
    documented = {"lift": (SIDE, SIDE, WIDTH), "hidden": (SIDE, SIDE, 5), "frame": (SIDE, SIDE)}
    documented |= {f"block_{i}/{name}": shape for i in range(2) for name, shape in block.items()}
    assert {name: act.shape for name, act in acts.items()} == {n: (2, 3, *shape) for n, shape in documented.items()}
    np.testing.assert_array_equal(acts["frame"], frames)
    edited, acts = models.forward(MODEL, params, fields(), {"frame": lambda frame_BxHxW: 0 * frame_BxHxW + 2})
    np.testing.assert_array_equal(edited, jnp.full_like(edited, 2))
    with pytest.raises(ValueError, match="edit of 'lift_0': no such activation; did you mean 'lift'"):
        models.forward(MODEL, params, fields(), {"lift_0": jnp.zeros_like})


def test_curvature_of_the_roll_out_is_that_of_finite_differences(params):
    """Second derivatives exist, through the transform and through what the model reads of itself."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params)
        along = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape, jnp.float64), wide)
        inputs = fields(dtype=jnp.float64)
        gradient = jax.jit(jax.grad(lambda params: jnp.mean(jnp.square(models.forward(MODEL, params, inputs)[0]))))
        _, curved = jax.jvp(gradient, (wide,), (along,))
        step = 1e-5
        ahead, behind = (gradient(jax.tree.map(lambda w, v, s=sign: w + s * step * v, wide, along)) for sign in (1, -1))
        for name, leaf in named_leaves(curved).items():
            difference = (named_leaves(ahead)[name] - named_leaves(behind)[name]) / (2 * step)
            # step^2 times fourth derivatives, and rounding of the gradient over the step
            np.testing.assert_allclose(leaf, difference, rtol=0, atol=1e-6 * np.abs(difference).max() + 1e-9)


# --- measurements ---


def test_matrix_of_a_spectral_layer_has_a_column_for_each_output_channel(params):
    known = weights.layouts_of(MODEL, fields())
    name = "operator/block_0_spectral/spectrum"
    matrix = weights.weight_matrices(params, known)[name]
    spectrum = np.asarray(named_leaves(params)[name])
    assert matrix.shape == (2 * 2 * MODES * MODES * WIDTH, WIDTH)
    for channel in range(WIDTH):
        np.testing.assert_array_equal(matrix[:, channel], spectrum[..., channel].reshape(-1))
    assert not weights.left_out({n: leaf.shape for n, leaf in named_leaves(params).items()}, known)


def test_ranks_and_condensation_see_channels_that_are_alike(params):
    known = weights.layouts_of(MODEL, fields())
    name = "operator/block_0_spectral/spectrum"
    at = weights.matrix_names(params, known).index(name)
    spectrum = named_leaves(params)[name]
    alike = jnp.concatenate([n * spectrum[..., :1] for n in range(1, WIDTH + 1)], axis=-1)
    changed = {**params["operator"], "block_0_spectral": {"spectrum": alike}}
    ranks = rank.ranks({"operator": changed}, known)
    assert ranks["effective"][at] == pytest.approx(1, abs=1e-3) and ranks["stable"][at] == pytest.approx(1, abs=1e-4)
    assert rank.ranks(params, known)["effective"][at] > WIDTH - 1
    groups = condensation.condensation_numbers(weights.weight_matrices({"operator": changed}, known)[name].T, 0.7)
    assert groups["n_groups"] == 1 and groups["fraction_above"] == 1


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "inputs", "said"),
    [
        ({"modes": 5}, fields(), r"model\.modes=5: 8 x 8 points, padding included, have at most 4"),
        ({"modes": 5, "padding": 2}, fields(height=7), r"model\.modes=5: 9 x 10 points"),
        ({}, jnp.zeros((1, 9), jnp.int32), r"use task\.family='fields'"),
        ({}, jnp.zeros((1, 1, 8, 8), jnp.int32), r"use task\.family='fields'"),
    ],
)
def test_inputs_that_cannot_be_are_refused(changes, inputs, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: models.init(MODEL.clone(**changes), jax.random.key(0), inputs))


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"model\.activation='swish': one of relu, gelu"):
        MODEL.clone(activation="swish")
