import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.models import pretrained
from lab.models.pretrained import gpt2
from lab.tree import named_leaves

EPS64 = 2.0**-52
LAYERS, D, HEADS, VOCAB, LENGTH = 2, 16, 2, 30, 7
CONFIG = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": D, "vocab_size": VOCAB, "n_positions": LENGTH}
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, LENGTH - 1)).astype(np.int32)
forward = jax.jit(models.forward, static_argnums=0)


def checkpoint(inner=4 * D, dtype=np.float32):
    """Random tensors under GPT-2's names, large enough that its layers are far from linear."""
    rng = np.random.default_rng(1)

    def matrix(*shape):
        return rng.normal(0, 1.5 / math.sqrt(shape[0]), shape).astype(dtype)

    def vector(size, centre=0.0):
        return rng.normal(centre, 0.5, size).astype(dtype)

    tensors = {"wte.weight": matrix(VOCAB, D) * 3, "wpe.weight": matrix(LENGTH, D)}
    for i in range(LAYERS):
        for name, n_in, n_out in (("attn.c_attn", D, 3 * D), ("attn.c_proj", D, D)):
            tensors |= {f"h.{i}.{name}.weight": matrix(n_in, n_out), f"h.{i}.{name}.bias": vector(n_out)}
        for name, n_in, n_out in (("mlp.c_fc", D, inner), ("mlp.c_proj", inner, D)):
            tensors |= {f"h.{i}.{name}.weight": matrix(n_in, n_out), f"h.{i}.{name}.bias": vector(n_out)}
        for name in ("ln_1", "ln_2"):
            tensors |= {f"h.{i}.{name}.weight": vector(D, 1), f"h.{i}.{name}.bias": vector(D)}
    return tensors | {"ln_f.weight": vector(D, 1), "ln_f.bias": vector(D)}


def gpt2_logits(tensors, tokens_L, activation="gelu_new"):
    """GPT-2's forward pass of one sequence as published (openai/gpt-2, model.py), in float64: logits (L, V)."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}

    def norm(x, scope):
        u = np.mean(x, -1, keepdims=True)
        s = np.mean((x - u) ** 2, -1, keepdims=True)
        return (x - u) / np.sqrt(s + 1e-5) * w[f"{scope}.weight"] + w[f"{scope}.bias"]

    def conv1d(x, scope):
        return x @ w[f"{scope}.weight"] + w[f"{scope}.bias"]

    def act(x):
        if activation == "gelu_new":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return np.maximum(x, 0) if activation == "relu" else 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    h = w["wte.weight"][tokens_L] + w["wpe.weight"][: len(tokens_L)]
    for i in range(LAYERS):
        joint = conv1d(norm(h, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        heads = []
        for head in range(HEADS):
            width = D // HEADS
            q, k, v = (joint[:, part * D + head * width : part * D + (head + 1) * width] for part in range(3))
            score = np.where(np.tri(len(tokens_L), dtype=bool), q @ k.T / math.sqrt(width), -np.inf)
            weight = np.exp(score - score.max(-1, keepdims=True))
            heads.append(weight / weight.sum(-1, keepdims=True) @ v)
        h = h + conv1d(np.concatenate(heads, -1), f"h.{i}.attn.c_proj")
        h = h + conv1d(act(conv1d(norm(h, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return norm(h, "ln_f") @ w["wte.weight"].T


def double_logits(model, params):
    """The lab's forward pass of TOKENS in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm promotes
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        return np.asarray(forward(model, double, TOKENS)[0])


def rounding(logits):
    """Error bound of float64 logits: some sixty operations from token to logit, each off by eps times the at most 64
    terms it sums, an error growing at most tenfold on its way (moving every weight by 1e-9 of itself moves logits by
    2.7e-9 of the largest). 1e-11 of the largest logit: the other gelu moves them by 1e-4 of it, norms with eps 1e-6
    by 5e-6."""
    return 60 * 64 * 10 * EPS64 * np.abs(logits).max()


def assert_is_gpt2(config, given, tensors, activation="gelu_new"):
    """The model made of `given` is float32, and its logits in float64 are those of the definition."""
    model, params = gpt2(config, given)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    expected = np.stack([gpt2_logits(tensors, tokens_L, activation) for tokens_L in TOKENS])
    np.testing.assert_allclose(double_logits(model, params), expected, rtol=0, atol=rounding(expected))


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_logits_are_those_of_gpt2s_published_definition(prefix):
    tensors = checkpoint()
    assert_is_gpt2(CONFIG, {prefix + name: array for name, array in tensors.items()}, tensors)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_activation_and_hidden_width_are_those_of_the_config(activation):
    tensors = checkpoint(inner=24)
    assert_is_gpt2(CONFIG | {"activation_function": activation, "n_inner": 24}, tensors, tensors, activation)


