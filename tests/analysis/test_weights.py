"""Every leaf that a layer sums over is a matrix of the layer's inputs and outputs, whatever its shape."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import normal
from toys import foreign

from lab import layouts, matrices, models
from lab.analysis import complexity, rank, weights
from lab.layouts import Layout
from lab.models import EmbMLP, Transformer, UNet
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
TOKENS = jnp.zeros((1, 5), jnp.int32)
TRANSFORMER = Transformer(
    vocab_size=7, max_length=5, n_layers=2, n_heads=2, d_model=4, d_head=3, d_ff=5, activation="relu", norm="pre",
    use_bias=False, head_bias=False, final_norm=True, tied_head=False, readout="all",
)  # fmt: skip
PICTURES = (jnp.zeros((1, 4, 4, 3)), jnp.zeros(1), jnp.zeros((1, 2), jnp.int32))

# a layer, and the shape of an input of which all its outputs read everything
LAYERS = {
    "dense": (nn.Dense(5, use_bias=False), (6,)),
    "convolution": (nn.Conv(5, (2, 3), padding="VALID", use_bias=False), (2, 3, 4)),
    "by head": (nn.DenseGeneral((2, 3), use_bias=False), (6,)),
    "of heads": (nn.DenseGeneral(6, axis=(-2, -1), use_bias=False), (2, 3)),
    "einsum": (nn.Einsum((2, 6, 3), "d,hdk->hk", use_bias=False), (6,)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_singular_values_of_a_kernel_are_those_of_its_layers_jacobian(kind):
    layer, shape = LAYERS[kind]
    x = jnp.asarray(normal(0, *shape))
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    (name, layout), *more = weights.layouts_of(layer, x)
    assert name == "kernel" and not more
    (matrix, *heads) = weights.weight_matrices(params, [(name, layout)]).values()
    jacobian = jax.jit(jax.jacobian(lambda x: layer.apply({"params": params}, x)))(x).reshape(-1, math.prod(shape))
    found_K, expected_K = rank.singular_values(matrix), np.linalg.svd(np.asarray(jacobian, np.float64))[1]
    assert matrix.shape == jacobian.shape[::-1] and not heads
    np.testing.assert_allclose(found_K, expected_K, rtol=0, atol=max(jacobian.shape) * EPS * expected_K[0])


@pytest.mark.parametrize("kind", foreign.KINDS)
def test_a_matrix_has_as_many_rows_as_its_leaf_has_inputs(kind):
    model, _ = foreign.KINDS[kind]
    found = matrices.find(model, foreign.TOKENS)
    known = dict(weights.layouts_of(model, foreign.TOKENS))
    assert known.keys() == found.matrices.keys()
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in found.shapes.items()}
    for name, layout in known.items():
        one = {name: shapes[name]}
        whole = jax.eval_shape(functools.partial(weights.weight_matrices, known=[(name, layout)], heads=False), one)
        assert sum(math.prod(matrix.shape) for matrix in whole.values()) == math.prod(found.shapes[name])
        d_in = found.matrices[name].d_in
        # of embeddings the papers count the last axis; a field of `Field` says a number that is no axis
        in_rows = name.endswith("embedding") or kind == "raw, said in a field"
        assert in_rows or {matrix.shape[0] for matrix in whole.values()} == {d_in}


def test_stacked_attention_is_a_matrix_of_every_copy_and_every_head():
    model, _ = foreign.KINDS["attention, stacked"]
    known = [(n, k) for n, k in weights.layouts_of(model, foreign.TOKENS) if n.endswith(("query/kernel", "out/kernel"))]
    leaves = {"parts_0": {"blocks": {"mixer": {name: {"kernel": None} for name in ("query", "out")}}}}
    kernels = {"query": normal(0, 3, 48, 4, 8), "out": normal(1, 3, 4, 8, 48)}
    for name, kernel in kernels.items():
        leaves["parts_0"]["blocks"]["mixer"][name]["kernel"] = jnp.asarray(kernel)
    found = weights.weight_matrices(leaves, known)
    for copy in range(3):
        query, out = (f"parts_0/blocks/mixer/{name}/kernel[{copy}" for name in ("query", "out"))
        np.testing.assert_array_equal(found[f"{query}]"], kernels["query"][copy].reshape(48, 32))
        np.testing.assert_array_equal(found[f"{out}]"], kernels["out"][copy].reshape(32, 48))
        for head in range(4):
            np.testing.assert_array_equal(found[f"{query}, head {head}]"], kernels["query"][copy, :, head])
            np.testing.assert_array_equal(found[f"{out}, head {head}]"], kernels["out"][copy, head])
    assert list(found) == weights.matrix_names(leaves, known) and len(found) == 2 * 3 * 5
    assert weights.matrix_names(leaves, known, heads=False) == [n for n in found if "head" not in n]


def test_filters_of_a_transposed_convolution_are_columns():
    kernel = normal(0, 3, 5, 4)  # places, outputs, inputs
    layer = nn.ConvTranspose(5, (3,), padding="VALID", transpose_kernel=True, use_bias=False)
    ((name, layout),) = weights.layouts_of(layer, jnp.zeros((1, 4)))
    (matrix,) = weights.weight_matrices({name: jnp.asarray(kernel)}, [(name, layout)]).values()
    np.testing.assert_array_equal(matrix, kernel.transpose(0, 2, 1).reshape(12, 5))


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (TRANSFORMER, TOKENS),
        (EmbMLP(vocab_size=7, d_model=4, d_ff=3, activation="tanh"), TOKENS),
        (UNet(base_width=2), PICTURES),
    ],
    ids=["transformer", "emb_mlp", "unet"],
)
def test_names_of_the_labs_own_leaves_say_what_their_layers_say(model, example):
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0), example)
    known = weights.layouts_of(model, example)
    assert known == weights.named_layouts(shapes)
    assert not weights.left_out({name: leaf.shape for name, leaf in named_leaves(shapes).items()}, known)
    convolutions = [leaf for leaf, _ in known if len(named_leaves(shapes)[leaf].shape) == 4]
    assert len(convolutions) == (12 if isinstance(model, UNet) else 0)


def test_matrices_of_a_transformer_are_its_leaves_untouched():
    params = jax.jit(functools.partial(models.init, TRANSFORMER))(jax.random.key(0), TOKENS)
    found, leaves = weights.weight_matrices(params), named_leaves(params)
    assert all(found[name] is leaves[name] for name in found)
    assert list(found) == [name for name in leaves if name.endswith(("kernel", "embedding"))]
    assert weights.kernel_names(params) == [name for name in found if name.endswith("kernel")]


def test_heads_count_once_in_norms_of_all_matrices():
    params = {"attention": {"query": {"kernel": jnp.asarray(normal(0, 6, 2, 3))}}, "head": {"kernel": normal(1, 3, 4)}}
    flat = {"attention": {"query": {"kernel": params["attention"]["query"]["kernel"].reshape(6, 6)}}} | {
        "head": params["head"]
    }
    found, expected = complexity.norms(params), complexity.norms(flat)
    for name in ("log_spectral_product", "log_frobenius_product", "log_frobenius_whole"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found["log_spectral"].shape == (4,) and expected["log_spectral"].shape == (2,)
    start = jax.tree.map(jnp.zeros_like, params)
    whole = complexity.distance(params, start)["log_distance_whole"]
    np.testing.assert_array_equal(whole, expected["log_frobenius_whole"])


@pytest.mark.parametrize(
    ("inputs", "shape", "expected"),
    [
        ((0, -1), (2, 3, 4), Layout((0, 2))),
        (6, (2, 3, 4), Layout((0, 1))),
        (12, (2, 3, 4), Layout((1, 2))),
        (4, (2, 3, 4), Layout((2,))),
        (8, (2, 3, 4), None),
        (99, (3, 4), Layout((0,))),
    ],
)
def test_inputs_that_a_module_names_are_the_rows_where_they_can_only_be_these(inputs, shape, expected):
    assert layouts.of_inputs(inputs, shape) == expected


def test_what_is_no_matrix_is_said():
    shapes = {"w": (2, 3, 4), "table": (3, 4), "query/bias": (2, 4), "scale": (3,), "kernel": (3, 4)}
    assert weights.left_out(shapes, [("kernel", Layout((0,)))]) == ("w (2, 3, 4)", "table (3, 4)")
