import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import init, models
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
# d^-gamma in float32: rounding gamma moves it by gamma ln(d) / 2 < 2.6 eps, the power itself errs by a few ulp; then
# the product with sqrt(d), and that with the draw.
SCALED = (2.6 + 4 + 2) * EPS
GAMMAS = (0.3, 0.5, 0.8, 1.0)
# Widths that no two kinds of fan-in share.
N_LAYERS, D, HEADS, D_HEAD, D_FF, VOCAB, LENGTH = 3, 48, 3, 24, 160, 90, 20
HK = HEADS * D_HEAD
TOKENS = jnp.zeros((1, LENGTH), jnp.int32)


def transformer(**changes):
    options = dict(
        vocab_size=VOCAB, max_length=LENGTH, n_layers=N_LAYERS, n_heads=HEADS, d_model=D, d_head=D_HEAD, d_ff=D_FF,
        activation="relu", norm="pre", use_bias=True, head_bias=True, final_norm=True, tied_head=False, readout="last",
    )  # fmt: skip
    return models.Transformer(**options | changes)


@functools.cache
def unit_row(**changes):
    return models.init(transformer(**changes), jax.random.key(0), TOKENS)


def in_blocks(entries):
    return {f"block_{i}/{name}": value for i in range(N_LAYERS) for name, value in entries.items()}


# The released models' table, section 0 of the reproduction notes: leaf -> std as a function of gamma.
SHRINK = 1 / np.sqrt(2 * N_LAYERS)
EMBEDDINGS = {"embed/token/embedding": lambda g: D**-g, "embed/position/embedding": lambda g: D**-g}
READ_D_MODEL = {
    "attn/query/kernel": lambda g: D**-g,
    "attn/key/kernel": lambda g: D**-g,
    "attn/value/kernel": lambda g: D**-g,
    "mlp/in/kernel": lambda g: D**-g,
}
HEAD = {"head/kernel": lambda g: D**-g}
EXPECTED_STD = {
    "paper": EMBEDDINGS
    | in_blocks(READ_D_MODEL | {"attn/out/kernel": lambda g: HK**-g, "mlp/out/kernel": lambda g: D_FF**-g})
    | HEAD,
    "authors": EMBEDDINGS
    | in_blocks(
        READ_D_MODEL | {"attn/out/kernel": lambda g: SHRINK * D**-g, "mlp/out/kernel": lambda g: SHRINK * D**-g}
    )
    | HEAD,
}
# PyTorch's default bias is uniform on +- 1 / sqrt(inputs of its layer).
HEAD_BIAS = {"head/bias": D}
BIAS_INPUTS = HEAD_BIAS | in_blocks(
    {
        "attn/query/bias": D,
        "attn/key/bias": D,
        "attn/value/bias": D,
        "attn/out/bias": HK,
        "mlp/in/bias": D,
        "mlp/out/bias": D_FF,
    }
)
NORMS = ("final_norm", *in_blocks({"attn_norm": None, "mlp_norm": None}))
GROUP_OF = {
    "embed/token": "embed", "embed/position": "embed", "attn/query": "qk", "attn/key": "qk", "attn/value": "vo",
    "attn/out": "vo", "mlp/in": "mlp", "mlp/out": "mlp", "head": "head",
}  # fmt: skip
# What unit rate means for each matrix: its true number of inputs.
INPUTS = {name: {"attn/out/kernel": HK, "mlp/out/kernel": D_FF}.get(name[8:], D) for name in EXPECTED_STD["paper"]}


def assert_draws(values, std, name):
    """Mean 0 and the given standard deviation, each within four standard errors of a normal sample."""
    n = values.size
    assert abs(np.mean(values)) < 4 * std / np.sqrt(n), name
    assert abs(np.sqrt(np.mean(np.square(values))) / std - 1) < 4 / np.sqrt(2 * n), name


def same_rates(gamma):
    return init.rates({"gamma": gamma})