def test_half_precision_is_widened_exactly():
    tensors = checkpoint(dtype=np.float16)
    assert_is_gpt2(CONFIG, tensors, tensors)


def test_mask_constants_and_a_copy_of_the_embedding_as_head_change_nothing():
    tensors = {"transformer." + name: array for name, array in checkpoint().items()}
    _, plain = gpt2(CONFIG, tensors)
    constants = {f"transformer.h.{i}.attn.bias": np.tri(LENGTH)[None, None] for i in range(LAYERS)}
    constants |= {f"transformer.h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(LAYERS)}
    head = {"lm_head.weight": tensors["transformer.wte.weight"].copy()}
    _, params = gpt2(CONFIG, tensors | constants | head)
    jax.tree.map(np.testing.assert_array_equal, params, plain)


def test_every_leaf_is_a_tensor_of_the_file_or_a_third_of_one():
    tensors = checkpoint()
    model, params = gpt2(CONFIG, tensors)
    expected = jax.eval_shape(lambda: models.init(model, jax.random.key(0), TOKENS))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    leaves = named_leaves(params)
    joint = np.concatenate([leaves[f"block_1/attn/{part}/kernel"] for part in ("query", "key", "value")], axis=1)
    np.testing.assert_array_equal(joint, tensors["h.1.attn.c_attn.weight"])
    np.testing.assert_array_equal(leaves["block_0/mlp_norm/scale"], tensors["h.0.ln_2.weight"])
    assert sum(leaf.size for leaf in leaves.values()) == sum(array.size for array in tensors.values())


def test_last_readout_gives_the_last_positions_logits():
    tensors = checkpoint()
    (all_model, params), (last_model, same) = gpt2(CONFIG, tensors), gpt2(CONFIG, tensors, readout="last")
    jax.tree.map(np.testing.assert_array_equal, params, same)
    every_BxLxV, last_Bx1xV = double_logits(all_model, params), double_logits(last_model, params)
    np.testing.assert_allclose(last_Bx1xV[:, 0], every_BxLxV[:, -1], rtol=0, atol=2 * rounding(every_BxLxV))


def without(tensors, *names):
    return {name: array for name, array in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, "h.1.ln_2.bias"), r"missing tensors: h\.1\.ln_2\.bias; found 27 tensors: h\.0\.attn"),
        (lambda t: t | {"h.2.ln_1.bias": t["ln_f.bias"]}, r"unexpected tensors: h\.2\.ln_1\.bias; accepted: the 28 "),
        (lambda t: t | {"transformer.wte.weight": t["ln_f.bias"]}, r"missing tensors: transformer\.wpe.*and 24 more"),
        (lambda t: t | {"wpe.weight": t["wte.weight"]}, r"wpe\.weight has shape \(30, 16\); accepted.*: \(7, 16\)"),
        (lambda t: t | {"h.0.mlp.c_fc.weight": t["h.0.mlp.c_proj.weight"]}, r"c_fc\.weight has shape \(64, 16\)"),
        (lambda t: t | {"ln_f.bias": t["ln_f.bias"].astype(np.float64)}, r"ln_f\.bias is float64; accepted: float32,"),
        (lambda t: t | {"lm_head.weight": t["wte.weight"] + 1}, r"lm_head\.weight differs from wte\.weight; accepted"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        gpt2(CONFIG, change(checkpoint()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_layer", "2", "n_layer='2'; accepted: a positive integer"),
        ("n_head", True, "n_head=True; accepted: a positive integer"),
        ("n_inner", 0, "n_inner=0; accepted: a positive integer"),
        ("n_head", 3, "n_embd=16 is not a multiple of n_head=3"),
        ("activation_function", "silu", "activation_function='silu'; accepted: gelu_new, "),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon=1e-06; accepted: 1e-05"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx=True; accepted: False"),
        ("tie_word_embeddings", False, "tie_word_embeddings=False; accepted: True"),
        ("model_type", "llama", "model_type='llama'; accepted: 'gpt2'"),
    ],
)
def test_config_of_another_model_is_refused_by_its_option(option, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        gpt2(CONFIG | {option: value}, checkpoint())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", CONFIG)
def test_config_without_a_needed_number_is_refused(missing):
    with pytest.raises(ValueError, match=f"the config lacks {missing}; it must give n_layer, n_head, n_embd"):
        gpt2(without(CONFIG, missing), checkpoint())


def test_unknown_readout_is_refused():
    with pytest.raises(ValueError, match="readout='first': one of last, all"):
        gpt2(CONFIG, checkpoint(), readout="first")


# --- what transformers computes: see benchmarks/decoder_golden.py ---

GOLDEN = np.load(Path(__file__).with_name("decoder_golden.npz"))
KINDS = sorted({name.split("/")[0] for name in GOLDEN.files} - {"tokens", "versions"})


def golden(kind):
    """Config, tensors and logits of one model."""
    prefix = f"{kind}/tensors/"
    tensors = {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN.files if name.startswith(prefix)}
    return json.loads(str(GOLDEN[f"{kind}/config"])), tensors, GOLDEN[f"{kind}/logits"]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind):
    config, tensors, expected = golden(kind)
    model, params = pretrained.read(config, tensors)
    logits, _ = forward(model, params, GOLDEN["tokens"])
    # Both are float32: some sixty operations from token to logit, errors of each growing at most tenfold, 6e-8 of the
    # largest. Another epsilon, rotation or order of heads changes the first or second digit.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=60 * 10 * 2.0**-24 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_become_leaves_and_leaves_the_same_tensors(kind):
    config, tensors, _ = golden(kind)
    model, params = pretrained.read(config, tensors)
    expected = jax.eval_shape(lambda: models.init(model, jax.random.key(0), TOKENS[:, :1]))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    form = pretrained.format_of(config)
    back = pretrained.tensors_of(form, model, params)
    assert {name if name == form.head else form.prefix + name for name in back} == tensors.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, tensors.get(name, tensors.get(form.prefix + name)))


