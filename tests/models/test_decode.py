import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.models import decode
from lab.tasks import Batch, answers
from lab.tree import named_leaves

EPS64 = 2.0**-52
V, L, N, LONGEST = 11, 5, 6, 12
LENGTHS = np.array([1, 5, 3, 4], np.int32)  # shortest, longest and between
VARIANTS = {
    "pre": dict(norm="pre", use_bias=True, head_bias=True),
    "pre, tied": dict(norm="pre", tied_head=True, n_heads=1, n_layers=1),
    "post": dict(norm="post", activation="relu", final_norm=False, n_layers=1),
    "no norm, tied, biases": dict(norm="none", tied_head=True, use_bias=True, final_norm=False),
    "no positions": dict(max_length=0),
    "trained on answers": dict(norm="post", use_bias=True, readout="last", n_layers=1),
}
DECODERS = {
    "decoder": dict(n_heads=4, n_kv_heads=2, qk_norm=True, embed_norm=True),
    "decoder, in a loop": dict(scan_layers=False, parallel=True, gated=False, norm_kind="layer", rope_share=0.5),
}
greedy = jax.jit(decode.greedy, static_argnums=(0, 4))
prefill = jax.jit(decode.prefill, static_argnums=(0, 4))
extend = jax.jit(decode.extend, static_argnums=0)
full_pass = jax.jit(lambda model, params, tokens: models.forward(model, params, tokens)[0], static_argnums=0)


def transformer(**changes):
    options = dict(
        vocab_size=V, max_length=LONGEST, n_layers=2, n_heads=2, d_model=8, d_head=3, d_ff=10, activation="gelu",
        norm="pre", use_bias=False, head_bias=False, final_norm=True, tied_head=False, readout="all",
    )  # fmt: skip
    return models.Transformer(**options | changes)


def model_of(variant):
    if variant in VARIANTS:
        return transformer(**VARIANTS[variant])
    sizes = dict(vocab_size=V, max_length=LONGEST, n_layers=2, n_heads=2, d_model=8, d_head=4, d_ff=10, norm_eps=1e-5)
    return models.Decoder(**sizes | DECODERS[variant])


