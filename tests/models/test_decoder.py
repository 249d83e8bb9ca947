import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import init, matrices, models, perturb, tree
from lab.analysis import flatness, lens, rank, weights
from lab.models import acts as acts_module
from lab.models.decoder import rotate
from lab.tree import named_leaves

EPS64 = 2.0**-52
B, L, V, D, H, K, F, N_LAYERS = 2, 6, 12, 8, 4, 4, 10, 3
TOKENS = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
VARIANTS = {
    "Llama": dict(n_kv_heads=2),
    "NeoX": dict(
        gated=False, activation="gelu", norm_kind="layer", parallel=True, rope_share=0.5, use_bias=True, norm_eps=1e-5
    ),
    "all norms, tied": dict(n_kv_heads=1, embed_norm=True, sandwich_norm=True, qk_norm=True, tied_head=True),
}
forward = jax.jit(models.forward, static_argnums=0)


def decoder(**changes):
    sizes = dict(vocab_size=V, max_length=0, n_layers=N_LAYERS, n_heads=H, d_model=D, d_head=K, d_ff=F, norm_eps=0.1)
    return models.Decoder(**sizes | changes)


def shapes(model):
    return jax.eval_shape(functools.partial(models.init, model), jax.random.key(0), TOKENS)


def row(model, seed=1):
    """Parameters of the model, all entries moved off their initial value: norms are not 1 and 0."""
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        return float(name.endswith("scale")) + rng.standard_normal(leaf.shape) / math.sqrt(D)

    return tree.map_named(draw, shapes(model))


def by_hand(model, params, tokens_BxL):
    """The same forward pass in numpy, sequence by sequence, layer by layer and head by head: logits and activations."""
    acts = {}

    def norm(p, name, x):
        if model.norm_kind == "layer":
            centred = x - x.mean(-1, keepdims=True)
            return (
                centred / np.sqrt((centred**2).mean(-1, keepdims=True) + model.norm_eps) * p[f"{name}/scale"]
                + p[f"{name}/bias"]
            )
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_eps) * p[f"{name}/scale"]

    def affine(p, name, x):
        return x @ p[f"{name}/kernel"] + (p[f"{name}/bias"] if model.use_bias else 0)

    def act(x):
        if model.activation == "gelu":
            return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return x / (1 + np.exp(-x))

    def turned(x_LxK):
        n = int(model.rope_share * K)
        rate = model.rope_theta ** (-2 * np.arange(n // 2) / n)
        pairs = (x_LxK[:, : n // 2] + 1j * x_LxK[:, n // 2 : n]) * np.exp(1j * np.arange(L)[:, None] * rate)
        return np.concatenate([pairs.real, pairs.imag, x_LxK[:, n:]], axis=1)

    def attend(p, x, note):
        groups, heads = model.n_kv_heads or H, []
        q, k, v = (affine(p, f"attn/{name}", x) for name in ("query", "key", "value"))
        for h in range(H):
            g = h * groups // H
            parts = q[:, h * K : h * K + K], k[:, g * K : g * K + K]
            if model.qk_norm:
                parts = [norm(p, f"attn/{n}_norm", part) for n, part in zip(("query", "key"), parts, strict=True)]
            q_h, k_h = map(turned, parts)
            score = np.where(np.tri(L, dtype=bool), q_h @ k_h.T / math.sqrt(K), -1e9)
            pattern = np.exp(score - score.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            note["attn/score"].append(score)
            note["attn/pattern"].append(pattern)
            heads.append(pattern @ v[:, g * K : g * K + K])
        return affine(p, "attn/out", np.concatenate(heads, -1))

    def mlp(p, x, note):
        note["mlp/pre"] = affine(p, "mlp/gate" if model.gated else "mlp/in", x)
        note["mlp/post"] = act(note["mlp/pre"])
        if model.gated:
            note["mlp/up"] = affine(p, "mlp/in", x)
            note["mlp/post"] = note["mlp/post"] * note["mlp/up"]
        return affine(p, "mlp/out", note["mlp/post"])

    def sequence(tokens_L):
        p = named_leaves(params)
        h = p["embed/token/embedding"][tokens_L]
        found = {"embed": norm(p, "embed_norm", h) if model.embed_norm else h}
        h = found["embed"]
        for i, layer in enumerate(tree.by_layer(params)):
            p_i, note = named_leaves(layer), {"attn/score": [], "attn/pattern": [], "resid_pre": h}
            out = note["attn/out"] = attend(p_i, norm(p_i, "attn_norm", h), note)
            note["resid_mid"] = h + (norm(p_i, "attn_out_norm", out) if model.sandwich_norm else out)
            out = note["mlp/out"] = mlp(p_i, norm(p_i, "mlp_norm", h if model.parallel else note["resid_mid"]), note)
            h = note["resid_post"] = note["resid_mid"] + (
                norm(p_i, "mlp_out_norm", out) if model.sandwich_norm else out
            )
            found |= {f"block_{i}/{name}": np.array(value) for name, value in note.items()}
        found["final"] = norm(p, "final_norm", h)
        head = p["embed/token/embedding"].T if model.tied_head else p["head/kernel"]
        return found | {"logits": found["final"] @ head}

    for found in map(sequence, tokens_BxL):
        for name, value in found.items():
            acts.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in acts.items()}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_are_those_of_a_forward_pass_by_hand(variant):
    model = decoder(**VARIANTS[variant])
    params = row(model)
    _, acts = forward(model, params, TOKENS)
    expected = by_hand(model, params, TOKENS)
    names = set(re.findall(r"`([\w/]+)`", acts_module.__doc__.partition("Mamba")[0]))
    assert {re.sub(r"block_\d+", "block_i", name) for name in acts} <= names | {"block_i/attn/v", "block_i/mlp/up"}
    for name, value in expected.items():
        # Rotations by angles in float32, off by 2^-24 of at most 5 radians: 3e-7 of numbers below ten.
        np.testing.assert_allclose(acts[name], value, rtol=0, atol=5e-6, err_msg=name)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("variant", VARIANTS)
def test_scan_loop_and_recomputation_are_one_function_with_one_gradient(variant):
    scanned = decoder(**VARIANTS[variant])

    def loss_and_gradient(model, params):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(models.forward(model, p, TOKENS)[0]))))(params)

    params = row(scanned)
    loss, gradient = loss_and_gradient(scanned, params)
    for changes in (dict(remat=True), dict(scan_layers=False), dict(scan_layers=False, remat=True)):
        model = scanned.clone(**changes)
        other_loss, other = loss_and_gradient(model, params if model.scan_layers else tree.unstack_layers(params))
        # The same operations, their sums in another order: a thousand of numbers below a hundred.
        np.testing.assert_allclose(other_loss, loss, rtol=1e5 * EPS64)
        other = other if model.scan_layers else tree.stack_layers(other)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e6 * EPS64), other, gradient)


