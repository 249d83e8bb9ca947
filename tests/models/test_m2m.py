"""The mixture of operators: what is cut and joined, how the gate weighs, and where it is pulled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import matrices, models
from lab.models import m2m
from lab.tree import named_leaves

EPS = 2.0**-23
SIDE, FRAMES = 16, 1
MODEL = models.M2M(
    2, (4, 4), (3, 1), n_layers=1, projection=4, horizon=2, resolution=8, gate_width=4, activation="tanh"
)
GATES = m2m.GATES


def key():
    return jax.random.key(7)


def fields(n=2):
    return jax.random.normal(jax.random.key(1), (n, FRAMES, SIDE, SIDE), jnp.float32)


def two_scales(region, side=SIDE):
    """A wave of one cycle along each axis, of four in one quadrant."""
    x, y = np.meshgrid(np.arange(side) / side, np.arange(side) / side, indexing="ij")
    smooth, rough = (np.sin(2 * np.pi * k * x + 1) * np.cos(2 * np.pi * k * y) for k in (1, 4))
    row, column = divmod(region, 2)
    inside = (x // 0.5 == row) & (y // 0.5 == column)
    return jnp.asarray(np.where(inside, rough, smooth)[None, None], jnp.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: models.init(MODEL, jax.random.key(0), fields()))()


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(model, params, inputs, training=False):
    return models.forward(model, params, inputs, dropout_key=key if training else None)


# --- patches ---


def test_join_undoes_cut_and_patches_come_row_by_row():
    field = jnp.arange(2 * 6 * 9, dtype=jnp.float32).reshape(2, 6, 9)
    patches = m2m.cut(field[..., None], 3, 0)
    assert patches.shape == (2, 9, 2, 3, 1)
    np.testing.assert_array_equal(patches[1, 5, ..., 0], field[1, 2:4, 6:9])
    np.testing.assert_array_equal(m2m.join(patches[..., 0], 3), field)


def test_halo_is_of_the_torus():
    field = jnp.arange(8 * 8, dtype=jnp.float32).reshape(1, 8, 8, 1)
    wide = m2m.cut(field, 2, 2)
    assert wide.shape == (1, 4, 8, 8, 1)
    np.testing.assert_array_equal(wide[:, :, 2:-2, 2:-2], m2m.cut(field, 2, 0))
    np.testing.assert_array_equal(wide[0, 3], jnp.roll(field[0], (-2, -2), (0, 1)))


def test_resizing_keeps_what_is_linear_away_from_the_border_and_what_has_its_size():
    ramp = jnp.broadcast_to(jnp.arange(8, dtype=jnp.float32)[None, :, None, None], (1, 8, 8, 1))
    assert m2m.resize(ramp, 8, 8) is ramp
    fine = m2m.resize(ramp, 16, 16)
    # points of the finer grid lie at quarters between those of the coarser
    np.testing.assert_allclose(fine[0, 1:-1, 3, 0], np.arange(14) / 2 + 0.25, rtol=0, atol=8 * 8 * EPS)


# --- the mixture ---


def test_mixture_of_one_expert_and_one_patch_is_that_operator():
    alone = models.FNO2D(4, 3, n_layers=2, projection=4, horizon=2, residual=True)
    one = models.M2M(1, (4,), (3,), n_layers=2, projection=4, horizon=2, residual=True, gate_width=2)
    drawn = jax.jit(lambda: models.init(one, jax.random.key(0), fields()))()
    expected, _ = run(alone, {"operator": drawn["mixture"]["expert_0"]}, fields())
    for training in (False, True):
        np.testing.assert_allclose(run(one, drawn, fields(), training)[0], expected, rtol=0, atol=64 * EPS)


def test_frame_is_made_of_experts_weighed_by_the_gate(params):
    for gate, training in [("soft", True), ("soft", False), ("straight_through", True), ("top1", True)]:
        frames, acts = run(MODEL.clone(gate=gate), params, fields(), training)
        prob = np.asarray(acts["gate/prob"], np.float64)
        first = np.eye(2)[prob.argmax(axis=-1)]
        weight = prob if training and gate == "soft" else first
        joined = np.einsum("btphwe,btpe->btphw", np.asarray(acts["experts"], np.float64), weight)
        whole = joined.reshape(2, 2, 2, 2, 8, 8).swapaxes(3, 4).reshape(2, 2, SIDE, SIDE)
        np.testing.assert_allclose(frames, whole, rtol=0, atol=8 * EPS * np.abs(whole).max())
        np.testing.assert_array_equal(acts["gate/choice"], prob.argmax(axis=-1))
        np.testing.assert_array_equal(acts["frame"], frames)


def test_gradient_of_the_gate_is_that_of_its_mode(params):
    """Straight-through: dL/dp_e is what L changes with the weight of e; top1: the frames say nothing of the gate."""

    def gradient(gate, of):
        def loss(gate_params):
            changed = {"mixture": {**params["mixture"], "gate": gate_params}}
            return of(*models.forward(MODEL.clone(gate=gate, horizon=1), changed, fields(), dropout_key=key))

        return jax.jit(jax.grad(loss))(params["mixture"]["gate"])

    def total(frames, acts):
        return jnp.mean(frames)

    none = gradient("top1", total)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(none))
    soft, through = gradient("soft", total), gradient("straight_through", total)
    for name, leaf in named_leaves(soft).items():  # of a loss that is linear in the weights they are the same
        np.testing.assert_allclose(named_leaves(through)[name], leaf, rtol=0, atol=64 * EPS)
        assert np.any(leaf)
    pulled = gradient("top1", lambda frames, acts: jnp.mean(acts["gate/kl"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(pulled))


def test_every_expert_of_a_patch_sees_that_patch_alone(params):
    """Without halo: what is in another patch changes nothing but its own answers."""
    model = MODEL.clone(horizon=1)
    changed = fields().at[:, :, :8, :8].add(1.0)
    before, after = (run(model, params, inputs)[1]["experts"] for inputs in (fields(), changed))
    np.testing.assert_array_equal(before[:, :, 1:], after[:, :, 1:])
    assert np.abs(before[:, :, 0] - after[:, :, 0]).min(axis=(2, 3)).max() > 0
    wide = run(model.clone(halo=1, resolution=10), params, changed)[1]["experts"]
    assert np.abs(wide - run(model.clone(halo=1, resolution=10), params, fields())[1]["experts"])[:, :, 1].max() > 0


def test_unets_may_be_experts():
    model = MODEL.clone(kinds=("unet", "fno"), horizon=1)
    found = matrices.find(model, fields()).matrices
    assert "mixture/expert_0/down_1/in/kernel" in found and "mixture/expert_1/block_0_spectral/spectrum" in found
    drawn = jax.jit(lambda: models.init(model, jax.random.key(0), fields()))()
    assert drawn["mixture"]["expert_0"]["head"]["kernel"].shape[-1] == 1  # no weight is without effect
    frames, acts = run(model, drawn, fields())
    assert np.isfinite(frames).all() and acts["experts"].shape == (2, 1, 4, 8, 8, 2)
    changed = {
        **drawn["mixture"]["expert_0"],
        "head": jax.tree.map(jnp.zeros_like, drawn["mixture"]["expert_0"]["head"]),
    }
    without = run(model, {"mixture": {**drawn["mixture"], "expert_0": changed}}, fields())[1]["experts"]
    assert not without[..., 0].any() and acts["experts"][..., 0].any()
    np.testing.assert_array_equal(without[..., 1], acts["experts"][..., 1])


# --- the gate and its prior ---


@pytest.mark.parametrize("prior", [(0.25, 0.75), ()])
def test_divergence_from_the_prior_is_the_textbooks(params, prior):
    _, acts = run(MODEL.clone(prior=prior), params, fields())
    gate, wanted = (np.asarray(acts[f"gate/{name}"], np.float64) for name in ("prob", "prior"))
    assert not prior or np.allclose(wanted, prior, atol=EPS)
    np.testing.assert_allclose(wanted.sum(axis=-1), 1, atol=8 * EPS)
    kl = (gate * np.log(gate / wanted)).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(acts["gate/kl"], kl, rtol=1e-4, atol=16 * EPS)
    entropy = -(gate * np.log(gate)).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(acts["gate/entropy"], entropy, rtol=1e-4, atol=16 * EPS)


def test_gate_that_says_its_prior_diverges_from_nothing(params):
    log_prior = jnp.log(jnp.array([0.25, 0.75], jnp.float32))
    edits = {"gate/logits": lambda logits_BxPxE: 0 * logits_BxPxE + log_prior[None, None]}
    _, acts = models.forward(MODEL.clone(prior=(0.25, 0.75)), params, fields(), edits)
    np.testing.assert_allclose(acts["gate/kl"], 0, atol=4 * EPS)


@pytest.mark.parametrize("region", range(4))
def test_roughest_patch_is_for_the_greatest_expert(region):
    patches = m2m.cut(jnp.moveaxis(two_scales(region), 1, -1), 2, 0)[..., 0]
    prior = np.exp(m2m.roughness_prior(patches, 2, 0.5))
    assert (prior[0].argmax(axis=-1) == np.where(np.arange(4) == region, 0, 1)).all()
    assert prior[0, region, 0] == pytest.approx(1 / (1 + np.exp(-4)), rel=1e-5)  # places 0 and 1, (1 / 0.5)^2 = 4
    three = np.exp(m2m.roughness_prior(patches, 3, 0.5))[0]
    assert three[region].argmax() == 0 and (three.argmax(axis=-1) == 2).sum() >= 1


def test_roughness_is_that_of_the_wave_and_ignores_size_and_mean():
    x = np.arange(64) / 64
    wave = jnp.asarray(np.broadcast_to(np.sin(2 * np.pi * 3 * x), (1, 1, 64, 64)), jnp.float32)
    # along one axis: 2 (1 - cos a) of a phase a = 2 pi 3 / 64 a step, over 63 of 64 neighbours; 1 % is FLAT
    found = float(m2m.roughness(wave)[0, 0])
    assert found == pytest.approx(2 * (1 - np.cos(2 * np.pi * 3 / 64)) / 1.01, rel=0.02)
    np.testing.assert_allclose(m2m.roughness(5 * wave + 3)[0, 0], found, rtol=1e-3)


def test_flat_fields_have_a_prior():
    prior = np.exp(m2m.roughness_prior(jnp.zeros((1, 4, 8, 8)), 2, 0.5))
    assert np.isfinite(prior).all() and prior.sum(axis=-1) == pytest.approx(np.ones((1, 4)))


def test_gate_sees_neither_size_nor_mean_of_a_patch(params):
    gate = m2m.Gate(4, 2)
    patches = m2m.cut(jnp.moveaxis(fields(), 1, -1), 2, 0).reshape(-1, 8, 8, FRAMES)
    found = [gate.apply({"params": params["mixture"]["gate"]}, of) for of in (patches, 7 * patches + 2)]
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-4)  # means of 2 are taken off numbers of 7


def test_edited_choice_sends_patches_elsewhere(params):
    edits = {"gate/choice": lambda choice_BxP: 0 * choice_BxP + 1}
    frames, acts = models.forward(MODEL, params, fields(), edits)
    np.testing.assert_array_equal(frames[:, :, :8, :8], acts["experts"][:, :, 0, ..., 1])
    assert (acts["gate/choice"] == 1).all()


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modes": (3,)}, r"model\.modes=\(3,\): one for each of 2 widths"),
        ({"kinds": ("fno", "unet", "fno")}, r"model\.kinds=.*: one for each of 2 widths"),
        ({"widths": 12}, r"model\.widths=12: expected a tuple, one entry for each expert"),
        ({"kinds": ("fno", "cnn")}, r"model\.kinds=.*fno, unet"),
        ({"prior": (0.5, 0.6)}, r"model\.prior=\(0\.5, 0\.6\): expected probabilities above 0 whose sum is 1"),
        ({"prior": (0.0, 1.0)}, r"model\.prior=.*: expected probabilities above 0"),
        ({"gate": "hard"}, r"model\.gate='hard': one of soft, straight_through, top1"),
        ({"widths": (4, 0)}, r"model\.widths=\(4, 0\): expected integers of at least 1"),
        ({"widths": (), "modes": ()}, r"model\.widths=\(\)"),
        ({"prior_width": 0.0}, r"model\.prior_width=0\.0: must be at least"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        MODEL.clone(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patches": 3}, r"model\.patches=3: does not divide a field of \(16, 16\) points"),
        ({"kinds": ("unet", "fno"), "resolution": 6}, r"model\.resolution=6: a U-Net halves it twice"),
        ({"modes": (5, 1)}, r"model\.modes=5: 8 x 8 points"),
    ],
)
def test_field_that_experts_cannot_read_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: models.init(MODEL.clone(**changes), jax.random.key(0), fields()))