def row(model, seed=1):
    """Parameters whose entries are all random, and large: what is said depends on all that was."""
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0), np.zeros((1, 1), np.int32))
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        spread = 1.0 if "embed" in name else 2 / math.sqrt(model.d_model)
        return float(name.endswith("scale")) + spread * rng.standard_normal(leaf.shape)

    leaves = [draw(name, leaf) for name, leaf in named_leaves(shapes).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def prompts(seed=0, lengths=LENGTHS, width=L):
    """Random prompts, with other random tokens after their end: those must not matter."""
    return np.random.default_rng(seed).integers(0, V, (len(lengths), width)).astype(np.int32)


def logits_after(model, params, tokens):
    """Logits after the last of some tokens, by a forward pass over all of them, with nothing kept."""
    padded = np.zeros((1, model.max_length or LONGEST), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(full_pass(model.clone(readout="all"), params, padded))[0, len(tokens) - 1]


def by_hand(model, params, prompt, n_new, stop):
    """What one prompt is answered, and the logits of every step."""
    tokens, said, logits = [int(token) for token in prompt], [], []
    while len(said) < n_new and stop not in said and len(tokens) <= (model.max_length or LONGEST):
        logits.append(logits_after(model, params, tokens))
        said.append(int(np.argmax(logits[-1])))
        tokens.append(said[-1])
    return said, logits


def filled(said, n_new):
    return said + [-1] * (n_new - len(said))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("variant", [*VARIANTS, *DECODERS])
def test_what_is_said_is_what_forward_passes_without_a_cache_say(variant):
    model = model_of(variant)
    spoken = set()
    for seed, stop in ((1, 0), (2, 3), (3, 7)):
        params, prompt_BxL = row(model, seed), prompts(seed)
        tokens_BxN, done_B = greedy(model, params, prompt_BxL, LENGTHS, N, stop)
        for b, length in enumerate(LENGTHS):
            said, _ = by_hand(model, params, prompt_BxL[b, :length], N, stop)
            assert tokens_BxN[b].tolist() == filled(said, N)
            assert done_B[b] == (stop in said)
            spoken |= set(said)
    assert len(spoken) > 3  # not one word over and over
    assert tokens_BxN.dtype == jnp.int32


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("variant", ["pre", "no norm, tied, biases", "trained on answers", *DECODERS])
def test_logits_of_every_step_are_those_of_forward_passes_without_a_cache(variant):
    model = model_of(variant)
    params, prompt_BxL, more_NxB = row(model), prompts(), np.random.default_rng(5).integers(0, V, (N, len(LENGTHS)))

    logits_BxV, cache = prefill(model, params, prompt_BxL, LENGTHS, N)
    found_TxBxV = [logits_BxV]
    for token_B in more_NxB.astype(np.int32):
        logits_BxV, cache = extend(model, params, cache, token_B)
        found_TxBxV.append(logits_BxV)
    for b, length in enumerate(LENGTHS):
        for n in range(N + 1):
            expected_V = logits_after(model, params, [*prompt_BxL[b, :length], *more_NxB[:n, b]])
            # The same sums in another order: 1e3 operations, each off by eps of numbers below 100, passed on at most
            # tenfold by the norms (see the forward pass' own test): 1e6 eps of numbers near one, and 1e-10 in all. A
            # token at the wrong position, or one more seen, changes the first digit.
            np.testing.assert_allclose(found_TxBxV[n][b], expected_V, rtol=0, atol=2e6 * EPS64)


@pytest.mark.usefixtures("double")
def test_sequences_stop_one_by_one_and_say_nothing_after():
    model = transformer(**VARIANTS["pre"])
    ends = []
    for seed in range(8):
        params, prompt_BxL = row(model, seed), prompts(seed)
        endless_BxN = np.asarray(greedy(model, params, prompt_BxL, LENGTHS, N, V)[0])  # V: never said
        stop = endless_BxN[0, 2]
        tokens_BxN, done_B = (np.asarray(x) for x in greedy(model, params, prompt_BxL, LENGTHS, N, stop))
        for b in range(len(LENGTHS)):
            where = np.flatnonzero(endless_BxN[b] == stop)
            end = where[0] + 1 if where.size else N
            np.testing.assert_array_equal(tokens_BxN[b, :end], endless_BxN[b, :end])
            assert (tokens_BxN[b, end:] == -1).all() and done_B[b] == (where.size > 0)
            ends.append((end, bool(where.size)))
    assert len(set(ends)) > 3 and (N, False) in ends


@pytest.mark.usefixtures("double")
def test_sequences_end_where_the_positions_end():
    model = transformer(max_length=7, n_layers=1)
    params, prompt_BxL = row(model, 4), prompts()
    tokens_BxN, done_B = greedy(model, params, prompt_BxL, LENGTHS, 9, V)
    for b, length in enumerate(LENGTHS):
        said, _ = by_hand(model, params, prompt_BxL[b, :length], 9, V)
        assert len(said) == min(9, 7 - length + 1)  # the last is said at the last position
        assert tokens_BxN[b].tolist() == filled(said, 9) and not done_B[b]


def test_what_stands_after_a_prompt_is_not_read():
    model = transformer(n_layers=1)
    params = jax.tree.map(np.float32, row(model))
    first, second = prompts(1), prompts(2)
    second = np.where(np.arange(L)[None] < LENGTHS[:, None], first, second)
    assert (first != second).any()
    for one, other in zip(*(greedy(model, params, p, LENGTHS, N, 0) for p in (first, second)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_under_vmap_say_what_they_say_alone():
    model, prompt_BxL = transformer(n_layers=1), prompts()
    rows = [jax.tree.map(np.float32, row(model, seed)) for seed in range(3)]
    together = jax.jit(jax.vmap(lambda params: decode.greedy(model, params, prompt_BxL, LENGTHS, N, 2)))
    tokens_RxBxN, done_RxB = together(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
    for r, params in enumerate(rows):  # float32, so near ties could part them: the seeds have none
        tokens_BxN, done_B = greedy(model, params, prompt_BxL, LENGTHS, N, 2)
        np.testing.assert_array_equal(tokens_RxBxN[r], tokens_BxN)
        np.testing.assert_array_equal(done_RxB[r], done_B)


def test_one_token_is_the_most_probable_after_the_prompt():
    model, prompt_BxL = transformer(n_layers=1), prompts()
    params = jax.tree.map(np.float32, row(model))
    tokens_BxN, done_B = greedy(model, params, prompt_BxL, LENGTHS, 1, 2)
    expected_B = [logits_after(model, params, prompt_BxL[b, :n]).argmax() for b, n in enumerate(LENGTHS)]
    np.testing.assert_array_equal(tokens_BxN[:, 0], expected_B)
    np.testing.assert_array_equal(done_B, np.array(expected_B) == 2)


def test_the_cache_has_the_models_heads_and_room_for_what_is_asked():
    model = transformer()
    params = jax.tree.map(np.float32, row(model))
    _, cache = jax.eval_shape(lambda p: decode.prefill(model, params, p, jnp.asarray(LENGTHS), N), prompts())
    assert [a.shape for a in (*cache.keys_N, *cache.values_N)] == [(len(LENGTHS), 2, L + N, 3)] * 4


def answered(model, params, prompt_BxL, n_new, wrong):
    """A batch whose answers are what the model says, but for one token of the sequences in `wrong`; END is V - 1."""
    end, width = V - 1, prompt_BxL.shape[1] + n_new
    sequences = np.zeros((len(LENGTHS), width + 1), np.int32)
    weights = np.zeros((len(LENGTHS), width), np.float32)
    for b, length in enumerate(LENGTHS):
        said, _ = by_hand(model, params, prompt_BxL[b, :length], n_new - 1, end)
        said = said if said[-1] == end else [*said, end]  # the model would go on: the answer asked for is shorter
        if b in wrong:
            said[len(said) // 2] = (said[len(said) // 2] + 1) % (V - 1)
        sequences[b, : length + len(said)] = [*prompt_BxL[b, :length], *said]
        weights[b, length - 1 : length - 1 + len(said)] = 1
    return Batch(sequences[:, :-1], sequences[:, 1:], weights, {})


@pytest.mark.usefixtures("double")
def test_exact_match_asks_for_the_whole_answer_and_equals_that_given_the_true_beginning():
    model = transformer(**VARIANTS["pre"])
    task = types.SimpleNamespace(end=V - 1, longest_answer=N)
    match = jax.jit(lambda params, batch: decode.exact_match(model, params, task, batch))
    seen = set()
    for seed in range(4):
        params, prompt_BxL = row(model, seed), prompts(seed)
        # the end is made likely: after some tokens all sequences end, some of them at once
        params["head"]["bias"] = params["head"]["bias"] + np.eye(V)[V - 1] * 3
        batch = answered(model, params, prompt_BxL, N, wrong={seed % 4})
        found_B = np.asarray(match(params, batch))
        logits = full_pass(model, params, batch.tokens_BxL)
        np.testing.assert_array_equal(found_B, answers.exact_match(logits, batch))
        for b, length in enumerate(LENGTHS):
            said, _ = by_hand(model, params, prompt_BxL[b, :length], N, V - 1)
            asked = batch.targets_BxL[b][batch.weights_BxL[b] > 0].tolist()
            assert found_B[b] == (said == asked)
            seen.add((len(asked), bool(found_B[b])))
    assert len({size for size, right in seen if right}) > 1 and any(not right for _, right in seen)


def test_impossible_requests_are_refused():
    model = transformer()
    params = jax.tree.map(np.float32, row(model))
    with pytest.raises(ValueError, match="prompts of 13 tokens: the model has positions for 12"):
        decode.greedy(model, params, prompts(width=13), LENGTHS, 1, 0)
    with pytest.raises(ValueError, match="n_new=0: must be at least 1"):
        decode.greedy(model, params, prompts(), LENGTHS, 0, 0)