def test_compiled_program_does_not_grow_with_depth():
    """What a training step compiles, rows side by side: loss and gradient."""

    def size(n_layers, scan_layers):
        model = decoder(remat=True, scan_layers=scan_layers).clone(n_layers=n_layers)
        rows = jax.eval_shape(lambda p: jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), p), shapes(model))

        def loss(params):
            return jnp.sum(models.forward(model, params, TOKENS)[0])

        return len(jax.jit(jax.vmap(jax.value_and_grad(loss))).lower(rows).as_text().splitlines())

    assert size(2, True) == size(8, True)
    assert size(8, False) > 2 * size(2, False)  # and the measure would see it


def test_recomputation_keeps_one_state_of_the_stream_a_layer():
    def kept(remat):
        model = decoder(remat=remat).clone(n_layers=16)
        traced = jax.eval_shape(lambda p: jax.vjp(lambda p: models.forward(model, p, TOKENS)[0], p)[1], shapes(model))
        return sorted(leaf.shape[1:] for leaf in jax.tree.leaves(traced) if leaf.shape[0] == 16 and leaf.ndim > 3)

    assert kept(True) == [(B, L, D)]
    assert len(kept(False)) > 10


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("remat", [True, False])
def test_edit_acts_where_it_is_named_and_only_there(scan_layers, remat):
    model = decoder(scan_layers=scan_layers, remat=remat)
    params = jax.tree.map(np.float32, row(model))
    layers = tree.by_layer(jax.tree.map(np.copy, params))
    layers[1]["attn"]["out"]["kernel"] = layers[1]["attn"]["out"]["kernel"] * 0
    without = {name: value for name, value in params.items() if "block" not in name}
    without |= {f"block_{i}": layer for i, layer in enumerate(layers)}
    expected, _ = forward(model, tree.stack_layers(without) if scan_layers else without, TOKENS)

    def ablated(params):
        return models.forward(model, params, TOKENS, {"block_1/attn/out": lambda x: 0 * x})[0]

    np.testing.assert_allclose(jax.jit(ablated)(params), expected, rtol=0, atol=1e-5)
    assert np.abs(np.asarray(forward(model, params, TOKENS)[0]) - expected).max() > 0.1
    with pytest.raises(ValueError, match=r"edit of 'block_3/attn/out': no such activation; did you mean 'block_"):
        models.forward(model, params, TOKENS, {"block_3/attn/out": lambda x: x})


