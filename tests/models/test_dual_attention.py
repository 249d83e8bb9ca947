"""The changes of arXiv 2310.13220 in attention: their weights by hand, in the transformer, and none at usual values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import init, models
from lab.models import decode
from lab.models.dual_attention import Changes, mixing
from lab.tree import named_leaves

V, D, H, K, L = 9, 6, 2, 4, 7
PLAIN = models.Transformer(
    vocab_size=V, max_length=L, n_layers=2, n_heads=H, d_model=D, d_head=K, d_ff=5, activation="identity", norm="pre",
    use_bias=True, head_bias=True, final_norm=True, tied_head=False, readout="all", d_augment=H * K,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, V, (3, L)).astype(np.int32)
forward = jax.jit(models.forward, static_argnums=0)


def row(model):
    return models.init(model, jax.random.key(1), TOKENS)


def with_maps(params, **kernels):
    """The plain transformer's parameters, with the same kernels of an MLP added to all keys and values."""
    layers = {f"{view}_{name}": {"kernel": jnp.asarray(a, jnp.float32)}
              for view in ("key", "value") for name, a in kernels.items()}  # fmt: skip
    blocks = {name: params[name] | {"attn": params[name]["attn"] | layers} for name in ("block_0", "block_1")}
    return params | blocks


def test_weights_by_hand():
    score = jnp.log(jnp.array([[[4.0, 1.0, 2.0, 3.0]]]))  # the last is the query's own
    pattern = jnp.array([[[0.4, 0.1, 0.2, 0.3]]])
    assert mixing(pattern, score, Changes(n_negatives=2)) is pattern
    np.testing.assert_allclose(mixing(pattern, score, Changes(alpha=0.5)), [[[0.4, 0.1, 0.2, 0.15]]], rtol=1e-6)
    # of a share 0.7 of the demonstrations one half is taken, from the two lowest alike
    found = mixing(pattern, score, Changes(beta=0.5, n_negatives=2))
    np.testing.assert_allclose(found, [[[0.4, 0.1 - 0.175, 0.2 - 0.175, 0.3]]], rtol=1e-5)
    # of all: weights of demonstrations add up to none
    found = mixing(pattern, score, Changes(beta=1.0, n_negatives=9))
    np.testing.assert_allclose(found[..., :-1].sum(), 0, atol=1e-6)


def test_of_equal_scores_the_earlier_one_is_lower_and_as_many_are_negatives_as_asked():
    found = mixing(jnp.full((1, 1, 5), 0.2), jnp.zeros((1, 1, 5)), Changes(beta=1.0, n_negatives=2))
    np.testing.assert_allclose(found[0, 0], [-0.2, -0.2, 0.2, 0.2, 0.2], rtol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "options", [dict(alpha=0.4), dict(beta=0.6, n_negatives=2), dict(alpha=-1.0, beta=1.0, n_negatives=99)]
)
def test_every_token_of_a_transformer_collects_what_the_formula_says(options):
    model = PLAIN.clone(**options)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), row(model))
    _, acts = models.forward(model, params, TOKENS)
    for b, h, q in np.ndindex(len(TOKENS), H, L):
        score_T = acts["block_1/attn/score"][b, h, q, : q + 1]
        v_TxK = np.array(acts["block_1/attn/v"][b, : q + 1, h])
        lowest = np.argsort(score_T[:-1])[: model.n_negatives]
        if q:
            v_TxK[:-1] -= model.beta * v_TxK[lowest].mean(axis=0)
        v_TxK[-1] *= 1 - model.alpha
        weight_T = np.exp(score_T) / np.exp(score_T).sum()
        np.testing.assert_allclose(acts["block_1/attn/z"][b, q, h], weight_T @ v_TxK, rtol=0, atol=1e-12)
    _, last = models.forward(model.clone(readout="last"), params, TOKENS)
    np.testing.assert_allclose(last["logits"][:, 0], acts["logits"][:, -1], rtol=0, atol=1e-12)


def test_no_penalty_no_negatives_and_identity_maps_reproduce_the_plain_transformer_bit_for_bit():
    params = row(PLAIN)
    expected, plain_acts = forward(PLAIN, params, TOKENS)
    eye = np.eye(H * K)
    same = {
        "alpha 0, beta 0": (PLAIN.clone(alpha=0.0, beta=0.0, n_negatives=4), params),
        "serial identity": (PLAIN.clone(augment="serial"), with_maps(params, **{"in": eye, "out": eye})),
        "parallel zero": (PLAIN.clone(augment="parallel"), with_maps(params, **{"in": eye, "out": 0 * eye})),
    }
    for name, (model, own) in same.items():
        logits, acts = forward(model, own, TOKENS)
        np.testing.assert_array_equal(logits, expected, err_msg=name)
        assert set(acts) == set(plain_acts)
    for change in (dict(alpha=0.1), dict(beta=0.1)):
        assert not np.array_equal(forward(PLAIN.clone(**change), params, TOKENS)[0], expected)


def test_maps_of_keys_and_values_follow_the_rate_of_mlps_and_change_no_other_leaf():
    plain, other = (named_leaves(row(PLAIN.clone(augment=how))) for how in ("none", "serial"))
    added = {f"block_{i}/attn/{view}_{of}/kernel" for i in (0, 1) for view in ("key", "value") for of in ("in", "out")}
    assert set(other) - set(plain) == added
    for name, leaf in plain.items():
        np.testing.assert_array_equal(leaf, other[name])
    leaves = init.leaves_of(PLAIN.clone(augment="serial"), TOKENS)
    assert {(leaves[name].group, leaves[name].d_in) for name in added} == {("mlp", H * K)}


def test_decoding_refuses_them():
    for options, said in ((dict(alpha=0.5), r"model\.alpha=0\.5"), (dict(beta=1.0), r"model\.beta=1\.0")):
        with pytest.raises(ValueError, match=f"{said}: decoding does not know a token's own place; use 0"):
            decode.prefill(PLAIN.clone(**options), row(PLAIN), TOKENS, np.full(3, L, np.int32), 1)


def test_maps_of_keys_do_not_hinder_decoding():
    model = PLAIN.clone(augment="serial", activation="tanh")
    params, length = row(model), np.full(3, L - 1, np.int32)
    _, cache = decode.prefill(model, params, TOKENS[:, :-1], length, 1)
    found, _ = decode.extend(model, params, cache, TOKENS[:, -1])
    # float32 sums of fewer than 10 terms of order 1 in another order
    np.testing.assert_allclose(found, forward(model, params, TOKENS)[0][:, -1], rtol=0, atol=2e-5)
