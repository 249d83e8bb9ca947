import induction
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lab import models
from lab.analysis.lens import lens_mrr, logit_attribution, logit_lens, resolved_layer, target_rank
from lab.analysis.patching import stream_names

EPS = 2.0**-23  # float32
EPS64 = 2.0**-52
VOCAB, LENGTH, WIDTH, D_HEAD = 11, 6, 8, 3
forward = jax.jit(models.forward, static_argnums=0)
CONFIGS = {
    "none": dict(norm="none", final_norm=False, use_bias=False, head_bias=True, tied_head=False),
    "pre": dict(norm="pre", final_norm=True, use_bias=True, head_bias=True, tied_head=False),
    "pre_tied": dict(norm="pre", final_norm=True, use_bias=True, head_bias=False, tied_head=True),
}


def transformer(readout="all", **config):
    return models.Transformer(
        vocab_size=VOCAB, max_length=LENGTH, n_layers=2, n_heads=2, d_model=WIDTH, d_head=D_HEAD, d_ff=12,
        activation="gelu", readout=readout, **config,
    )  # fmt: skip


def random_row(model):
    """Parameters in float64, tokens and targets."""
    rng = np.random.default_rng(0)
    tokens_BxL, target_B = rng.integers(0, VOCAB, (3, LENGTH)), rng.integers(0, VOCAB, 3)
    return induction.random_parameters(model, LENGTH, 0, np.float64), tokens_BxL.astype(np.int32), target_B


def numpy_logits(model, params, h_BxQxD):
    if model.final_norm:
        h_BxQxD = h_BxQxD - h_BxQxD.mean(axis=-1, keepdims=True)
        h_BxQxD = h_BxQxD / np.sqrt((h_BxQxD**2).mean(axis=-1, keepdims=True) + 1e-5)
        h_BxQxD = h_BxQxD * params["final_norm"]["scale"] + params["final_norm"]["bias"]
    if model.tied_head:
        return h_BxQxD @ params["embed"]["token"]["embedding"].T
    return h_BxQxD @ params["head"]["kernel"] + params["head"]["bias"]


def written_parts(model, params, acts):
    """What is written to the stream, in float64: embedding, messages over each edge, MLPs, biases."""
    heads, biases_D = [], np.zeros(WIDTH)
    for i in range(2):
        out = params[f"block_{i}"]["attn"]["out"]
        pattern_BxHxQxL, v_BxLxHxK = acts[f"block_{i}/attn/pattern"], acts[f"block_{i}/attn/v"]
        for h in range(2):
            message_BxLxD = v_BxLxHxK[:, :, h] @ out["kernel"][D_HEAD * h : D_HEAD * (h + 1)]
            heads.append(pattern_BxHxQxL[:, h, :, :, None] * message_BxLxD[:, None])
        biases_D = biases_D + (out["bias"] if model.use_bias else 0)
    heads_NxHxBxQxLxD = np.stack(heads).reshape(2, 2, *heads[0].shape)
    return acts["embed"], heads_NxHxBxQxLxD, np.stack([acts[f"block_{i}/mlp/out"] for i in range(2)]), biases_D


@pytest.mark.parametrize("config", CONFIGS)
def test_lens_is_final_norm_and_unembedding_of_any_state_and_the_models_own_logits_of_the_last(
    float64, standard_promotion, config
):
    model = transformer(**CONFIGS[config])
    params, tokens_BxL, _ = random_row(model)
    logits, acts = forward(model, params, tokens_BxL)
    for name in ("block_1/resid_pre", "block_1/resid_mid"):
        found = logit_lens(model, params, acts[name])
        # Means and products of 8 terms of size below 10, through a norm and a head: 100 eps of 10.
        np.testing.assert_allclose(found, numpy_logits(model, params, np.asarray(acts[name])), rtol=0, atol=1e3 * EPS64)
    np.testing.assert_allclose(logit_lens(model, params, acts["block_1/resid_post"]), logits, rtol=0, atol=1e3 * EPS64)