@pytest.mark.usefixtures("double")
def test_positions_are_seen_by_their_distance_alone():
    """q_i . k_j of rotated vectors depends on i - j, and a rotation is a product with e^(i position theta^(-2p/n))."""
    rng, n = np.random.default_rng(0), 6
    x = rng.normal(size=(1, 5, 2, 8))
    angle = np.arange(5)[:, None] * 50.0 ** (-2 * np.arange(n // 2) / n)
    turned = (x[..., :3] + 1j * x[..., 3:6]) * np.exp(1j * angle)[None, :, None]
    expected = np.concatenate([turned.real, turned.imag, x[..., 6:]], axis=-1)
    found = rotate(jnp.asarray(x), jnp.arange(5)[None], 50.0, n)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # angles are float32
    later = rotate(jnp.asarray(x), 7 + jnp.arange(5)[None], 50.0, n)
    scores = [np.einsum("bihk,bjhk->bhij", a, a) for a in (found, later)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


@pytest.mark.parametrize("scan_layers", [True, False])
def test_every_layers_matrices_have_their_own_inputs_and_std(scan_layers):
    model = decoder(n_kv_heads=2, scan_layers=scan_layers).clone(d_model=48, d_ff=96, vocab_size=60)
    found = init.leaves_of(model, TOKENS)
    assert found == init.by_name(shapes(model))  # names alone say it, too
    authors = init.leaves_of(model, TOKENS, "authors")
    assert authors == init.by_name(shapes(model), "authors")
    assert {leaf.factor for leaf in authors.values()} == {1.0, 1 / math.sqrt(2 * N_LAYERS)}
    groups = {
        "query": ("qk", 48), "key": ("qk", 48), "value": ("vo", 48), "attn/out": ("vo", H * K), "gate": ("mlp", 48),
        "mlp/in": ("mlp", 48), "mlp/out": ("mlp", 96), "embed": ("embed", 48), "head": ("head", 48),
    }  # fmt: skip
    for name, leaf in found.items():
        assert [(leaf.group, leaf.d_in)] == [said for part, said in groups.items() if part in name], name

    rates = {"embed": 0.3, "qk": 1.0, "vo": 0.6, "mlp": init.Sigma(0.02), "head": 0.9}
    params = init.rescale(models.init(model, jax.random.key(0), TOKENS), rates, leaves=found)
    drawn = weights.weight_matrices(params, weights.layouts_of(model, TOKENS))
    assert len(drawn) == 7 * N_LAYERS + 2
    for name, matrix in drawn.items():
        leaf = found[name.partition("[")[0]]
        rate = rates[leaf.group]
        std = rate.std if isinstance(rate, init.Sigma) else leaf.d_in**-rate
        seen = np.sqrt(np.mean(np.square(np.asarray(matrix, np.float64))))
        assert abs(seen / std - 1) < 4 / np.sqrt(2 * matrix.size), name  # four standard errors


@pytest.mark.parametrize("scan_layers", [True, False])
def test_another_layer_changes_no_other_layers_start(scan_layers):
    few, more = (
        tree.by_layer(models.init(decoder(scan_layers=scan_layers).clone(n_layers=n), jax.random.key(0), TOKENS))
        for n in (2, 3)
    )
    jax.tree.map(np.testing.assert_array_equal, few, more[:2])
    assert not np.array_equal(*(layer["mlp"]["in"]["kernel"] for layer in few))


def test_stacked_matrices_and_circuits_are_those_of_the_layers_apart():
    model = decoder(n_kv_heads=2)
    params = jax.tree.map(np.float32, row(model))
    apart = tree.unstack_layers(params)
    found = weights.weight_matrices(params, weights.layouts_of(model, TOKENS))
    assert found.keys() == weights.weight_matrices(params).keys()  # by their names alone
    others = weights.weight_matrices(apart, weights.layouts_of(model.clone(scan_layers=False), TOKENS))
    for name, matrix in others.items():
        stacked = re.sub(r"block_(\d+)/(.*)", r"blocks/\2[\1]", name)
        np.testing.assert_array_equal(found[stacked], matrix)
    for one, other in zip(*(rank.circuit_factors(p, H).values() for p in (params, apart)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert {matrix.layout.copies for name, matrix in matrices.find(model, TOKENS).matrices.items() if "bl" in name} == {
        (0,)
    }


def test_noise_and_filter_norms_are_relative_to_every_layer_apart():
    """As they are where layers are not stacked: noise of each layer has its own size, a filter one layer's columns."""
    params = jax.tree.map(np.float32, row(decoder()))
    apart = tree.by_layer(params)
    name = "mlp/in/kernel"
    kernels_NxDxF = np.stack([named_leaves(layer)[name] * 10**i for i, layer in enumerate(apart)])
    params["blocks"]["mlp"]["in"]["kernel"] = kernels_NxDxF
    direction = flatness.filter_normalized(jax.random.key(0), params)["blocks"]["mlp"]["in"]["kernel"]
    columns = [np.linalg.norm(np.asarray(a, np.float64), axis=1) for a in (direction, kernels_NxDxF)]
    np.testing.assert_allclose(*columns, rtol=1e-5)
    noised = perturb.weight_noise(params, jax.random.key(0), 0.1)["blocks"]["mlp"]["in"]["kernel"]
    moved_N, size_N = (np.sqrt(np.mean(np.square(a), axis=(1, 2))) for a in (noised - kernels_NxDxF, kernels_NxDxF))
    assert (abs(moved_N / size_N / 0.1 - 1) < 4 / np.sqrt(2 * D * F)).all()  # four standard errors


def test_circuits_of_grouped_heads_have_the_key_of_their_group():
    """Score q (A B) k^T and output v (A B) by the factors are the model's own, where nothing is rotated or normed."""
    model = decoder(n_kv_heads=2, rope_share=0.0).clone(n_layers=1)
    params = jax.tree.map(np.float32, row(model))
    _, acts = forward(model, params, TOKENS)
    x = np.asarray(acts["block_0/resid_pre"])
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + model.norm_eps) * params["blocks"]["attn_norm"]["scale"][0]
    (a_q, b_q), (a_v, b_v) = (pair for pair in rank.circuit_factors(params, H).values())
    score = np.einsum("bqd,hdk,hke,ble->bhql", x, a_q[0], b_q[0], x) / math.sqrt(K)
    seen = acts["block_0/attn/score"]
    np.testing.assert_allclose(np.tril(score), np.tril(seen), rtol=0, atol=1e-4)
    out = np.einsum("bhql,bld,hdk,hke->bqe", acts["block_0/attn/pattern"], x, a_v[0], b_v[0])
    np.testing.assert_allclose(out, acts["block_0/attn/out"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lens_reads_the_models_own_logits_off_its_last_state(variant):
    model = decoder(**VARIANTS[variant])
    params = jax.tree.map(np.float32, row(model))
    logits, acts = forward(model, params, TOKENS)
    read = lens.logit_lens(model, params, acts[f"block_{N_LAYERS - 1}/resid_post"])
    np.testing.assert_allclose(read, logits, rtol=0, atol=1e-5)


def test_last_readout_is_the_last_position_of_all():
    model = decoder()
    params = jax.tree.map(np.float32, row(model))
    logits, _ = forward(model, params, TOKENS)
    last, _ = forward(model.clone(readout="last"), params, TOKENS)
    np.testing.assert_allclose(last, logits[:, -1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(n_kv_heads=3), r"model\.n_kv_heads=3: must divide model\.n_heads=4"),
        (dict(norm_kind="batch"), r"model\.norm_kind='batch': one of rms, layer"),
        (dict(norm_eps=-1.0), r"model\.norm_eps=-1\.0: must be at least 0"),
        (dict(rope_share=1.5), r"model\.rope_share=1\.5: a number from 0 to 1"),
        (dict(rope_theta=0.5), r"model\.rope_theta=0\.5: must be at least 1"),
    ],
)
def test_impossible_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        decoder(**changes)


def test_more_tokens_than_the_model_reads_are_refused():
    with pytest.raises(ValueError, match=r"6 tokens: the model reads at most model\.max_length=5"):
        shapes(decoder().clone(max_length=5))
