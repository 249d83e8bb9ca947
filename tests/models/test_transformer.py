import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.models import acts as acts_module
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
EPS64 = 2.0**-52
SIZES = {"B": 3, "L": 6, "D": 8, "H": 2, "K": 3, "F": 10, "V": 12}  # heads do not fill the width
N_LAYERS = 2
VARIANTS = {
    "paper 1": dict(norm="post", activation="relu", n_heads=1, use_bias=False, final_norm=False),
    "paper 2": dict(norm="pre", activation="gelu", use_bias=True),
    "no norm": dict(norm="none", activation="tanh", use_bias=True, tied_head=True, n_layers=1),
    "post with biases": dict(norm="post", activation="tanh", use_bias=True, head_bias=False, n_layers=1),
    "bare": dict(norm="none", activation="gelu", use_bias=False, head_bias=False, final_norm=False, n_layers=1),
}
forward = jax.jit(models.forward, static_argnums=0)


def transformer(**changes):
    options = dict(
        vocab_size=SIZES["V"], max_length=SIZES["L"] + 2, n_layers=N_LAYERS, n_heads=SIZES["H"], d_model=SIZES["D"],
        d_head=SIZES["K"], d_ff=SIZES["F"], activation="gelu", norm="pre", use_bias=True, head_bias=True,
        final_norm=True, tied_head=False, readout="all",
    )  # fmt: skip
    return models.Transformer(**options | changes)


TOKENS = np.random.default_rng(0).integers(0, SIZES["V"], (SIZES["B"], SIZES["L"])).astype(np.int32)
REPEATED = np.array([[4] * SIZES["L"], [1, 2] * (SIZES["L"] // 2)], np.int32)


def row(model, seed=1):
    """Parameters of the model, all entries moved off their initial value: norms are not 1 and 0."""
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0), TOKENS)
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        centre = 1.0 if name.endswith("scale") else 0.0
        return centre + rng.standard_normal(leaf.shape) / math.sqrt(SIZES["D"])

    leaves = [draw(name, leaf) for name, leaf in named_leaves(shapes).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def single(params):
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), params)


def by_hand(model, params, tokens_BxL):
    """The same forward pass in numpy, sequence by sequence and head by head; logits (B, L, V) and named activations."""
    p = named_leaves(params)

    def affine(name, x):
        return x @ p[f"{name}/kernel"] + p.get(f"{name}/bias", 0.0)

    def normed(name, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + 1e-5) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def bend(x):
        erf = np.vectorize(math.erf)
        return {
            "relu": lambda: np.maximum(x, 0),
            "gelu": lambda: x * 0.5 * (1 + erf(x / math.sqrt(2))),
            "tanh": lambda: np.tanh(x),
        }[model.activation]()

    def attend(name, x_LxD):
        q, k, v = (affine(f"{name}/{part}", x_LxD) for part in ("query", "key", "value"))
        mixed = np.zeros((len(x_LxD), model.n_heads * model.d_head))
        for head in range(model.n_heads):
            columns = slice(head * model.d_head, (head + 1) * model.d_head)
            for position in range(len(x_LxD)):
                seen = slice(0, position + 1)
                weight = np.exp(k[seen, columns] @ q[position, columns] / math.sqrt(model.d_head))
                mixed[position, columns] = weight @ v[seen, columns] / weight.sum()
        return affine(f"{name}/out", mixed)

    def sequence(tokens_L):
        h = p["embed/token/embedding"][tokens_L] + p["embed/position/embedding"][: len(tokens_L)]
        streams = {}
        for i in range(model.n_layers):
            block = f"block_{i}"
            streams[f"{block}/resid_pre"] = h
            h = h + attend(f"{block}/attn", normed(f"{block}/attn_norm", h) if model.norm == "pre" else h)
            h = normed(f"{block}/attn_norm", h) if model.norm == "post" else h
            streams[f"{block}/resid_mid"] = h
            inner = affine(f"{block}/mlp/in", normed(f"{block}/mlp_norm", h) if model.norm == "pre" else h)
            h = h + affine(f"{block}/mlp/out", bend(inner))
            h = normed(f"{block}/mlp_norm", h) if model.norm == "post" else h
            streams[f"{block}/resid_post"] = h
        streams["final"] = h = normed("final_norm", h) if model.final_norm else h
        streams["logits"] = h @ p["embed/token/embedding"].T if model.tied_head else affine("head", h)
        return streams

    rows = [sequence(tokens_L) for tokens_L in tokens_BxL]
    return {name: np.stack([streams[name] for streams in rows]) for name in rows[0]}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_pass_is_the_one_written_by_hand(variant):
    # Some twenty operations a block and three blocks' worth of them, each off by at most eps times the ten terms it
    # sums; a norm or softmax passes an error on at most tenfold, five times in a row at worst in the directions
    # that survive: 1e3. In all 60 * 10 * 1e3 eps of numbers near one: 1e-10, where another eps in a norm, another
    # gelu or a bias left out would make 1e-6 or more.
    tolerance = 6e5 * EPS64
    for readout in ("all", "last"):
        model = transformer(readout=readout, **VARIANTS[variant])
        params = row(model)
        logits, acts = forward(model, params, TOKENS)
        assert logits.dtype == jnp.float64
        expected = by_hand(model, params, TOKENS)
        for name, value in expected.items():
            positions = acts[name].shape[1]
            np.testing.assert_allclose(acts[name], value[:, -positions:], rtol=0, atol=tolerance, err_msg=name)
        positions = 1 if readout == "last" else SIZES["L"]
        np.testing.assert_array_equal(logits, acts["logits"])
        assert logits.shape[1] == positions