@pytest.mark.parametrize("kind", KINDS)
def test_config_that_is_made_of_a_model_says_that_model(kind):
    config, tensors, _ = golden(kind)
    model, _ = pretrained.read(config, tensors)
    form, made = pretrained.format_for(model)
    assert form is pretrained.format_of(config) and form.model(made) == model
    if isinstance(model, models.Decoder):
        assert pretrained.format_for(model.clone(scan_layers=False, remat=True, compute_dtype="bfloat16"))[0] is form


@pytest.mark.parametrize(
    "changes", [dict(embed_norm=True), dict(sandwich_norm=True), dict(gated=False), dict(use_bias=True)]
)
def test_model_that_no_format_says_is_refused(changes):
    config, tensors, _ = golden("llama")
    model, _ = pretrained.read(config, tensors)
    with pytest.raises(ValueError, match=r"^Decoder .*no format says such a model; accepted: a Transformer as GPT-2"):
        pretrained.format_for(model.clone(**changes))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", dict(model_type="mamba"), "model_type='mamba'; accepted: gpt2, gpt_neox, llama, qwen3"),
        ("llama", dict(rope_scaling={"factor": 2.0}), "rope_scaling=.*; accepted: None"),
        ("llama", dict(rope_parameters={"rope_type": "llama3"}), "rope_parameters.rope_type='llama3'; accepted: 'd"),
        ("llama", dict(attention_bias=True), "attention_bias=True; accepted: False"),
        ("llama", dict(num_key_value_heads=3), r"model\.n_kv_heads=3: must divide model\.n_heads=4"),
        ("llama", dict(hidden_act="selu"), "hidden_act='selu'; accepted: silu, gelu"),
        ("neox", dict(attention_bias=False), "attention_bias=False; accepted: True"),
        ("neox", dict(num_attention_heads=3), "hidden_size=16 is not a multiple of num_attention_heads=3"),
        ("neox", dict(intermediate_size=13), r"mlp\.dense_h_to_4h\.weight has shape \(12, 16\); accepted .*\(13, 16\)"),
        ("neox", dict(num_hidden_layers=3), r"missing tensors: gpt_neox\.layers\.2\.input_layernorm\.weight"),
    ],
)  # fmt: skip
def test_decoder_that_ours_is_not_is_refused_by_its_option(kind, change, message):
    config, tensors, _ = golden(kind)
    with pytest.raises(ValueError, match=message) as caught:
        pretrained.read(config | change, tensors)
    assert "\n" not in str(caught.value)
