import induction
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.analysis import flow
from lab.analysis.flow import Edge, attention_edges, mask_edges

EPS = 2.0**-23  # float32
LENGTH = 9
circuit, forward = jax.jit(flow.circuit), jax.jit(models.forward, static_argnums=0)
KEY_POSITION_B = np.array([0, 2, 5])
K, A, B, LAST = "key", "first", "second", "last"
REASONING = [(0, A, {K: 1.0}), (0, B, {K: 1.0}), (1, LAST, {A: 0.5, B: 0.5})]
SYMMETRIC = [(0, LAST, {A: 0.5, B: 0.5}), (1, LAST, {K: 1.0})]


def acts_of(pattern_NxBxHxLxL):
    return {f"block_{i}/attn/pattern": jnp.asarray(p, jnp.float32) for i, p in enumerate(pattern_NxBxHxLxL)}


def hand_made(edges, key_position_B=KEY_POSITION_B):
    """acts of two one-head blocks: every position reads itself, but for (layer, reader, {read: mass})."""
    pattern_NxBxLxL = np.tile(np.eye(LENGTH, dtype=np.float32), (2, len(key_position_B), 1, 1))
    for item, key in enumerate(key_position_B):
        position = {K: key, A: key + 1, B: key + 2, LAST: LENGTH - 1}
        for layer, reader, masses in edges:
            pattern_NxBxLxL[layer, item, position[reader]] = 0
            for read, mass in masses.items():
                pattern_NxBxLxL[layer, item, position[reader], position[read]] = mass
    return acts_of(pattern_NxBxLxL[:, :, None])


def random_acts(seed, batch, heads=2):
    """Causal patterns with rows that sum to one."""
    rng = np.random.default_rng(seed)
    pattern = np.tril(rng.exponential(size=(2, batch, heads, LENGTH, LENGTH)))
    pattern /= pattern.sum(axis=-1, keepdims=True)
    return acts_of(pattern)


def transformer(readout="all"):
    return models.Transformer(
        vocab_size=30, max_length=LENGTH, n_layers=2, n_heads=2, d_model=8, d_head=4, d_ff=8,
        activation="relu", norm="post", use_bias=False, head_bias=True, final_norm=False, tied_head=False,
        readout=readout,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model_row():
    tokens_BxL = jax.random.randint(jax.random.key(1), (3, LENGTH), 0, 30)
    return induction.random_parameters(transformer(), LENGTH, 0), tokens_BxL


def test_reasoning_circuit_scores_one_and_zero():
    result = circuit(hand_made(REASONING), KEY_POSITION_B)
    ones = {"first_to_key", "second_to_key", "anchor_to_key", "last_to_anchors", "reasoning_score"}
    assert result == {name: float(name in ones) for name in result}


def test_symmetric_circuit_scores_zero_and_one():
    result = circuit(hand_made(SYMMETRIC), KEY_POSITION_B)
    ones = {"last_to_anchors_first_layer", "last_to_key", "symmetric_score"}
    assert result == {name: float(name in ones) for name in result}


@pytest.mark.parametrize("cut", [(0, A, {}), (0, B, {}), (1, LAST, {A: 1.0}), (1, LAST, {B: 1.0})])
def test_reasoning_score_is_zero_without_any_one_of_its_edges(cut):
    assert circuit(hand_made([*REASONING, cut]), KEY_POSITION_B)["reasoning_score"] == 0


@pytest.mark.parametrize("cut", [(0, LAST, {A: 1.0}), (0, LAST, {B: 1.0}), (1, LAST, {})])
def test_symmetric_score_is_zero_without_any_one_of_its_edges(cut):
    assert circuit(hand_made([*SYMMETRIC, cut]), KEY_POSITION_B)["symmetric_score"] == 0


def test_uniform_causal_attention_has_the_closed_form():
    uniform_LxL = np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None]
    pattern = np.tile(uniform_LxL, (2, 3, 1, 1, 1))
    result = circuit(acts_of(pattern), KEY_POSITION_B)
    k, last = KEY_POSITION_B, 1 / LENGTH
    to_key = np.sqrt(1 / (k + 2) / (k + 3))
    expected = {
        "first_to_key": np.mean(1 / (k + 2)),
        "second_to_key": np.mean(1 / (k + 3)),
        "anchor_to_key": np.mean(1 / (k + 2) + 1 / (k + 3)) / 2,
        "second_to_first": np.mean(1 / (k + 3)),
        "last_to_anchors_first_layer": 2 * last,
        "last_to_anchors": 2 * last,
        "last_to_key": last,
        "reasoning_score": np.mean(to_key) * 2 * last,
        "symmetric_score": 2 * last * last,
    }
    # At most ten roundings from the pattern to the mean of three.
    np.testing.assert_allclose([result[name] for name in expected], list(expected.values()), rtol=10 * EPS)
    assert set(result) == set(expected)


@pytest.mark.parametrize("seed", range(5))
def test_every_mass_is_in_the_unit_interval(seed):
    for value in circuit(random_acts(seed, batch=6), np.arange(6)).values():
        assert 0 <= value <= 1


