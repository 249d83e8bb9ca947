import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import foreign

from lab import init, matrices, models, rng
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
    assert {name: leaf.group for name, leaf in init.by_name(unit).items()} == {n: g for n, (g, _) in matrices.items()}
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


@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_a_constant_std_is_that_of_every_matrix_whatever_its_inputs(convention):
    """sigma stands where fan^-gamma would: a group's own wins, and rows of either kind start from the same draw."""
    row = unit_row()
    hparams = {"sigma": 0.02, "sigma_qk": jnp.float32(0.3), "gamma_head": 0.5}
    found = named_leaves(
        jax.vmap(lambda qk: init.rescale(row, init.rates(hparams | {"sigma_qk": qk}), convention))(
            jnp.array([0.3, 0.1], jnp.float32)
        )
    )
    for name, leaf in init.by_name(row, convention).items():
        unit = np.asarray(named_leaves(row)[name], np.float64) * np.sqrt(leaf.d_in) * leaf.factor
        for i, qk in enumerate((0.3, 0.1)):
            std = {"qk": qk, "head": D**-0.5}.get(leaf.group, 0.02)
            np.testing.assert_allclose(found[name][i], unit * std, rtol=SCALED, atol=0)


def test_rows_with_a_rate_and_rows_with_a_std_are_one_program():
    """Each row of the mixed grid starts where a row of its own kind does."""
    row, leaves = unit_row(), init.by_name(unit_row())
    kinds = ({"gamma": 1.0, "gamma_qk": 0.7}, {"gamma": 0.4, "sigma_qk": 0.2}, {"sigma": 0.02, "sigma_qk": 0.3})
    mixed = {name: [kind.get(name, 0.0) for kind in kinds] for name in ("gamma", "sigma", "gamma_qk", "sigma_qk")}
    columns = {name: jnp.array(column, jnp.float32) for name, column in mixed.items()}
    together = jax.vmap(lambda hparams: init.rescale(row, init.rates(hparams), leaves=leaves))(columns)
    for i, kind in enumerate(kinds):
        alone = named_leaves(init.rescale(row, init.rates(kind), leaves=leaves))
        for name, leaf in named_leaves(together).items():
            np.testing.assert_allclose(leaf[i], alone[name], rtol=2 * SCALED, err_msg=name)
    first, last = init.ends(mixed)
    assert (first["mlp"], last["mlp"], last["qk"]) == (1.0, init.Sigma(0.02), init.Sigma(0.3))


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


# --- other people's modules ---


@functools.cache
def drawn(kind):
    """What the lab says of a foreign model's matrices, and all its leaves at two gammas."""
    model, _ = foreign.KINDS[kind]
    leaves = init.leaves_of(model, foreign.TOKENS)

    def start(gamma):
        return init.rescale(models.init(model, jax.random.key(1), foreign.TOKENS), same_rates(gamma), leaves=leaves)

    return leaves, named_leaves(jax.jit(jax.vmap(start))(jnp.array([0.3, 0.8], jnp.float32)))


@pytest.mark.parametrize("kind", foreign.KINDS)
def test_every_matrix_of_a_foreign_module_has_its_fan_in_to_the_minus_gamma(kind):
    model, expected = foreign.KINDS[kind]
    leaves, values = drawn(kind)
    ways = {name: matrix.drawn for name, matrix in matrices.find(model, foreign.TOKENS).matrices.items()}
    assert {name: (leaf.group, leaf.d_in, ways[name]) for name, leaf in leaves.items()} == expected
    for name, leaf in values.items():
        if name in expected and expected[name][2] != "constant":
            for row, gamma in enumerate((0.3, 0.8)):
                # Flax truncates its normal draw, which makes the sample's standard deviation vary less, not more.
                assert_draws(np.asarray(leaf[row], np.float64), expected[name][1] ** -gamma, name)
        else:
            np.testing.assert_array_equal(leaf[0], leaf[1], err_msg=name)


def test_only_matrices_of_another_std_are_drawn_anew():
    model, expected = foreign.KINDS["low rank"]
    own = named_leaves(jax.jit(model.init)(jax.random.key(1), foreign.TOKENS)["params"])
    unit = named_leaves(jax.jit(functools.partial(models.init, model))(jax.random.key(1), foreign.TOKENS))
    same = {name for name in own if np.array_equal(own[name], unit[name])}
    assert own.keys() - same == {name for name, (_, _, way) in expected.items() if way == "anew"}


def test_foreign_matrices_are_known_inside_a_traced_function_too():
    matrices._find.cache_clear()
    model, _ = foreign.KINDS["own initializer"]
    inside = jax.jit(lambda key: models.init(model, key, foreign.TOKENS))(jax.random.key(1))
    matrices._find.cache_clear()
    outside = jax.jit(functools.partial(models.init, model))(jax.random.key(1), foreign.TOKENS)
    jax.tree.map(np.testing.assert_array_equal, inside, outside)


class SaysOfWhatIsNot(foreign.Param):
    fan_in = {"v": 3}