@pytest.mark.parametrize(("config", "readout"), [("none", "all"), ("pre", "last"), ("pre_tied", "all")])
def test_attribution_is_the_share_of_each_part_in_the_logit(float64, standard_promotion, config, readout):
    model = transformer(readout, **CONFIGS[config])
    params, tokens_BxL, target_B = random_row(model)
    logits_BxQxV, acts = forward(model, params, tokens_BxL)
    found = jax.jit(logit_attribution, static_argnums=0)(model, params, acts, target_B)
    # Parts are below 100 and some 50 are added, each a chain of products of at most 12 terms: 100 eps of 100 each.
    atol = 50 * 100 * 100 * EPS64
    logit_BxQ = np.take_along_axis(np.asarray(logits_BxQxV), target_B[:, None, None], axis=-1)[..., 0]
    np.testing.assert_allclose(found.total(), logit_BxQ, rtol=0, atol=atol)

    # Each part, read by the head after the norm whose std is held: a linear map, so a difference of two logits.
    n_queries = logits_BxQxV.shape[1]
    _, all_acts = forward(transformer("all", **CONFIGS[config]), params, tokens_BxL)
    all_acts = jax.tree.map(np.asarray, all_acts)
    stream_BxLxD = all_acts["block_1/resid_post"]
    centered_BxLxD = stream_BxLxD - stream_BxLxD.mean(axis=-1, keepdims=True)
    std_BxLx1 = np.sqrt((centered_BxLxD**2).mean(axis=-1, keepdims=True) + 1e-5)
    unembed_VxD = params["embed"]["token"]["embedding"] if model.tied_head else params["head"]["kernel"].T
    read_BxD = unembed_VxD[target_B]

    def read(part_BxLxD):
        if model.final_norm:
            part_BxLxD = (part_BxLxD - part_BxLxD.mean(axis=-1, keepdims=True)) / std_BxLx1
            part_BxLxD = part_BxLxD * params["final_norm"]["scale"]
        return np.einsum("bld,bd->bl", part_BxLxD, read_BxD)[:, -n_queries:]

    embed_BxLxD, heads_NxHxBxQxLxD, mlps_NxBxLxD, biases_D = written_parts(model, params, all_acts)
    np.testing.assert_allclose(found.embed_BxQ, read(embed_BxLxD), rtol=0, atol=atol)
    for layer in range(2):
        np.testing.assert_allclose(found.mlps_NxBxQ[layer], read(mlps_NxBxLxD[layer]), rtol=0, atol=atol)
        for head in range(2):
            for key in range(LENGTH):
                message_BxLxD = heads_NxHxBxQxLxD[layer, head][:, :, key]
                found_BxQ = found.heads_NxBxHxQxL[layer, :, head, :, key]
                np.testing.assert_allclose(found_BxQ, read(message_BxLxD), rtol=0, atol=atol)
    constant_B = (read_BxD @ params["final_norm"]["bias"]) if model.final_norm else np.zeros(3)
    constant_B = constant_B + (params["head"]["bias"][target_B] if model.head_bias else 0)
    bias_BxQ = read(np.broadcast_to(biases_D, stream_BxLxD.shape)) + constant_B[:, None]
    np.testing.assert_allclose(found.bias_BxQ, bias_BxQ, rtol=0, atol=atol)


def test_the_whole_logit_of_an_induction_head_is_one_edge_of_one_head():
    k, model, params = 3, induction.transformer(), induction.parameters()
    tokens_BxL, answer_B = induction.sequences(0, [k] * 4)
    _, acts = forward(model, params, tokens_BxL)
    found = logit_attribution(model, params, acts, answer_B)
    expected_NxHxL = np.zeros((2, 2, induction.LENGTH))
    expected_NxHxL[1, 1, k + 1] = induction.GAIN
    for item in range(4):
        np.testing.assert_array_equal(found.heads_NxBxHxQxL[:, item, :, -1], expected_NxHxL)
    for part in (found.embed_BxQ, found.mlps_NxBxQ, found.bias_BxQ):
        assert not np.asarray(part).any()


