"""Decoding of Mamba, token by token with a state, is its forward pass; its greedy answers are those of full passes."""

import functools

import jax
import numpy as np
import pytest

from lab import models
from lab.models import decode
from lab.tree import named_leaves

V, L, MORE = 11, 5, 6
LENGTHS = np.array([1, 5, 3, 4], np.int32)  # shorter than the convolution's window, longest and between
COMMON = dict(
    vocab_size=V, max_length=L + MORE, n_layers=2, d_model=8, d_inner=12, d_state=3, n_taps=4, conv="learned",
    past_conv="none", taps_follow_gamma=False, has_positions=False, norm="none", final_norm=False, readout="all",
)  # fmt: skip
VARIANTS = {
    "mamba2": ("mamba2", dict(n_heads=2)),
    "mamba2, positions, a path past the convolution": (
        "mamba2", dict(n_heads=1, has_positions=True, past_conv="added", norm="pre", final_norm=True, readout="last")
    ),
    "mamba2 without convolution": ("mamba2", dict(n_heads=1, conv="none")),
    "mamba1": ("mamba1", dict(dt_rank=2, norm="pre", conv="ones", past_conv="added", final_norm=True)),
}  # fmt: skip
prefill = jax.jit(decode.prefill, static_argnums=(0, 4))
extend = jax.jit(decode.extend, static_argnums=0)
full_pass = jax.jit(lambda model, params, tokens: models.forward(model, params, tokens)[0], static_argnums=0)


def row(model, seed=1):
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0), np.zeros((1, 1), np.int32))
    rng = np.random.default_rng(seed)
    drawn = [float(name.endswith("scale")) + 0.7 * rng.standard_normal(leaf.shape)
             for name, leaf in named_leaves(shapes).items()]  # fmt: skip
    return jax.tree.unflatten(jax.tree.structure(shapes), drawn)


def logits_after(model, params, tokens):
    padded = np.zeros((1, model.max_length), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(full_pass(model.clone(readout="all"), params, padded))[0, len(tokens) - 1]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_every_step_are_those_of_full_passes(variant):
    family, options = VARIANTS[variant]
    model = models.FAMILIES[family](**COMMON | options)
    params, rng = row(model), np.random.default_rng(0)
    prompt_BxL, more_NxB = rng.integers(0, V, (len(LENGTHS), L)), rng.integers(0, V, (MORE, len(LENGTHS)))
    logits_BxV, state = prefill(model, params, prompt_BxL.astype(np.int32), LENGTHS, MORE)
    found_TxBxV = [logits_BxV]
    for token_B in more_NxB.astype(np.int32):
        logits_BxV, state = extend(model, params, state, token_B)
        found_TxBxV.append(logits_BxV)
    for b, length in enumerate(LENGTHS):
        for n in range(MORE + 1):
            expected_V = logits_after(model, params, [*prompt_BxL[b, :length], *more_NxB[:n, b]])
            # some 1e3 operations on numbers below 100, as in the test of the transformer's decoding
            np.testing.assert_allclose(found_TxBxV[n][b], expected_V, rtol=0, atol=2e6 * 2.0**-52)


@pytest.mark.usefixtures("double")
def test_greedy_answers_are_those_of_full_passes():
    family, options = VARIANTS["mamba2"]
    model, prompt_BxL = models.FAMILIES[family](**COMMON | options), np.random.default_rng(3).integers(0, V, (4, L))
    params = row(model, 2)
    said_BxN, _ = jax.jit(decode.greedy, static_argnums=(0, 4))(
        model, params, prompt_BxL.astype(np.int32), LENGTHS, MORE, V
    )
    for b, length in enumerate(LENGTHS):
        tokens = prompt_BxL[b, :length].tolist()
        for said in np.asarray(said_BxN)[b]:
            assert said == np.argmax(logits_after(model, params, tokens))
            tokens.append(int(said))


def test_longer_prompts_than_it_reads_are_refused():
    model = models.Mamba2(**COMMON, n_heads=1)
    with pytest.raises(ValueError, match=r"12 tokens: the model reads at most model\.max_length=11"):
        jax.eval_shape(lambda: decode.prefill(model, row(model), np.zeros((1, 12), np.int32), np.array([12]), 0))


def test_a_transformer_with_a_convolution_is_not_decoded():
    model = models.Transformer(9, 6, 1, 1, 4, 4, 4, "relu", "pre", False, False, True, False, "all", conv="causal")
    with pytest.raises(ValueError, match=r"model\.conv='causal': decoding keeps no window"):
        decode.prefill(model, {}, np.zeros((1, 2), np.int32), np.array([2]), 0)