@pytest.mark.parametrize("convention", ["paper", "authors"])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_every_matrix_has_the_published_standard_deviation(convention, use_bias, gamma):
    unit = unit_row(use_bias=use_bias)
    leaves = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(unit).items()}
    rescaled = named_leaves(init.rescale(unit, same_rates(gamma), convention))
    biases = BIAS_INPUTS if use_bias else HEAD_BIAS
    norms = {f"{norm}/{name}" for norm in NORMS for name in ("scale", "bias")}
    assert set(rescaled) == EXPECTED_STD[convention].keys() | biases.keys() | norms  # every leaf has a statement
    for name, std_of in EXPECTED_STD[convention].items():
        value = np.asarray(rescaled[name], np.float64)
        assert_draws(value, std_of(gamma), name)
        # And entry by entry, the unit draw scaled.
        np.testing.assert_allclose(value, leaves[name] * INPUTS[name] ** 0.5 * std_of(gamma), rtol=SCALED)


@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_biases_and_norms_are_not_rescaled(convention):
    for gamma in GAMMAS:
        rescaled = named_leaves(init.rescale(unit_row(), same_rates(gamma), convention))
        for name, inputs in BIAS_INPUTS.items():
            values, bound = np.asarray(rescaled[name], np.float64), inputs**-0.5
            assert np.abs(values).max() <= bound * (1 + EPS)  # the bound itself is rounded to float32
            # Of a uniform sample: the mean has standard error std / sqrt(n), the mean square (kurtosis 9/5)
            # std^2 sqrt(4/5 / n).
            std = bound / np.sqrt(3)
            assert abs(values.mean()) < 4 * std / np.sqrt(values.size), name
            assert abs(np.mean(values**2) / std**2 - 1) < 4 * np.sqrt(0.8 / values.size), name
        for norm in NORMS:
            assert (rescaled[f"{norm}/scale"] == 1).all() and (rescaled[f"{norm}/bias"] == 0).all()


# Model, an input, and its matrices: their group and number of inputs.
SMALL_MODELS = {
    "EmbMLP": (
        models.EmbMLP(VOCAB, D, D_FF, "tanh"),
        TOKENS,
        {"embed/embedding": ("embed", D), "in/kernel": ("mlp", D), "head/kernel": ("head", D_FF)},
    ),
    "TwoLayerMLP": (
        models.TwoLayerMLP(D, D_FF, D, "relu", False),
        jnp.ones((1, D), jnp.float32),
        {"in/kernel": ("mlp", D), "out/kernel": ("mlp", D_FF)},
    ),
}


@pytest.mark.parametrize("model", SMALL_MODELS)
def test_matrices_of_the_small_models_have_their_own_fan_in_and_no_attention_group(model):
    module, example, matrices = SMALL_MODELS[model]
    unit = models.init(module, jax.random.key(0), example)
    assert {name: leaf.group for name, leaf in init.table(unit).items()} == {n: g for n, (g, _) in matrices.items()}
    for gamma in GAMMAS:
        rescaled = named_leaves(init.rescale(unit, same_rates(gamma)))
        assert rescaled.keys() == matrices.keys()
        for name, (_, inputs) in matrices.items():
            assert_draws(np.asarray(rescaled[name], np.float64), inputs**-gamma, name)


@pytest.mark.parametrize("convention", ["paper", "authors"])
@pytest.mark.parametrize("group", init.GROUPS)
def test_the_rate_of_a_group_moves_only_its_group(convention, group):
    unit = unit_row()
    base = named_leaves(init.rescale(unit, same_rates(0.5), convention))
    rates = init.rates({"gamma": 0.5, f"gamma_{group}": 0.8, "weight_decay": 0.1})
    moved = {
        name
        for name, leaf in named_leaves(init.rescale(unit, rates, convention)).items()
        if not np.array_equal(leaf, base[name])
    }
    members = [stem for stem, its_group in GROUP_OF.items() if its_group == group]
    assert moved == {name for name in EXPECTED_STD["paper"] if name.rsplit("/", 1)[0].endswith(tuple(members))}


@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_traced_gammas_under_vmap_equal_separate_calls(convention):
    unit = unit_row()
    gammas = jnp.array(GAMMAS, jnp.float32)
    together = jax.jit(jax.vmap(lambda g: init.rescale(unit, same_rates(g), convention)))(gammas)
    for row, gamma in enumerate(GAMMAS):
        alone = named_leaves(init.rescale(unit, same_rates(gamma), convention))
        for name, leaf in named_leaves(together).items():
            # A vector's power and a scalar's may differ in their last bits.
            np.testing.assert_allclose(leaf[row], alone[name], rtol=2 * SCALED, err_msg=name)


