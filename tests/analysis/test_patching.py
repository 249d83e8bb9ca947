import induction
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lab import models
from lab.analysis.patching import causal_trace, interchange, patch, read_answer, stream_names

EPS = 2.0**-23  # float32
LENGTH, LAST = induction.LENGTH, induction.LAST
KEY_POSITION_B = np.array([3, 3, 3, 4])
MODEL = induction.transformer()
EVERY_NAME = ["embed", *(f"block_{i}/{name}" for i in range(2) for name in (
    "resid_pre", "attn/q", "attn/k", "attn/v", "attn/score", "attn/pattern", "attn/z", "attn/out", "resid_mid",
    "mlp/pre", "mlp/post", "mlp/out", "resid_post",
)), "final", "logits"]  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    """Two random rows, two inputs, and `(logits, acts)` of (row, input). Not jitted: the same operation on the same
    numbers is then the same program, and runs can be compared bitwise."""
    inputs = [induction.sequences(seed, KEY_POSITION_B)[0] for seed in (0, 1)]
    params = [induction.random_parameters(MODEL, LENGTH, seed) for seed in (0, 1)]
    return params, inputs, {(r, i): models.forward(MODEL, params[r], inputs[i]) for r in range(2) for i in range(2)}


@pytest.fixture(scope="module")
def induced():
    """The induction head's sequences and answers; the first of two equal tokens replaced; what follows it replaced."""
    tokens_BxL, answer_B = induction.sequences(2, KEY_POSITION_B)
    corrupted_BxL = induction.replaced(tokens_BxL, KEY_POSITION_B)
    return tokens_BxL, answer_B, corrupted_BxL, induction.replaced(tokens_BxL, KEY_POSITION_B + 1)


def test_patching_a_run_with_its_own_activations_changes_nothing(rows):
    params, inputs, runs = rows
    logits, acts = runs[0, 0]
    assert set(EVERY_NAME) == set(acts)
    patched, patched_acts = models.forward(MODEL, params[0], inputs[0], patch(acts, EVERY_NAME))
    np.testing.assert_array_equal(patched, logits)
    for name in EVERY_NAME:
        np.testing.assert_array_equal(patched_acts[name], acts[name])


@pytest.mark.parametrize("name", ["embed", "block_1/resid_pre", "block_1/resid_mid", "final"])
def test_patching_the_whole_stream_gives_the_other_inputs_logits(rows, name):
    params, inputs, runs = rows
    logits, _ = models.forward(MODEL, params[0], inputs[0], patch(runs[0, 1][1], name))
    np.testing.assert_array_equal(logits, runs[0, 1][0])
    assert (np.asarray(logits) != np.asarray(runs[0, 0][0])).any()


@pytest.mark.parametrize(
    ("name", "positions", "heads", "where"),
    [
        ("block_1/resid_pre", [2, 5], None, np.s_[:, [2, 5]]),
        ("block_0/mlp/post", KEY_POSITION_B[:, None], None, np.s_[np.arange(4), KEY_POSITION_B]),
        ("block_0/attn/v", None, 1, np.s_[:, :, 1]),
        ("block_0/attn/z", [3, 6], [0], np.s_[:, [3, 6], 0]),
        ("block_1/attn/pattern", 4, 1, np.s_[:, 1, 4]),
        ("block_1/attn/score", KEY_POSITION_B[:, None], None, np.s_[np.arange(4), :, KEY_POSITION_B]),
    ],
)
def test_only_the_chosen_positions_and_heads_are_substituted(rows, name, positions, heads, where):
    params, inputs, runs = rows
    _, acts = models.forward(MODEL, params[0], inputs[0], patch(runs[0, 1][1], name, positions, heads))
    expected = np.array(runs[0, 0][1][name])  # nothing before it changed
    expected[where] = np.asarray(runs[0, 1][1][name])[where]
    np.testing.assert_array_equal(acts[name], expected)


def test_the_answers_position_is_patched_where_it_is_the_only_one(rows):
    params, inputs, _ = rows
    model = induction.transformer("last")
    other_logits, other_acts = models.forward(model, params[0], inputs[1])
    edits = patch(other_acts, "block_1/resid_post", LAST)
    np.testing.assert_array_equal(models.forward(model, params[0], inputs[0], edits)[0], other_logits)
    with pytest.raises(ValueError, match=f"block_1/resid_post': position=3: {LAST} to {LAST}"):
        patch(other_acts, "block_1/resid_post", 3)


def test_answer_is_read_at_the_last_position():
    logits_BxQxV = np.array([[[9, 0, 0], [1, 2, 0]], [[0, 9, 0], [3, 3, -1]], [[0, 0, 9], [3, 3, -1]]], np.float32)
    answer = read_answer(jnp.asarray(logits_BxQxV), np.array([1, 0, 1]))
    np.testing.assert_array_equal(answer.correct, [1, 1, 0])  # of equal logits the first is top-1
    np.testing.assert_array_equal(answer.logit, [2, 3, 3])
    expected = scipy.special.softmax(logits_BxQxV[:, -1].astype(np.float64), axis=-1)[np.arange(3), [1, 0, 1]]
    np.testing.assert_allclose(answer.probability, expected, rtol=10 * EPS)  # exp, a sum of three, a division


