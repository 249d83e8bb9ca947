"""What is cut is read by nobody, what is put in is what later tokens have, and shares are shares."""

import jax
import numpy as np
import pytest

from lab import models
from lab.analysis import state_space

V, L, N_LAYERS = 11, 8, 2
MODEL = models.Mamba2(
    vocab_size=V, max_length=L, n_layers=N_LAYERS, d_model=8, d_inner=12, d_state=4, n_taps=4, conv="learned",
    past_conv="none", taps_follow_gamma=False, has_positions=False, norm="pre", final_norm=True, readout="all",
    n_heads=2,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, V, (3, L)).astype(np.int32)
FIRST = np.array([0, 2, 4], np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: models.init(MODEL, key, TOKENS[:1]))(jax.random.key(0))


def run(params, tokens=TOKENS, edits=None):
    logits, acts = models.forward(MODEL, params, tokens, edits or {})
    return np.asarray(logits), {name: np.asarray(act) for name, act in acts.items()}


def test_shares_sum_to_one_and_none_is_of_a_later_token(params):
    shares = np.asarray(state_space.reads(run(params)[1], N_LAYERS))
    assert shares.shape == (N_LAYERS, 3, L, L)
    np.testing.assert_allclose(shares.sum(axis=3), 1, rtol=0, atol=16 * 2.0**-23)
    assert (shares >= 0).all() and (shares[..., *np.triu_indices(L, 1)] == 0).all()


def test_columns_that_are_cut_are_read_by_their_own_tokens_alone(params):
    edits = state_space.cut_columns(N_LAYERS, FIRST, 3)
    before, after = run(params)[1], run(params, edits=edits)[1]
    s_BxHxLxL = after["block_0/ssm/s"]
    for b, first in enumerate(FIRST):
        for q in range(L):
            for token in range(q + 1):
                cut = first <= token < first + 3 and q > token
                expected = 0 if cut else before["block_0/ssm/s"][b, :, q, token]
                np.testing.assert_array_equal(s_BxHxLxL[b, :, q, token], expected)


def test_later_tokens_get_the_other_runs_convolution(params):
    _, source = run(params, (TOKENS + 1) % V)
    edits = state_space.substitute_convolved(source, N_LAYERS, FIRST + 2)
    before, after = run(params)[1], run(params, edits=edits)[1]
    for i in range(N_LAYERS):
        name = f"block_{i}/ssm/conv"
        for b, first in enumerate(FIRST):
            np.testing.assert_array_equal(after[name][b, first + 3 :], source[name][b, first + 3 :])
    np.testing.assert_array_equal(after["block_0/ssm/conv"][0, :3], before["block_0/ssm/conv"][0, :3])


def test_cosines_of_taps():
    taps = np.array([[1.0, 0], [0, 2], [3, 0], [1, 1]])
    cosine = state_space.tap_cosines({"block_0": {"ssm": {"conv": {"taps": taps}}}}, 1)[0]
    half = 1 / np.sqrt(2)
    expected = [[1, 0, 1, half], [0, 1, 0, half], [1, 0, 1, half], [half, half, half, 1]]
    np.testing.assert_allclose(cosine, expected, rtol=0, atol=1e-6)
