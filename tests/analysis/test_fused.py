import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.analysis import fused as module
from lab.analysis.fused import fused

EPS = 2.0**-23  # float32
# Some ten matrix products, each of which may sum its 8 terms in another order, reach a cosine through two
# vectors of size ~1: 2 * 10 * 8 eps. Summing n < 4096 cosines in pairs adds log2(n) = 12 eps to their mean.
ROUNDING = (160 + 12) * EPS
SHIFTS = {1: 5, 2: 1, 3: -2, 4: -8}
KEYS = range(30, 41)
PAIRS = [(1, 2), (2, 1), (1, 3), (3, 3), (2, 2), (3, 4)]
NOISE_L = np.array([55, 56, 57, 58, 59, 60, 61, 62, 63])
POSITION = 3


def oracle(read):
    """A forward pass whose last position is a one-hot of `read(key, first, second)`; elsewhere all ones."""

    def forward(model, params, tokens_CxL):
        states = [read(*triple) for triple in np.asarray(tokens_CxL)[:, POSITION : POSITION + 3].tolist()]
        index_C = jnp.array([sorted(set(states)).index(state) for state in states])
        acts_CxLxD = jnp.ones((*tokens_CxL.shape, len(set(states))))
        return None, {"here": acts_CxLxD.at[:, -1].set(jax.nn.one_hot(index_C, len(set(states))))}

    return forward


def measure(pairs=PAIRS, keys=KEYS):
    return fused(None, None, SHIFTS, keys, pairs, NOISE_L, POSITION, "here")


def transformer_row(seed):
    model = models.Transformer(
        vocab_size=70, max_length=9, n_layers=2, n_heads=1, d_model=8, d_head=4, d_ff=8,
        activation="relu", norm="post", use_bias=False, head_bias=True, final_norm=False, tied_head=False,
        readout="last",
    )  # fmt: skip
    init = jax.jit(models.init, static_argnums=0)
    return model, init(model, jax.random.key(seed), jnp.zeros((1, 9), jnp.int32))


@functools.partial(jax.jit, static_argnums=0)
def of_row(model, params):
    return fused(model, params, SHIFTS, KEYS, PAIRS, NOISE_L, POSITION, "block_1/resid_mid")


def test_state_that_is_the_answer_has_contrast_one(monkeypatch):
    monkeypatch.setattr(module, "forward", oracle(lambda x, a, b: x + SHIFTS[a] + SHIFTS[b]))
    result = measure()
    assert (result["equal"], result["other"], result["contrast"]) == (1, 0, 1)


def test_state_that_is_key_and_unordered_pair_has_contrast_zero(monkeypatch):
    monkeypatch.setattr(module, "forward", oracle(lambda x, a, b: (x, min(a, b), max(a, b))))
    result = measure()  # holds (1, 2) and (2, 1), whose states coincide
    assert (result["equal"], result["other"], result["contrast"]) == (0, 0, 0)


def test_state_that_never_changes_has_contrast_zero(monkeypatch):
    monkeypatch.setattr(module, "forward", oracle(lambda x, a, b: 0))
    result = measure()
    assert (result["equal"], result["other"], result["contrast"]) == (1, 1, 0)


def test_state_that_is_the_key_has_the_cosine_of_a_count(monkeypatch):
    monkeypatch.setattr(module, "forward", oracle(lambda x, a, b: x))
    result = measure(pairs=[(1, 3), (2, 2)], keys=[30, 31, 32])
    # Answers 33..35 and 32..34: of 18 ordered cells of different pairs 4 agree, none with the same key; 14 do
    # not, 6 of them with the same key.
    assert result["equal"] == 0
    assert result["other"] == pytest.approx(6 / 14, rel=EPS)  # exact counts, one division


def test_answers_that_never_or_always_agree_are_refused():
    with pytest.raises(ValueError, match="nothing to compare"):
        measure(pairs=[(1, 2), (2, 1)])  # one pair, twice
    with pytest.raises(ValueError, match="nothing to compare"):
        measure(pairs=[(1, 1), (4, 4)], keys=[30, 31])  # 26 apart


def test_means_are_those_of_a_loop_over_single_sequences():
    model, params = transformer_row(0)
    result = of_row(model, params)
    forward = jax.jit(models.forward, static_argnums=0)
    cells = [(x, a, b) for a, b in PAIRS for x in KEYS]
    vectors = []
    for cell in cells:
        _, acts = forward(model, params, np.array([[55, 56, 57, *cell, 61, 62, 63]]))
        vectors.append(np.array(acts["block_1/resid_mid"][0, -1], np.float64))
    cosine, equal, other = {}, [], []
    for i, (x, a, b) in enumerate(cells):
        for j, (y, c, d) in enumerate(cells):
            v, w = vectors[i], vectors[j]
            cosine[i, j] = v @ w / np.linalg.norm(v) / np.linalg.norm(w)
            if {a, b} != {c, d}:
                agree = x + SHIFTS[a] + SHIFTS[b] == y + SHIFTS[c] + SHIFTS[d]
                (equal if agree else other).append(cosine[i, j])
    cosine_CxC = np.reshape(list(cosine.values()), (len(cells), len(cells)))
    np.testing.assert_allclose(result["cosine"], cosine_CxC, rtol=0, atol=ROUNDING)
    assert result["equal"] == pytest.approx(np.mean(equal), abs=ROUNDING)
    assert result["other"] == pytest.approx(np.mean(other), abs=ROUNDING)
    assert result["contrast"] == pytest.approx(np.mean(equal) - np.mean(other), abs=2 * ROUNDING)


def test_vmapped_rows_equal_lone_rows():
    model, _ = transformer_row(0)
    rows = [transformer_row(seed)[1] for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    together = jax.vmap(lambda params: of_row(model, params))(stacked)
    for r, params in enumerate(rows):
        for name, alone in of_row(model, params).items():
            # The contrast is a difference of two means.
            np.testing.assert_allclose(together[name][r], alone, rtol=0, atol=2 * ROUNDING)
