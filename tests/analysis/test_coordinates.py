import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from lab import init, losses, models, rng
from lab.analysis import coordinates

V, B, L = 16, 4, 13
TOKENS = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)


def decoder(width):
    """Heads of eight channels, as many as the width has."""
    return models.Decoder(V, 0, 1, width // 8, width, 8, 2 * width, 1e-12)


@pytest.fixture(scope="module")
def sizes():
    return coordinates.coordinate_check(decoder, (32, 128), TOKENS, learning_rate=2e-2, n_steps=3, seeds=(0, 1))


def test_maximal_update_keeps_sizes_and_the_standard_parametrization_does_not(sizes):
    """Adam moves every entry by eta, so what sums d of them grows as eta d; with eta / d it does not."""
    slopes = coordinates.exponents(sizes).median("seed")
    inside = [name for name in sizes["activation"].values if name != "logits"]
    maximal = slopes.sel(parametrization="maximal update", activation=inside)
    standard = slopes.sel(parametrization="standard", activation=inside)
    # Of 48 tokens and widths from 32: sums of 32 products scatter by some per cent, a seed's slope by less than 0.1.
    assert float(abs(maximal).max()) < 0.15
    assert float(standard.sel(activation="block_0/resid_post", step=3)) > 0.4
    assert float(standard.sel(activation="block_0/mlp/out", step=3)) > 0.3
    # at the start all three have hidden weights of one size
    assert float(abs(slopes.sel(step=0, activation=inside)).max()) < 0.15


def test_sizes_of_the_start_go_with_width_as_the_rates_say(sizes):
    """A head of std d^-gamma gives logits of size d^(1/2 - gamma); 1e-1: logits of one draw scatter by a tenth."""
    slopes = coordinates.exponents(sizes).median("seed").sel(activation="logits", step=0)
    for kind, expected in {"standard": 0.0, "NTK": 0.0, "maximal update": -0.5}.items():
        assert abs(float(slopes.sel(parametrization=kind)) - expected) < 0.1


def test_sizes_are_those_of_adam_by_hand(sizes):
    """One row, seed 1 at width 128 under maximal update: learning rates of hidden matrices and head are eta / 4."""
    model = decoder(128)
    leaves = init.leaves_of(model, TOKENS[:1, :-1])
    gammas = {"embed": 0.0, "qk": 0.5, "vo": 0.5, "mlp": 0.5, "head": 1.0}
    params = init.rescale(models.init(model, rng.key(1, "init"), TOKENS[:1, :-1]), gammas, leaves=leaves)
    shares = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 1.0 if leaf.ndim - ("blocks" in str(path)) < 2 or "embed" in str(path) else 0.25, params
    )

    @jax.jit
    def step(params, moments):
        def loss(params):
            logits, acts = models.forward(model, params, TOKENS[:, :-1])
            return jnp.divide(*losses.cross_entropy(logits, TOKENS[:, 1:], jnp.ones((B, L - 1)))), acts

        gradient, acts = jax.grad(loss, has_aux=True)(params)
        moments = jax.tree.map(lambda m, g: (0.9 * m[0] + 0.1 * g, 0.999 * m[1] + 0.001 * g**2), moments, gradient,
                               is_leaf=lambda node: isinstance(node, tuple))  # fmt: skip
        return moments, acts

    moments = jax.tree.map(lambda leaf: (0 * leaf, 0 * leaf), params)
    for t in range(3):
        moments, acts = step(params, moments)
        for name in ("block_0/attn/q", "block_0/resid_post", "logits"):
            seen = sizes.sel(parametrization="maximal update", activation=name, width=128, seed=1, step=t)
            # Adam divides gradients by their size: rounding of the smallest is as large as they are.
            assert float(seen) == pytest.approx(float(jnp.sqrt(jnp.mean(acts[name] ** 2))), rel=2e-3)
        params = jax.tree.map(
            lambda leaf, m, share, t=t: leaf
            - 2e-2 * share * (m[0] / (1 - 0.9 ** (t + 1))) / (jnp.sqrt(m[1] / (1 - 0.999 ** (t + 1))) + 1e-8),
            params, moments, shares,
        )  # fmt: skip


def test_exponents_of_power_laws_are_their_exponents():
    coords = {"activation": ["a", "b", "zero"], "width": [8, 16, 64], "seed": [0]}
    width = np.array(coords["width"], float)
    values = np.stack([3 * width**0.5, 7 * width**-1.0, 0 * width])[..., None]
    found = coordinates.exponents(xr.DataArray(values, coords, tuple(coords)))
    np.testing.assert_allclose(found.values[:, 0], [0.5, -1, np.nan], rtol=1e-12)


def test_widths_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"widths=\(32,\): at least two, the smallest first"):
        coordinates.coordinate_check(decoder, (32,), TOKENS, 1e-2)
    with pytest.raises(ValueError, match=r"widths=\(32, 8\): at least two, the smallest first"):
        coordinates.coordinate_check(decoder, (32, 8), TOKENS, 1e-2)


def test_parametrizations_name_every_group():
    for parametrization in coordinates.PARAMETRIZATIONS.values():
        assert [*parametrization.gammas] == [*parametrization.slopes] == [*init.GROUPS]
