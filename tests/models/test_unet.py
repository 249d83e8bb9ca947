"""The U-Net: its convolution, what it makes of time and concepts, its init table, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import init, models
from lab.models import unet
from lab.tasks import Shapes
from lab.tree import named_leaves

EPS64 = 2.0**-52
SIDE, WIDTH = 8, 8
TASK = Shapes(size=SIDE, n_times=20, images_per_class=0)
MODEL = models.UNet(base_width=WIDTH)


forward = jax.jit(functools.partial(models.forward, MODEL))


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: models.init(MODEL, jax.random.key(0), TASK.example()))()


def inputs(n, bits=(0, 1, 1), time=0.5):
    image = jax.random.normal(jax.random.key(1), (n, SIDE, SIDE, 3), jnp.float32)
    return image, jnp.full((n,), time, jnp.float32), jnp.tile(jnp.array([bits], jnp.int32), (n, 1))


@pytest.mark.usefixtures("float64")
def test_convolution_is_the_sum_over_neighbours():
    rng = np.random.default_rng(0)
    h, kernel, bias = rng.normal(size=(2, 5, 5, 3)), rng.normal(size=(3, 3, 3, 4)), rng.normal(size=4)
    found = unet.Conv(4).apply({"params": {"kernel": kernel, "bias": bias}}, jnp.asarray(h))
    expected = np.tile(bias, (2, 5, 5, 1))
    for y, x, dy, dx in np.ndindex(5, 5, 3, 3):
        if 0 <= y + dy - 1 < 5 and 0 <= x + dx - 1 < 5:
            expected[:, y, x] += h[:, y + dy - 1, x + dx - 1] @ kernel[dy, dx]
    np.testing.assert_allclose(found, expected, rtol=0, atol=28 * 30 * EPS64)  # 28 terms, sums below 30


def test_coarser_undoes_finer():
    h = jax.random.normal(jax.random.key(0), (2, 4, 4, 3), jnp.float32)
    np.testing.assert_allclose(unet.coarser(unet.finer(h)), h, rtol=4 * 2.0**-23)  # three sums of equal numbers


def test_time_and_concepts_are_added_one_by_one(params):
    pairs = [(0, 0), (1, 0), (0, 1), (1, 1)]
    found = {pair: np.asarray(forward(params, inputs(2, (*pair, 0)))[1]["condition"], np.float64) for pair in pairs}
    silu = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    table = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(params["condition"]).items()}
    summed = {
        (a, b): table["concept_0/embedding"][a] + table["concept_1/embedding"][b] + table["concept_2/embedding"][0]
        for a, b in pairs
    }
    rate_F = 10_000.0 ** -(np.arange(WIDTH // 2) / (WIDTH // 2))
    waves = np.concatenate([np.sin(500 * rate_F), np.cos(500 * rate_F)])
    time_E = silu(waves @ table["time_in/kernel"]) @ table["time_out/kernel"]
    for pair in pairs:
        # sinusoids of 500 radians: half an ulp of 500 in float32, 3e-5, in each of 8 waves
        np.testing.assert_allclose(found[pair][0], silu(time_E + summed[pair]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["time", "bits"])
def test_answer_depends_on_time_and_on_every_concept(params, name):
    plain = forward(params, inputs(2))[0]
    others = [{"time": 0.6}] if name == "time" else [{"bits": b} for b in [(1, 1, 1), (0, 0, 1), (0, 1, 0)]]
    for changes in others:
        assert np.abs(forward(params, inputs(2, **changes))[0] - plain).max() > 1e-3


def test_each_picture_is_answered_for_itself(params):
    image, time, bits = inputs(2)
    together = forward(params, (image, time, bits))[0]
    other = forward(params, (image.at[1].set(0), time.at[1].set(0.1), bits.at[1].set(0)))[0]
    np.testing.assert_array_equal(together[0], other[0])
    assert np.abs(together[1] - other[1]).max() > 1e-3


def test_every_kernel_is_drawn_at_unit_rate_of_all_its_inputs_and_brought_to_gamma(params):
    table = init.by_name(params)
    leaves = named_leaves(params)
    assert {name for name in leaves if name.endswith(("kernel", "embedding"))} == set(table)
    for name, leaf in table.items():
        shape = leaves[name].shape
        d_in = shape[-1] if name.endswith("embedding") else np.prod(shape[:-1])
        assert leaf.d_in == leaf.fan == d_in
        # 5 standard errors of a standard deviation
        assert np.std(leaves[name]) * d_in**0.5 == pytest.approx(1, abs=5 / (2 * np.prod(shape)) ** 0.5), name
    assert table["middle/in/kernel"].d_in == 9 * 2 * WIDTH and table["head/kernel"].group == "head"
    small = named_leaves(init.rescale(params, dict.fromkeys(init.GROUPS, 0.8)))
    name = "down_1/out/kernel"
    np.testing.assert_allclose(small[name], leaves[name] * (9 * 2 * WIDTH) ** -0.3, rtol=16 * 2.0**-23)
    assert all(not leaf.any() for name, leaf in leaves.items() if name.endswith("bias"))


def test_activations_are_the_documented_ones_and_edits_reach_them(params):
    _, acts = forward(params, inputs(2))
    w, s = WIDTH, SIDE
    assert {name: act.shape[1:] for name, act in acts.items()} == {
        "condition": (4 * w,), "stem": (s, s, w), "down_0": (s, s, w), "down_1": (s // 2, s // 2, 2 * w),
        "middle": (s // 4, s // 4, 2 * w), "up_1": (s // 2, s // 2, 2 * w), "up_0": (s, s, w), "noise": (s, s, 3),
    }  # fmt: skip
    edited, _ = jax.jit(functools.partial(models.forward, MODEL, edits={"up_0": jnp.zeros_like}))(params, inputs(2))
    np.testing.assert_array_equal(edited, jnp.zeros_like(edited))  # norm, nonlinearity and head of nothing: their zeros
    with pytest.raises(ValueError, match="edit of 'up_2': no such activation; did you mean 'up_"):
        jax.eval_shape(functools.partial(models.forward, MODEL, edits={"up_2": jnp.zeros_like}), params, inputs(2))


def test_tokens_and_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"use task\.family='shapes'"):
        jax.eval_shape(lambda: models.init(MODEL, jax.random.key(0), jnp.zeros((1, 9), jnp.int32)))
    with pytest.raises(ValueError, match=r"task\.size=10: .* multiple of 4"):
        jax.eval_shape(lambda: models.init(MODEL, jax.random.key(0), Shapes(10, 20, 0).example()))
