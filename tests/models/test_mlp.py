import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.tree import named_leaves

EPS64 = 2.0**-52
BATCH, LENGTH, VOCAB, D, D_FF, D_OUT = 4, 3, 11, 5, 9, 2
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
BEND = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "identity": lambda x: x,
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
# Sums of at most nine products of numbers below ten, three in a row.
ROUNDING = 3 * 9 * 100 * EPS64


def row(model, inputs):
    """Float64 parameters of order one."""
    rng = np.random.default_rng(1)
    inputs = inputs if inputs.dtype == np.int32 else inputs.astype(np.float32)
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0), inputs))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_emb_mlp_is_a_sum_of_embeddings_through_two_matrices(activation):
    model = models.EmbMLP(VOCAB, D, D_FF, activation)
    params = row(model, TOKENS)
    logits_Bx1xV, acts = models.forward(model, params, TOKENS)
    p = named_leaves(params)
    assert set(p) == {"embed/embedding", "in/kernel", "head/kernel"}
    counts_BxV = np.array([[np.sum(tokens == v) for v in range(VOCAB)] for tokens in TOKENS])  # a bag of words
    sum_BxD = counts_BxV @ p["embed/embedding"]
    pre_BxF = sum_BxD @ p["in/kernel"]
    expected = {"sum": sum_BxD, "pre": pre_BxF, "post": BEND[activation](pre_BxF)}
    expected["logits"] = expected["post"] @ p["head/kernel"]
    for name, value in expected.items():
        np.testing.assert_allclose(acts[name], value, rtol=0, atol=ROUNDING, err_msg=name)
    np.testing.assert_array_equal(acts["embed"], p["embed/embedding"][TOKENS])
    np.testing.assert_array_equal(logits_Bx1xV[:, 0], acts["logits"])
    assert logits_Bx1xV.shape == (BATCH, 1, VOCAB)
    assert set(acts) == {"embed", "sum", "pre", "post", "logits"}


@pytest.mark.usefixtures("float64")
def test_emb_mlp_does_not_know_the_order_of_its_tokens():
    model = models.EmbMLP(VOCAB, D, D_FF, "tanh")
    params = row(model, TOKENS)
    logits = [models.forward(model, params, TOKENS[:, order])[0] for order in ([0, 1, 2], [2, 0, 1])]
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=ROUNDING)  # sums in another order


BAGS = [models.EmbMLP(VOCAB, D, D_FF, "tanh"), models.EmbLinear(VOCAB, D), models.EmbTable(VOCAB)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", BAGS, ids=lambda model: type(model).__name__)
def test_a_bag_that_answers_everywhere_answers_of_the_tokens_so_far(model):
    params = row(model, TOKENS)
    everywhere_BxLxV, acts = models.forward(model.clone(readout="all"), params, TOKENS)
    for n in range(1, LENGTH + 1):
        logits_Bx1xV, _ = models.forward(model, params, TOKENS[:, :n])
        np.testing.assert_allclose(everywhere_BxLxV[:, n - 1 : n], logits_Bx1xV, rtol=0, atol=ROUNDING)
    assert acts["sum"].shape[:2] == acts["logits"].shape[:2] == (BATCH, LENGTH)


@pytest.mark.usefixtures("float64")
def test_linear_bags_are_their_matrices():
    counts_BxV = np.array([[np.sum(tokens == v) for v in range(VOCAB)] for tokens in TOKENS])
    for model in BAGS[1:]:
        params = row(model, TOKENS)
        p = named_leaves(params)
        w_VxV = p["embed/embedding"] @ p["head/kernel"] if "head/kernel" in p else p["embed/embedding"]
        logits_Bx1xV, _ = models.forward(model, params, TOKENS)
        np.testing.assert_allclose(logits_Bx1xV[:, 0], counts_BxV @ w_VxV, rtol=0, atol=ROUNDING)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("activation", models.ACTIVATIONS)
@pytest.mark.parametrize("use_bias", [False, True])
def test_two_layer_mlp_is_its_formula(activation, use_bias):
    model = models.TwoLayerMLP(D, D_FF, D_OUT, activation, use_bias)
    x_BxD = np.random.default_rng(2).standard_normal((BATCH, D))
    params = row(model, x_BxD)
    output_BxV, acts = models.forward(model, params, x_BxD)
    p = named_leaves(params)
    assert set(p) == {"in/kernel", "out/kernel"} | ({"in/bias"} if use_bias else set())
    pre_BxF = x_BxD @ p["in/kernel"] + p.get("in/bias", 0.0)
    expected = {"pre": pre_BxF, "post": BEND[activation](pre_BxF)}
    expected["logits"] = expected["post"] @ p["out/kernel"]
    for name, value in expected.items():
        np.testing.assert_allclose(acts[name], value, rtol=0, atol=ROUNDING, err_msg=name)
    np.testing.assert_array_equal(output_BxV, acts["logits"])
    assert set(acts) == {"pre", "post", "logits"}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "model", [models.EmbMLP(VOCAB, D, D_FF, "tanh"), models.TwoLayerMLP(D, D_FF, D_OUT, "relu", True)]
)
def test_silencing_a_hidden_unit_by_edit_is_removing_its_output_weights(model):
    inputs = TOKENS if isinstance(model, models.EmbMLP) else np.ones((BATCH, D))
    params = row(model, inputs)
    edited, _ = models.forward(model, params, inputs, {"post": lambda post: post.at[:, 3].set(0.0)})
    last = "head" if isinstance(model, models.EmbMLP) else "out"
    kernel = params[last]["kernel"].copy()
    kernel[3] = 0
    removed, _ = models.forward(model, params | {last: {"kernel": kernel}}, inputs)
    np.testing.assert_array_equal(edited, removed)  # either way the unit adds an exact zero
    assert not np.array_equal(edited, models.forward(model, params, inputs)[0])


@pytest.mark.usefixtures("float64")
def test_tanh_emb_mlp_at_small_weights_is_linear():
    # What the theory assumes: s(0) = 0 and s'(0) = 1, so that G(X) = (sum of embeddings) W_1 W_2 up to cubes.
    model = models.EmbMLP(VOCAB, D, D_FF, "tanh")
    small = jax.tree.map(lambda leaf: 1e-3 * leaf, row(model, TOKENS))
    logits, acts = models.forward(model, small, TOKENS)
    linear = np.asarray(acts["sum"]) @ small["in"]["kernel"] @ small["head"]["kernel"]
    cubes = np.abs(acts["pre"]) ** 3 / 3 @ np.abs(small["head"]["kernel"])  # |tanh(x) - x| <= |x|^3 / 3
    assert (np.abs(logits[:, 0] - linear) <= cubes + ROUNDING * np.abs(linear)).all()


def test_an_unknown_edit_is_refused_with_the_nearest_name():
    model = models.EmbMLP(VOCAB, D, D_FF, "tanh")
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), row(model, TOKENS))
    with pytest.raises(ValueError, match=r"edit of 'posts': no such activation; did you mean 'post'\?"):
        models.forward(model, params, TOKENS, {"posts": jnp.zeros_like})