def documented():
    """Name -> dimensions, from the table that `lab.models.acts` documents."""
    table = {}
    for line in acts_module.__doc__.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            full, *further = re.findall(r"`([^`]+)`", cells[0])
            for name in (full, *(full.rsplit("/", 1)[0] + more for more in further)):
                table[name] = cells[1].split()
    return table


@pytest.mark.parametrize("readout", models.READOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_are_those_documented_with_the_documented_shapes(readout, variant):
    model = transformer(readout=readout, **VARIANTS[variant])
    _, acts = jax.eval_shape(functools.partial(models.forward, model), single(row(model)), TOKENS)
    sizes = SIZES | {"H": model.n_heads}
    expected = {}
    for name, dims in documented().items():
        for i in range(model.n_layers) if name.startswith("block_i/") else [model.n_layers - 1]:
            shortened = readout == "last" and i == model.n_layers - 1
            lengths = {"Q": 1 if shortened else SIZES["L"]}
            expected[name.replace("block_i", f"block_{i}")] = tuple((sizes | lengths)[dim] for dim in dims)
    assert len(documented()) == 16
    assert {name: act.shape for name, act in acts.items()} == expected


def test_attention_rows_sum_to_one_and_look_only_back():
    model = transformer()
    _, acts = forward(model, single(row(model)), TOKENS)
    for i in range(N_LAYERS):
        pattern_BxHxQxL = np.asarray(acts[f"block_{i}/attn/pattern"], np.float64)
        # L quotients, each rounded, of an L-term sum: (L + 1) eps.
        np.testing.assert_allclose(pattern_BxHxQxL.sum(axis=-1), 1, rtol=0, atol=(SIZES["L"] + 1) * EPS)
        assert (pattern_BxHxQxL >= 0).all()
        assert (pattern_BxHxQxL[..., ~np.tri(SIZES["L"], dtype=bool)] == 0).all()  # exp(-1e9) underflows
        assert (acts[f"block_{i}/attn/score"][..., ~np.tri(SIZES["L"], dtype=bool)] == -1e9).all()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_readouts_have_the_same_parameters_and_agree_at_the_last_position(variant):
    models_by_readout = {readout: transformer(readout=readout, **VARIANTS[variant]) for readout in models.READOUTS}
    params = row(models_by_readout["all"])
    assert jax.tree.structure(params) == jax.tree.structure(row(models_by_readout["last"]))
    logits = {readout: forward(model, params, TOKENS)[0] for readout, model in models_by_readout.items()}
    # The same sums in another order: see the tolerance of the forward pass.
    np.testing.assert_allclose(logits["last"][:, 0], logits["all"][:, -1], rtol=0, atol=2 * 6e5 * EPS64)


@pytest.mark.usefixtures("double")
def test_no_positions_are_positions_of_zero_and_any_length():
    params = row(transformer())
    embed = params["embed"]
    at_zero = params | {"embed": embed | {"position": {"embedding": np.zeros_like(embed["position"]["embedding"])}}}
    without = params | {"embed": {"token": embed["token"]}}
    assert jax.tree.structure(row(transformer(max_length=0))) == jax.tree.structure(without)
    expected, _ = forward(transformer(), at_zero, TOKENS)
    np.testing.assert_array_equal(forward(transformer(max_length=0), without, TOKENS)[0], expected)
    longer = jax.eval_shape(lambda: forward(transformer(max_length=0), without, np.zeros((1, 99), np.int32))[0])
    assert longer.shape == (1, 99, SIZES["V"])


@pytest.mark.parametrize("position", range(1, SIZES["L"]))
def test_later_tokens_leave_earlier_activations_bitwise_alone(position):
    model = transformer()
    params = single(row(model))
    changed = TOKENS.copy()
    changed[:, position:] = (changed[:, position:] + 1 + np.arange(SIZES["L"] - position)) % SIZES["V"]
    (before, acts_before), (after, acts_after) = (forward(model, params, tokens) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(after[:, :position], before[:, :position])
    for i in range(N_LAYERS):
        name = f"block_{i}/resid_post"
        np.testing.assert_array_equal(acts_after[name][:, :position], acts_before[name][:, :position])
    assert (np.abs(after[:, position:] - before[:, position:]).max(axis=-1) > 1e-3).all()  # and is felt from there on


def test_sequences_do_not_read_each_other():
    model = transformer()
    params = single(row(model))
    changed = TOKENS.copy()
    changed[1] = (changed[1] + 1) % SIZES["V"]
    before, after = (np.asarray(forward(model, params, tokens)[0]) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def zeroed(params, names):
    """Parameters with these leaves at zero; refuses a name that is not there."""
    leaves = named_leaves(params)
    assert set(names) <= leaves.keys()
    values = [np.zeros_like(leaf) if name in names else leaf for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), values)


@pytest.mark.parametrize("norm", ["pre", "none"])
def test_attention_alone_is_a_transformer_whose_mlps_add_nothing(norm):
    full, alone = (transformer(norm=norm, **changes) for changes in ({}, {"d_ff": 0}))
    params = single(row(full))
    silent = zeroed(params, [f"block_{i}/mlp/out/{leaf}" for i in range(N_LAYERS) for leaf in ("kernel", "bias")])
    own = {
        name: {part: of for part, of in block.items() if part not in ("mlp", "mlp_norm")}
        for name, block in params.items()
    }
    shapes = jax.eval_shape(functools.partial(models.init, alone), jax.random.key(0), TOKENS)
    assert jax.tree.structure(own) == jax.tree.structure(shapes)
    logits, acts = models.forward(alone, own, TOKENS)
    np.testing.assert_array_equal(logits, models.forward(full, silent, TOKENS)[0])
    assert not [name for name in acts if "mlp" in name]


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("embed", ["embed/token/embedding", "embed/position/embedding"]),
        ("block_0/attn/q", ["block_0/attn/query/kernel", "block_0/attn/query/bias"]),
        ("block_0/attn/k", ["block_0/attn/key/kernel", "block_0/attn/key/bias"]),
        ("block_1/attn/v", ["block_1/attn/value/kernel", "block_1/attn/value/bias"]),
        ("block_0/attn/z", ["block_0/attn/value/kernel", "block_0/attn/value/bias"]),
        ("block_0/attn/out", ["block_0/attn/out/kernel", "block_0/attn/out/bias"]),
        ("block_1/mlp/pre", ["block_1/mlp/in/kernel", "block_1/mlp/in/bias"]),
        ("block_1/mlp/post", ["block_1/mlp/in/kernel", "block_1/mlp/in/bias"]),  # gelu(0) = 0
        ("block_1/mlp/out", ["block_1/mlp/out/kernel", "block_1/mlp/out/bias"]),
        ("final", ["final_norm/scale", "final_norm/bias"]),
        ("logits", ["head/kernel", "head/bias"]),
    ],
)
def test_ablation_by_edit_is_zeroing_the_weights(name, removed):
    model = transformer()
    params = single(row(model))
    edited, acts = models.forward(model, params, TOKENS, {name: jnp.zeros_like})
    without, _ = models.forward(model, zeroed(params, removed), TOKENS)
    np.testing.assert_array_equal(edited, without)
    assert (acts[name] == 0).all()  # what is returned is what was used
    assert np.abs(edited - models.forward(model, params, TOKENS)[0]).max() > 1e-3