class SaysNothing(foreign.Param):
    fan_in = {"w": 0}


class SaysNoAxis(foreign.Param):
    fan_in = {"w": (2,)}


class RowsOfNoAxis(foreign.SaidInputs):
    matrix_rows = {"w": (0, 2)}


class NoSuchGroup(foreign.SaidInputs):
    groups = {"w": "middle"}


class OfLists(nn.Module):
    sizes: list

    @nn.compact
    def __call__(self, tokens_BxL):
        return nn.Embed(3, 4)(tokens_BxL)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            foreign.layers(foreign.Param()),
            r"'parts_0/w' \(48, 48\) is drawn at random by Param, .* e.g. fan_in = {",
        ),
        (foreign.layers(SaysOfWhatIsNot()), "SaysOfWhatIsNot.fan_in: no leaf 'v'; there are w"),
        (foreign.layers(SaysNothing()), r"fan_in of 'parts_0/w' \(48, 48\): 0; accepted: a number from 1"),
        (
            foreign.layers(SaysNoAxis()),
            r"fan_in of 'parts_0/w' \(48, 48\): \(2,\); accepted: .* its axes",
        ),
        (
            foreign.layers(RowsOfNoAxis()),
            r"matrix_rows of 'parts_0/w' \(48, 48\): \(0, 2\); accepted: a tuple of its axes",
        ),
        (foreign.layers(NoSuchGroup()), "'parts_0/w' in 'middle', one of embed, qk, vo, mlp, head"),
        (foreign.layers(foreign.Normed()), "WeightNorm divides its kernel by its norm"),
        (OfLists([3]), "OfLists: its fields must be static, tuples and no lists"),
        (foreign.nnx.bridge.ToLinen(foreign.BridgedDropout), "dropout: dropout of NNX"),
    ],
)
def test_what_no_rate_can_follow_is_refused_in_one_line(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        init.leaves_of(model, foreign.TOKENS)
    assert "\n" not in str(caught.value)


def test_table_says_what_is_promised_beside_what_is_drawn():
    model, _ = foreign.KINDS["low rank"]
    ends = init.ends({"gamma": (0.8, 0.3, 0.5), "gamma_embed": (0.5,), "seed": (0, 1)})
    assert [each["mlp"] for each in ends] == [0.3, 0.8] and [each["embed"] for each in ends] == [0.5, 0.5]
    rows = {row.leaf: row for row in init.table(model, foreign.TOKENS, ends)}
    lora = rows["parts_0/lora_a"]
    assert lora.promised == (pytest.approx(48**-0.3), pytest.approx(48**-0.8)) and lora.d_in == 48
    leaves = init.leaves_of(model, foreign.TOKENS)
    unit = jax.jit(functools.partial(models.init, model))(rng.key(0, "init"), foreign.TOKENS)
    for i, rates in enumerate(ends):
        values = named_leaves(init.rescale(unit, rates, leaves=leaves))
        for name in leaves:
            rms = np.sqrt(np.mean(np.square(np.asarray(values[name], np.float64))))
            assert rows[name].measured[i] == pytest.approx(rms, rel=1e-5)
    text = init.lines(list(rows.values()), ends)
    assert text[0] == (
        "init: 4 matrices follow gamma (std d_in^-gamma), 1 of them drawn normal in place of their own initializer; "
        "3 leaves stay as drawn (biases and norms, constants: parts_0/lora_b)"
    )
    assert any(re.match(r"parts_0/lora_b +4x48 +stays as drawn, a constant", line) for line in text)
    assert any(re.match(r"parts_0/lora_a .*d_in 48 .*std 0.313 \(measured 0.\d+\) at gamma 0.3", line) for line in text)
    assert "measured" not in "".join(init.lines(init.table(model, foreign.TOKENS, ends, measure=False), ends))
    ends = init.ends({"sigma": (0.02, 0.5), "gamma_embed": (0.5,)})
    text = init.lines(init.table(model, foreign.TOKENS, ends, measure=False), ends)
    assert text[0].startswith("init: 4 matrices follow gamma (std d_in^-gamma) or sigma (their std), 1 of them")
    assert any(re.match(r"parts_0/lora_a .*d_in 48 .*std 0.02 at sigma 0.02, 0.5 at sigma 0.5", line) for line in text)


@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_layers_of_the_labs_own_models_say_what_their_names_say(convention):
    model = transformer()
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0), TOKENS)
    assert init.leaves_of(model, TOKENS, convention) == init.by_name(shapes, convention)
    assert {matrix.drawn for matrix in matrices.find(model, TOKENS).matrices.values()} == {"unit"}


def test_unknown_convention_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"unknown init convention 'papers'; one of paper, authors"):
        init.rescale(unit_row(), same_rates(0.5), "papers")


def test_authors_convention_is_refused_where_it_is_not_defined():
    unit = models.init(models.EmbMLP(6, 4, 5, "tanh"), jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match=r"this model has embed/embedding, head/kernel, in/kernel; use 'paper'"):
        init.rescale(unit, same_rates(0.5), "authors")