def test_sequences_whose_second_anchor_is_last_do_not_count():
    acts, kept = random_acts(0, batch=4), np.array([0, 2])
    result = circuit(acts, np.array([1, LENGTH - 3, 5, LENGTH - 3]))
    expected = circuit({name: pattern[kept] for name, pattern in acts.items()}, np.array([1, 5]))
    for name in expected:
        # Two terms, with or without zeros between them.
        assert result[name] == pytest.approx(float(expected[name]), rel=2 * EPS)
    assert np.isnan(circuit(random_acts(0, batch=1), np.array([LENGTH - 3]))["last_to_key"])


def test_edges_are_the_mean_over_heads_of_each_layer():
    acts = random_acts(1, batch=3, heads=3)
    edges_NxBxQxL = attention_edges(acts, 2)
    for layer in range(2):
        heads = np.asarray(acts[f"block_{layer}/attn/pattern"], np.float64)
        expected = (heads[:, 0] + heads[:, 1] + heads[:, 2]) / 3
        np.testing.assert_allclose(edges_NxBxQxL[layer], expected, rtol=4 * EPS)  # two sums and a division


def test_circuit_is_the_same_with_either_readout(model_row):
    params, tokens_BxL = model_row
    results = [
        circuit(forward(transformer(readout), params, tokens_BxL)[1], KEY_POSITION_B) for readout in ("last", "all")
    ]
    # Block 0 is the same. In block 1 query and score are products of 8 and 4 terms, maybe summed in another
    # order: 12 eps of a score below 10, which moves a mass by that relative to itself and to its row's sum.
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=2 * 10 * 12 * EPS)


def test_masked_edge_has_no_mass_and_the_rest_is_renormalized(model_row):
    params, tokens_BxL = model_row
    _, before = models.forward(transformer(), params, tokens_BxL)
    _, after = models.forward(transformer(), params, tokens_BxL, mask_edges(0, [4, 4, 7], [1, 3, 0]))
    p, q = (np.asarray(acts["block_0/attn/pattern"]) for acts in (before, after))
    assert np.abs(np.tril(before["block_0/attn/score"])).max() < 10
    expected = p.astype(np.float64)
    for query, keys in ((4, [1, 3]), (7, [0])):
        assert (q[:, :, query, keys] == 0).all()  # exp(-1e9) underflows
        expected[:, :, query, keys] = 0
        expected[:, :, query] /= expected[:, :, query].sum(axis=-1, keepdims=True)
    untouched = np.setdiff1d(np.arange(LENGTH), [4, 7])
    np.testing.assert_array_equal(q[:, :, untouched], p[:, :, untouched])
    # On either side: a difference of scores below 20, so exp to 20 eps, then a sum of nine and a division.
    np.testing.assert_allclose(q, expected, rtol=2 * 30 * EPS)


def test_edges_may_differ_between_items(model_row):
    params, tokens_BxL = model_row
    edits = mask_edges(1, KEY_POSITION_B[:, None] + np.array([[1, 2]]), KEY_POSITION_B[:, None])
    _, acts = models.forward(transformer(), params, tokens_BxL, edits)
    cut_BxHxQxL = np.tril(acts["block_1/attn/pattern"] == 0)
    edges = [[b, head, k + j, k] for b, k in enumerate(KEY_POSITION_B) for head in (0, 1) for j in (1, 2)]
    np.testing.assert_array_equal(np.argwhere(cut_BxHxQxL), edges)


def test_query_positions_are_positions_in_the_sequence_with_either_readout(model_row):
    params, tokens_BxL = model_row
    edits = mask_edges(0, 3, 1) | mask_edges(1, LENGTH - 1, KEY_POSITION_B[:, None])
    logits_last, acts = models.forward(transformer("last"), params, tokens_BxL, edits)
    logits_all, _ = models.forward(transformer("all"), params, tokens_BxL, edits)
    uncut, _ = models.forward(transformer("last"), params, tokens_BxL)
    assert (acts["block_1/attn/pattern"][np.arange(3), :, 0, KEY_POSITION_B] == 0).all()
    # Logits below 10, after some ten matrix products that may each sum their 8 terms in another order.
    np.testing.assert_allclose(logits_last[:, -1], logits_all[:, -1], rtol=0, atol=10 * 10 * 8 * EPS)
    assert np.abs(logits_last - uncut).max() > 1e-2  # the cut is felt, far above rounding


def softmax_where(kept_BxHxQxL, acts, layer):
    """The attention over the kept keys, from the block's queries and keys, in float64."""
    q_BxLxHxK, k_BxLxHxK = (np.asarray(acts[f"block_{layer}/attn/{name}"], np.float64) for name in "qk")
    score_BxHxQxL = np.einsum("bqhk,blhk->bhql", q_BxLxHxK, k_BxLxHxK) / np.sqrt(q_BxLxHxK.shape[-1])
    weight_BxHxQxL = np.where(kept_BxHxQxL, np.exp(score_BxHxQxL), 0)
    return weight_BxHxQxL / weight_BxHxQxL.sum(axis=-1, keepdims=True)