def test_causal_trace_restores_an_induction_head_where_the_fact_is(induced):
    tokens_BxL, answer_B, corrupted_BxL, _ = induced
    # with one query in the last block: other positions of its output hold nothing to restore
    model, params = induction.transformer("last"), induction.parameters()
    trace = jax.jit(causal_trace, static_argnums=(0, 5))(
        model, params, tokens_BxL, corrupted_BxL, answer_B, tuple(stream_names(2))
    )
    # Fraction of items restored: the key at k, after one block known at k+1, after two at the last position.
    fraction_NxL = np.zeros((3, LENGTH))
    fraction_NxL[0, [3, 4]] = fraction_NxL[1, [4, 5]] = 3 / 4, 1 / 4
    fraction_NxL[2, LAST] = 1
    # Items are all or nothing: s^2 = n / (n-1) p (1-p).
    error_NxL = np.sqrt(fraction_NxL * (1 - fraction_NxL) / 3)
    right, wrong = np.array([np.exp(induction.GAIN), 1]) / (np.exp(induction.GAIN) + induction.VOCAB - 1)
    for name, gain in (("correct", 1), ("logit", induction.GAIN), ("probability", right - wrong)):
        found = getattr(trace.restored, name)
        # Every logit is 0 or GAIN. exp is good to some eps, then a sum of V: 20 eps of at most GAIN.
        np.testing.assert_allclose(found.value, gain * fraction_NxL, rtol=0, atol=20 * EPS * gain)
        np.testing.assert_allclose(found.standard_error, gain * error_NxL, rtol=0, atol=20 * EPS * gain)
    assert (trace.clean.correct.value, trace.corrupted.correct.value) == (1, 0)
    assert (trace.clean.logit.value, trace.corrupted.logit.value) == (induction.GAIN, 0)


def test_bad_patches_are_refused(rows):
    acts = rows[2][0, 0][1]
    emb = {"embed": jnp.zeros((4, 8, 3)), "sum": jnp.zeros((4, 3))}
    for arguments, message in (
        ((acts, "block_0/atn/z"), "did you mean 'block_0/attn/z'"),
        ((acts, "block_0/resid_pre", LENGTH), f"position={LENGTH}: 0 to {LAST}"),
        ((acts, "block_0/resid_pre", 1, 0), "only attn/q, .* have heads"),
        ((acts, "block_0/attn/z", None, 2), "head=2: 0 to 1"),
        ((emb, "sum", 1), "it has no positions"),
        (({"sum": emb["sum"], "pre": emb["embed"]}, "pre", 1), "no 'embed'"),
    ):
        with pytest.raises(ValueError, match=message):
            patch(*arguments)
    (edit,) = patch(acts, "embed").values()
    with pytest.raises(ValueError, match=r"the source is float32\(4, 8, 38\), here float32\(2, 8, 38\)"):
        edit(acts["embed"][:2])


@pytest.mark.parametrize(
    ("offset", "carries"),
    [  # the first of two equal tokens is read by the next position, which the last one reads
        (0, {(0, 0), (1, 1), (2, LAST)}),
        (1, {(0, 1), (1, 1), (2, LAST)}),
    ],
)
def test_states_that_decide_are_those_on_the_circuit_of_what_is_swapped(induced, offset, carries):
    tokens_BxL, answer_B, *others = induced
    names = stream_names(2)
    found = interchange(MODEL, induction.parameters(), tokens_BxL, others[offset], answer_B, names)
    expected_NxBxL = np.zeros((len(names), len(answer_B), LENGTH))
    for layer, place in carries:
        at_B = np.full(len(answer_B), LAST) if place == LAST else KEY_POSITION_B + place
        expected_NxBxL[layer, np.arange(len(answer_B)), at_B] = 1
    share_NxL = expected_NxBxL.mean(axis=1)
    assert int(found.n) == len(answer_B)
    np.testing.assert_array_equal(found.share.value, share_NxL)
    np.testing.assert_allclose(found.share.standard_error, expected_NxBxL.std(axis=1, ddof=1) / 2, rtol=4 * EPS)


def test_items_that_are_answered_wrong_do_not_count(induced):
    tokens_BxL, answer_B, _, other_BxL = induced
    wrong_B = np.where(np.arange(4) < 3, (np.asarray(answer_B) + 1) % induction.VOCAB, answer_B)
    found = interchange(MODEL, induction.parameters(), tokens_BxL, other_BxL, wrong_B, ["block_0/resid_pre"])
    assert int(found.n) == 1
    np.testing.assert_array_equal(found.share.value[0], np.arange(LENGTH) == KEY_POSITION_B[3] + 1)
    none = interchange(MODEL, induction.parameters(), tokens_BxL, other_BxL, answer_B * 0, ["embed"])
    assert int(none.n) == 0 and np.isnan(none.share.value).all()
