"""Every size of every model is checked when one is made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models

MODELS = (
    models.Transformer(
        vocab_size=9, max_length=6, n_layers=1, n_heads=2, d_model=4, d_head=2, d_ff=4, activation="relu", norm="pre",
        use_bias=True, head_bias=True, final_norm=True, tied_head=False, readout="last",
    ),
    models.EmbMLP(9, 4, 4, "tanh"),
    models.EmbLinear(9, 4),
    models.EmbTable(9),
    models.TwoLayerMLP(4, 4, 2, "tanh", False),
    models.OneLayerAttention(9, 4),
    models.AttentionMLP(9, 4, 4, "tanh"),
    models.UNet(8),
    models.VectorAttention(3, 4, beta=0.5, augment="parallel"),
    models.FNO2D(4, 2, 2, 4, 2),
    models.M2M(2, (4, 4), (1, 1), 2, 4, 2),
    models.Mamba1(9, 6, 1, 4, 4, 2, 2, "learned", "none", False, True, "pre", True, "last", 2),
    models.Mamba2(9, 6, 1, 4, 8, 2, 2, "learned", "none", False, True, "pre", True, "last", 2),
    models.Decoder(9, 6, 1, 8, 4, 2, 4, 1e-5),
)  # fmt: skip
SIZES = [(model, field.name) for model in MODELS for field in dataclasses.fields(model) if field.type is int]
INPUTS = {
    "tokens": jnp.zeros((1, 1), jnp.int32),
    "vectors": jnp.ones((1, 1)),
    "sequences of vectors": jnp.ones((1, 2, 1)),
    "fields": jnp.ones((1, 1, 4, 4)),
    "noised pictures": (jnp.ones((1, 4, 4, 1)), jnp.ones(1), jnp.ones((1, 1), jnp.int32)),
}


def test_every_model_is_here():
    assert {type(model) for model in MODELS} == {*models.FAMILIES.values(), models.TwoLayerMLP}


@pytest.mark.parametrize(("model", "name"), SIZES)
@pytest.mark.parametrize("value", [0, -1, -4, 2.5, 3.0, True, "4", None, np.float32(4)])
def test_what_is_no_size_is_refused_with_its_name(model, name, value):
    least = model.least.get(name, 1)
    with pytest.raises(ValueError, match=rf"^model\.{name}=.*: expected an integer of at least {least}$"):
        model.clone(**{name: least - 1 if value == 0 else value})


@pytest.mark.parametrize(("model", "name"), SIZES)
def test_sizes_of_numpy_are_sizes(model, name):
    assert getattr(model.clone(**{name: np.int64(8)}), name) == 8


@pytest.mark.parametrize("model", MODELS)
def test_least_sizes_that_are_accepted_make_a_model(model):
    small = model.clone(**{name: model.least.get(name, 1) for of, name in SIZES if of is model})
    inputs = INPUTS[models.reads(type(model))]
    outputs, _ = jax.jit(lambda key: small.init_with_output(key, inputs, {})[0])(jax.random.key(0))
    assert np.isfinite(np.asarray(outputs)).all()


@pytest.mark.parametrize("readout", ["last", "all"])
def test_more_tokens_than_positions_are_refused_when_traced(readout):
    model = MODELS[0].clone(readout=readout)
    params = jax.eval_shape(lambda: models.init(model, jax.random.key(0), jnp.zeros((1, 6), jnp.int32)))
    jax.eval_shape(lambda params: models.forward(model, params, jnp.zeros((2, 6), jnp.int32)), params)
    with pytest.raises(ValueError, match=r"^7 tokens: the model has positions for model\.max_length=6"):
        jax.eval_shape(lambda params: models.forward(model, params, jnp.zeros((2, 7), jnp.int32)), params)