def test_patching_a_stream_from_another_run_gives_the_other_run():
    model = transformer()
    params = single(row(model))
    other_logits, other = models.forward(model, params, REPEATED)
    for name in ("embed", "block_0/resid_post", "block_1/resid_mid", "final"):
        # After block_1/resid_mid nothing else is read: the whole stream was replaced.
        patched, _ = models.forward(model, params, TOKENS[:2], {name: lambda _, name=name: other[name]})
        np.testing.assert_array_equal(patched, other_logits)


def test_pattern_edited_to_uniform_makes_the_output_a_mean_of_values():
    model = transformer(n_layers=1)
    params = single(row(model))
    uniform = np.tri(SIZES["L"], dtype=np.float32) / np.arange(1, SIZES["L"] + 1, dtype=np.float32)[:, None]
    edits = {"block_0/attn/pattern": lambda pattern: jnp.broadcast_to(uniform, pattern.shape)}
    _, acts = models.forward(model, params, TOKENS, edits)
    values = np.asarray(acts["block_0/attn/v"], np.float64)
    expected = np.cumsum(values, axis=1) / np.arange(1, SIZES["L"] + 1)[:, None, None]
    # The quotient, a product and up to L additions of values below 10.
    np.testing.assert_allclose(acts["block_0/attn/z"], expected, rtol=0, atol=10 * (SIZES["L"] + 2) * EPS)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("block_0/attn/patern", "block_0/attn/pattern"),
        ("block_2/mlp/out", r"block_\d/mlp/out"),
        ("logit", "logits"),
        ("Embed", "embed"),
    ],
)
def test_an_unknown_edit_is_refused_with_the_nearest_name(name, nearest):
    model = transformer()
    with pytest.raises(ValueError, match=rf"edit of '{name}': no such activation; did you mean '{nearest}'\?"):
        models.forward(model, single(row(model)), TOKENS, {"logits": jnp.zeros_like, name: jnp.zeros_like})