def test_half_is_the_unit_rate():
    unit = named_leaves(unit_row())
    for name, leaf in named_leaves(init.rescale(unit_row(), same_rates(0.5))).items():
        np.testing.assert_allclose(leaf, unit[name], rtol=SCALED)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": N_LAYERS + 1},
        {"use_bias": False},
        {"head_bias": False},
        {"norm": "post"},
        {"norm": "none"},
        {"final_norm": False},
        {"tied_head": True},
        {"readout": "all"},
        {"activation": "gelu"},
    ],
)
def test_adding_or_removing_a_part_leaves_other_draws_bitwise_unchanged(changes):
    before, after = named_leaves(unit_row()), named_leaves(unit_row(**changes))
    for name in before.keys() & after.keys():
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert len(before.keys() & after.keys()) >= 2 + 6 * N_LAYERS  # embeddings and the blocks' matrices at least


def test_resizing_one_layer_leaves_the_others_bitwise_unchanged():
    before, after = named_leaves(unit_row()), named_leaves(unit_row(d_ff=HK))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if not name[8:].startswith(("mlp/in", "mlp/out"))}


def test_no_two_matrices_share_their_draw():
    leaves = {name: np.asarray(leaf).ravel() for name, leaf in named_leaves(unit_row()).items() if name in INPUTS}
    for one in leaves:
        for other in leaves:
            if one < other:
                n = min(leaves[one].size, leaves[other].size)
                correlation = np.corrcoef(leaves[one][:n], leaves[other][:n])[0, 1]
                # 210 coefficients of standard error 1/sqrt(n); five of them are passed once in 10^4 seeds.
                assert abs(correlation) < 5 / np.sqrt(n), (one, other)


class Foreign(nn.Module):
    """Somebody's model, with Flax's own layers and initializers."""

    @nn.compact
    def __call__(self, tokens_BxL):
        h = nn.Embed(80, 36)(tokens_BxL)
        h = h + nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=64)(h)
        h = nn.Conv(features=36, kernel_size=(3,))(nn.LayerNorm()(h))
        return nn.Dense(36, name="out")(nn.Dense(64, name="monkey")(h))


@functools.cache
def foreign_row():
    return Foreign().init(jax.random.key(1), TOKENS)["params"]


FOREIGN_INPUTS = {
    "Embed_0/embedding": 36,
    "MultiHeadDotProductAttention_0/query/kernel": 36,
    "MultiHeadDotProductAttention_0/key/kernel": 36,
    "MultiHeadDotProductAttention_0/value/kernel": 36,
    "MultiHeadDotProductAttention_0/out/kernel": 64,
    "Conv_0/kernel": 3 * 36,
    "monkey/kernel": 36,
    "out/kernel": 64,
}


@pytest.mark.parametrize("gamma", GAMMAS)
def test_every_kernel_of_a_foreign_module_has_its_fan_in_to_the_minus_gamma(gamma):
    unit = named_leaves(foreign_row())
    rescaled = named_leaves(init.rescale(foreign_row(), same_rates(gamma)))
    assert {name for name in rescaled if name.endswith(("kernel", "embedding"))} == FOREIGN_INPUTS.keys()
    for name, leaf in rescaled.items():
        if name in FOREIGN_INPUTS:
            # Flax truncates its normal draw, which makes the sample's standard deviation vary less, not more.
            assert_draws(np.asarray(leaf, np.float64), FOREIGN_INPUTS[name] ** -gamma, name)
        else:
            np.testing.assert_array_equal(leaf, unit[name])


def test_foreign_names_fall_in_the_group_of_their_role_or_in_mlp():
    groups = {name: leaf.group for name, leaf in init.table(foreign_row()).items()}
    expected = dict.fromkeys(FOREIGN_INPUTS, "mlp") | {"Embed_0/embedding": "embed"}
    attention = {"query": "qk", "key": "qk", "value": "vo", "out": "vo"}
    expected |= {f"MultiHeadDotProductAttention_0/{name}/kernel": group for name, group in attention.items()}
    assert groups == expected


def test_unknown_convention_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"unknown init convention 'papers'; one of paper, authors"):
        init.rescale(unit_row(), same_rates(0.5), "papers")


def test_authors_convention_is_refused_where_it_is_not_defined():
    unit = models.init(models.EmbMLP(6, 4, 5, "tanh"), jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match=r"this model has embed/embedding, head/kernel, in/kernel; use 'paper'"):
        init.rescale(unit, same_rates(0.5), "authors")