def test_attribution_of_attention_alone_is_that_of_mlps_that_add_nothing():
    model = transformer(**CONFIGS["none"])
    params, tokens_BxL, target_B = random_row(model)
    for block in ("block_0", "block_1"):
        params[block]["mlp"]["out"]["kernel"] = np.zeros_like(params[block]["mlp"]["out"]["kernel"])
    found = []
    for one in (model, model.clone(d_ff=0)):
        _, acts = forward(one, params, tokens_BxL)
        found.append(logit_attribution(one, params, acts, target_B))
    assert not np.asarray(found[1].mlps_NxBxQ).any()
    for full, alone in zip(*found, strict=True):
        np.testing.assert_array_equal(full, alone)


def test_rank_counts_ties_against_the_target_as_scipy_does():
    logits_BxQxV = np.random.default_rng(0).integers(0, 6, (5, 4, VOCAB)).astype(np.float32)  # full of ties
    target_B = np.arange(5)
    expected_BxQxV = scipy.stats.rankdata(-logits_BxQxV, method="max", axis=-1)
    expected_BxQ = expected_BxQxV[np.arange(5)[:, None], np.arange(4)[None], target_B[:, None]]
    np.testing.assert_array_equal(target_rank(jnp.asarray(logits_BxQxV), target_B), expected_BxQ)
    assert (target_rank(jnp.full((5, 4, VOCAB), jnp.nan), target_B) == VOCAB).all()


def test_answer_of_an_induction_head_is_resolved_after_two_blocks_at_the_last_position():
    model, params = induction.transformer(), induction.parameters()
    tokens_BxL, answer_B = induction.sequences(0, [3] * 4)
    _, acts = forward(model, params, tokens_BxL)
    answer_B = np.append(answer_B[:3], induction.BOS).astype(np.int32)  # the last item's target is a wrong one
    mrr = lens_mrr(model, params, acts, answer_B, stream_names(2))
    # All logits 0, or GAIN at one token: the rank is 1 or V. Before the last block nothing is written to the output.
    expected_NxL = np.full((3, induction.LENGTH), 1 / induction.VOCAB)
    expected_NxL[2, induction.LAST] = (3 + 1 / induction.VOCAB) / 4
    np.testing.assert_allclose(mrr.value[:2], expected_NxL[:2], rtol=4 * EPS)
    np.testing.assert_allclose(mrr.value[2, induction.LAST], expected_NxL[2, induction.LAST], rtol=4 * EPS)
    error = np.std([1, 1, 1, 1 / induction.VOCAB], ddof=1) / np.sqrt(4)
    np.testing.assert_allclose(mrr.standard_error[2, induction.LAST], error, rtol=8 * EPS)
    assert resolved_layer(mrr.value, 0.6)[induction.LAST] == 2
    assert resolved_layer(mrr.value, 0.9)[induction.LAST] == 3  # never


def test_resolved_layer_is_the_first_one_above_even_if_later_ones_fall():
    mrr_NxL = jnp.array([[0.1, 0.95, 0.1, jnp.nan], [0.9, 0.2, 0.1, 0.95], [0.3, 0.99, 0.2, 0.1]])
    np.testing.assert_array_equal(resolved_layer(mrr_NxL, jnp.float32(0.9)), [1, 0, 3, 1])


def test_what_has_no_lens_is_refused():
    acts = {"embed": jnp.zeros((2, LENGTH, WIDTH)), "block_1/resid_post": jnp.zeros((2, 1, WIDTH))}
    model = transformer(**CONFIGS["none"])
    for name in ("block_1/resid_post", "block_2/resid_post"):
        with pytest.raises(ValueError, match=f"'{name}': a state .* with readout='all'"):
            lens_mrr(model, {}, acts, jnp.zeros(2, int), [name])
    with pytest.raises(ValueError, match="norm='post'"):
        logit_attribution(transformer(**CONFIGS["none"] | {"norm": "post"}), {}, acts, jnp.zeros(2, int))
    for refused in (lambda: logit_attribution(EMB, {}, {}, None), lambda: logit_lens(EMB, {}, None)):
        with pytest.raises(ValueError, match="not EmbMLP"):
            refused()


EMB = models.EmbMLP(vocab_size=5, d_model=4, d_ff=3, activation="tanh")