def norm_of(tree):
    return math.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))


@functools.cache
def derivatives():
    """Gradient and Hessian-vector product of a mean loss, compiled once, and parameters to take them at."""
    model = transformer(norm="pre", activation="gelu", n_layers=1)

    def loss(params):
        logits, _ = models.forward(model, params, TOKENS)
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    gradient = jax.grad(loss)
    return jax.jit(gradient), jax.jit(lambda params, v: jax.jvp(gradient, (params,), (v,))[1]), row(model)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
def test_second_derivatives_exist_even_where_attention_is_masked_flat_or_saturated(scale):
    _, hessian_times, params = derivatives()  # at zero every score and every variance vanishes
    params = jax.tree.map(lambda leaf: leaf * scale, params)
    for leaf in jax.tree.leaves(hessian_times(params, jax.tree.map(np.ones_like, params))):
        assert np.isfinite(leaf).all()


@pytest.mark.usefixtures("double")
def test_hessian_vector_product_is_the_difference_of_gradients():
    gradient, hessian_times, params = derivatives()
    v = row(transformer(n_layers=1), seed=2)
    length = norm_of(v)
    v = jax.tree.map(lambda leaf: leaf / length, v)
    exact = hessian_times(params, v)

    def difference(h):
        ahead, behind = (gradient(jax.tree.map(lambda p, d, s=s: p + s * h * d, params, v)) for s in (1, -1))
        return jax.tree.map(lambda a, b: (a - b) / (2 * h), ahead, behind)

    h = 1e-4
    near, far = difference(h), difference(2 * h)
    # A central difference errs by c h^2: far - near is three times near's own error, up to the next order. Each
    # gradient is good to 6e5 eps (see the forward pass), divided by h.
    error = norm_of(jax.tree.map(jnp.subtract, near, exact))
    truncation = norm_of(jax.tree.map(jnp.subtract, far, near)) / 3
    assert error <= 1.1 * truncation + 6e5 * EPS64 / h
    assert truncation + 6e5 * EPS64 / h < 1e-3 * norm_of(exact)  # the test can tell