EDGES = (Edge(0, 4, 1, 1), Edge(0, 4, 3, 1), Edge(0, 4, 3, 0), Edge(1, 8, 8, 0), Edge(1, 5, 2, 1))


def test_a_set_of_edges_of_layers_and_heads_is_cut_as_numpy_does_it(model_row):
    params, tokens_BxL = model_row
    _, acts = models.forward(transformer(), params, tokens_BxL, mask_edges(*zip(*EDGES, strict=True)))
    for layer in range(2):
        kept_BxHxQxL = np.tile(np.tri(LENGTH, dtype=bool), (3, 2, 1, 1))
        for edge in EDGES:
            if edge.layer == layer:
                kept_BxHxQxL[:, edge.head, edge.query, edge.key] = False
        expected = softmax_where(kept_BxHxQxL, acts, layer)
        # A score of four terms and a division, at most 10: 6 * 10 eps; exp, a sum of nine, a division: 30 eps.
        np.testing.assert_allclose(acts[f"block_{layer}/attn/pattern"], expected, rtol=2 * 90 * EPS)


def test_a_query_without_edges_reads_every_key_alike(model_row):
    params, tokens_BxL = model_row
    _, acts = models.forward(transformer(), params, tokens_BxL)

    def masked_pattern(query):  # traced, so that it cannot be refused
        (edit,) = mask_edges(0, query, np.arange(4), 1).values()
        return jax.nn.softmax(edit(acts["block_0/attn/score"]))

    # exp(0) / 9, which no rounding but the division's touches
    np.testing.assert_allclose(jax.jit(masked_pattern)(3)[:, 1, 3], 1 / LENGTH, rtol=EPS)


@pytest.mark.parametrize("layer", [0, 1])
def test_only_the_two_edges_of_an_induction_head_matter(layer):
    k = 3
    tokens_BxL, answer_B = induction.sequences(0, [k] * 4)
    edges = [  # query 0 has one edge, which no mask can cut
        (query, key, head)
        for query in range(1, induction.LENGTH) for key in range(query + 1) for head in range(induction.N_HEADS)
    ]  # fmt: skip

    def answer_logits(edge):
        edits = mask_edges(layer, *edge)
        return models.forward(induction.transformer(), induction.parameters(), tokens_BxL, edits)[0][:, -1]

    logits_ExBxV = jax.jit(jax.vmap(answer_logits))(jnp.array(edges))
    expected_BxV = induction.GAIN * np.eye(induction.VOCAB)[answer_B]
    for edge, logits_BxV in zip(edges, np.asarray(logits_ExBxV), strict=True):
        if (layer, *edge) in induction.circuit(k):
            assert (logits_BxV[np.arange(4), answer_B] == 0).all()
        else:
            np.testing.assert_array_equal(logits_BxV, expected_BxV)  # every number is 0, 1 or GAIN


def test_one_masked_edge_an_item_kills_every_answer():
    key_position_B = np.array([2, 3, 4, 5])
    tokens_BxL, _ = induction.sequences(1, key_position_B)
    edits = mask_edges(0, key_position_B[:, None] + 1, key_position_B[:, None], 0)
    logits_BxQxV = jax.jit(
        lambda params: models.forward(induction.transformer(), params, tokens_BxL, edits)[0],
    )(induction.parameters())
    expected_BxV = np.tile(induction.GAIN * np.eye(induction.VOCAB)[induction.BOS], (4, 1))  # the sink is all it finds
    np.testing.assert_array_equal(logits_BxQxV[:, -1], expected_BxV)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2, [0, 1, 2]), "query 2 of block 0 loses all"),
        ((0, 2, [0, 1, 2], [1, 1, 1]), "query 2 of block 0 loses all"),
        ((1, 2, 5), "query 2 does not see key 5"),
        ((0, 2.5, 1), "query_positions=.*integers"),
        ((0, 2, 1, (None,)), "heads=.*integers"),
    ],
)
def test_edges_that_cannot_be_cut_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mask_edges(*arguments)


@pytest.mark.parametrize("arguments", [(0, LENGTH, 1), (0, 2, -1), (0, 2, 1, 2)])
def test_edges_outside_the_pattern_are_refused_where_it_is_known(arguments):
    (edit,) = mask_edges(*arguments).values()
    with pytest.raises(ValueError, match=r"(query|key|head)=-?\d+: 0 to \d"):
        edit(jnp.zeros((1, 2, LENGTH, LENGTH)))


def test_cutting_all_keys_of_a_query_in_different_heads_is_no_blind_query():
    assert set(mask_edges([0, 0, 2], 1, [0, 1, 0], [0, 1, 0])) == {"block_0/attn/score", "block_2/attn/score"}


def test_vmapped_rows_equal_lone_rows():
    rows = [random_acts(seed, batch=4) for seed in range(3)]
    together = jax.vmap(circuit, in_axes=(0, None))(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows), np.arange(4)
    )
    for r, row in enumerate(rows):
        for name, alone in circuit(row, np.arange(4)).items():
            # Means of two heads and four items, and three products: at most ten roundings in another order.
            np.testing.assert_allclose(together[name][r], alone, rtol=10 * EPS)
