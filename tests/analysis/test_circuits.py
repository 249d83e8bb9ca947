import itertools

import induction
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import models
from lab.analysis import circuits
from lab.analysis.circuits import (
    edge_effects,
    find_circuit,
    keep_edges,
    keep_mask,
    kept_answer,
    smallest_set,
    visible_edges,
)
from lab.analysis.flow import Edge

EPS = 2.0**-23  # float32
LENGTH, LAST, K = induction.LENGTH, induction.LAST, 3
MODEL = induction.transformer()


@pytest.fixture(scope="module")
def data():
    return induction.sequences(0, [K] * 4)


@pytest.fixture(scope="module")
def random_row():
    tokens_BxL, _ = induction.sequences(0, [K] * 4)
    return induction.random_parameters(MODEL, LENGTH, 0), tokens_BxL


def test_visible_edges_are_those_of_nonzero_attention(random_row):
    params, tokens_BxL = random_row
    for readout in ("all", "last"):
        _, acts = models.forward(induction.transformer(readout), params, tokens_BxL)
        expected = set()
        for layer in range(2):
            pattern_HxQxL = np.asarray(acts[f"block_{layer}/attn/pattern"])[0]
            first = LENGTH - pattern_HxQxL.shape[1]
            expected |= {(layer, first + q, k, h) for h, q, k in np.argwhere(pattern_HxQxL > 0)}
        edges = visible_edges(induction.transformer(readout), LENGTH)
        assert set(edges) == expected
        assert len(edges) == len(expected)


def test_keeping_some_edges_is_zeroing_all_others(random_row):
    params, tokens_BxL = random_row
    edges = visible_edges(MODEL, LENGTH)
    kept = {edges[i] for i in np.random.default_rng(0).permutation(len(edges))[: len(edges) // 2]}
    logits, acts = models.forward(MODEL, params, tokens_BxL, keep_edges(keep_mask(MODEL, LENGTH, kept)))
    edits = {}
    for layer in range(2):
        cut_HxQxL = np.ones((induction.N_HEADS, LENGTH, LENGTH), np.float32)
        for _, query, key, head in (edge for edge in set(edges) - kept if edge[0] == layer):
            cut_HxQxL[head, query, key] = 0
        edits[f"block_{layer}/attn/pattern"] = lambda pattern_BxHxQxL, cut_HxQxL=cut_HxQxL: (
            pattern_BxHxQxL * cut_HxQxL[None]
        )
    expected, _ = models.forward(MODEL, params, tokens_BxL, edits)
    np.testing.assert_array_equal(logits, expected)  # not jitted: the same operations on the same numbers
    nothing, acts = models.forward(MODEL, params, tokens_BxL, keep_edges(keep_mask(MODEL, LENGTH, [])))
    assert not np.asarray(acts["block_0/attn/z"]).any()
    assert np.isfinite(nothing).all()


def test_effect_of_an_edge_is_what_the_induction_head_loses_by_it(data):
    tokens_BxL, answer_B = data
    # One item of five is broken from the start: it says BOS, and loses nothing of its answer.
    broken_1xL = induction.replaced(tokens_BxL[:1], [K])
    tokens_BxL, answer_B = np.concatenate([tokens_BxL, broken_1xL]), np.append(answer_B, answer_B[:1])
    model = induction.transformer("last")
    edges = visible_edges(model, LENGTH)
    effects = jax.jit(edge_effects, static_argnums=(0, 4, 5))(
        model, induction.parameters(), tokens_BxL, answer_B, tuple(edges), 17
    )
    in_circuit_E = np.array([edge in induction.circuit(K) for edge in edges])
    # cut, the key edge leaves BOS with GAIN and the answer edge no logit at all; BOS alone is lost with the sink
    gain, n = np.exp(induction.GAIN), induction.VOCAB
    after = {(0, K + 1, K, 0): 1 / (gain + n - 1), (1, LAST, K + 1, 1): 1 / n}
    intact_E = np.array([after[edge] - gain / (gain + n - 1) if edge in after else 0 for edge in edges])
    sink_E = np.array([(1 / n - 1 / (gain + n - 1)) * (edge == (1, LAST, 0, 1)) for edge in edges])
    for name, change_E, broken_E in (
        ("correct", -1.0 * in_circuit_E, 0), ("logit", -induction.GAIN * in_circuit_E, 0),
        ("probability", intact_E, sink_E),
    ):  # fmt: skip
        change_BxE = np.stack([change_E] * 4 + [broken_E + np.zeros(len(edges))])
        found = getattr(effects, name)
        # exp is good to some eps, then sums of V and of five: 20 eps of at most the largest change
        atol = 20 * EPS * np.abs(change_BxE).max()
        np.testing.assert_allclose(found.value, change_BxE.mean(axis=0), rtol=0, atol=atol)
        np.testing.assert_allclose(
            found.standard_error, change_BxE.std(axis=0, ddof=1) / np.sqrt(5), rtol=0, atol=atol
        )  # fmt: skip


def test_search_finds_exactly_the_circuit_of_the_induction_head_in_one_program(data, monkeypatch):
    tokens_BxL, answer_B = data
    traces, forward = [], models.forward
    monkeypatch.setattr(models, "forward", lambda *arguments: traces.append(1) or forward(*arguments))
    tried = []
    monkeypatch.setattr(
        circuits, "smallest_set", lambda *arguments: tried.extend(arguments[1]) or smallest_set(*arguments)
    )
    circuits.kept_answer.clear_cache()
    found = find_circuit(MODEL, induction.parameters(), tokens_BxL, answer_B, 0.9, 36)
    assert found.edges == induction.circuit(K)
    assert (found.score, found.full_score) == (1, 1)
    assert set(tried[-2:]) == induction.circuit(K)  # what helps most goes last
    # 144 edges and the whole; then halving and doubling, far fewer than one by one
    assert 145 + 3 <= found.evaluations < 145 + 40
    assert len(traces) <= 2  # the search, and the effects of single edges; every mask is data


def test_a_circuit_alone_answers_and_without_any_of_its_edges_does_not(data):
    tokens_BxL, answer_B = data

    def correct(edges):
        keep_NxHxLxL = keep_mask(MODEL, LENGTH, edges)
        return np.asarray(kept_answer(MODEL, induction.parameters(), tokens_BxL, answer_B, keep_NxHxLxL).correct)

    edges = induction.circuit(K)
    assert correct(edges).all()
    for edge in edges:
        assert not correct(edges - {edge}).any()


@pytest.mark.parametrize("seed", range(20))
def test_no_item_of_a_smallest_set_can_be_spared(seed):
    rng = np.random.default_rng(seed)
    table = rng.uniform(size=2**6)  # not monotone: a smaller set may score more
    calls = []

    def score(kept):
        calls.append(1)
        return float(table[sum(2**i for i in kept)])

    found = smallest_set(score, range(6), 0.5)
    floor = 0.5 * table[-1]
    assert found.full_score == table[-1]
    assert found.score == table[sum(2**i for i in found.edges)] >= floor
    assert all(table[sum(2**i for i in found.edges - {item})] < floor for item in found.edges)
    assert found.evaluations == len(calls)


def test_smallest_set_of_a_conjunction_is_it_and_of_two_ways_the_one_that_is_tried_last():
    calls = []

    def works(kept):
        calls.append(tuple(kept))
        return float({5, 77} <= set(kept) and (3 in kept or 200 in kept))

    assert smallest_set(works, range(256), 1.0).edges == {5, 77, 200}
    assert smallest_set(works, range(255, -1, -1), 1.0).edges == {3, 5, 77}
    assert len(calls) < 2 * 4 * 2 * 8  # halving down to, and doubling up from, each of at most 4 items: log2(256) each


def test_a_run_longer_than_what_is_left_is_tried_once():
    tried = []

    def works(kept):
        tried.append(frozenset(kept))
        return float({8, 9} <= set(kept))

    # 0-4 go, twice as many would be ten of the five left; after a failure something else must be tried
    assert smallest_set(works, range(10), 1.0).edges == {8, 9}
    assert all(before != after for before, after in itertools.pairwise(tried))


def test_what_cannot_be_searched_is_refused(data):
    tokens_BxL, answer_B = data
    for threshold in (0, 1.5):
        with pytest.raises(ValueError, match=f"threshold={threshold}"):
            smallest_set(len, range(3), threshold)
    for score in (lambda kept: 0.0, lambda kept: float("nan")):
        with pytest.raises(ValueError, match="the full score is"):
            smallest_set(score, range(3), 0.5)
    with pytest.raises(ValueError, match="chunk=0"):
        edge_effects(MODEL, induction.parameters(), tokens_BxL, answer_B, [Edge(0, 1, 0, 0)], 0)
    for edge in (Edge(2, 1, 0, 0), Edge(0, 1, 2, 0), Edge(0, LENGTH, 0, 0), Edge(0, 1, 0, 2), Edge(0, 1, 0, None)):
        with pytest.raises(ValueError, match=r"layers 0 to 1, heads 0 to 1"):
            keep_mask(MODEL, LENGTH, [edge])


def test_vmapped_rows_equal_lone_rows(data, random_row):
    rows = [induction.parameters(), random_row[0]]
    keep_NxHxLxL = keep_mask(MODEL, LENGTH, visible_edges(MODEL, LENGTH)[::2])
    together = jax.vmap(kept_answer, in_axes=(None, 0, None, None, None))(
        MODEL, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows), *data, keep_NxHxLxL
    )
    for r, row in enumerate(rows):
        for one, alone in zip(together, kept_answer(MODEL, row, *data, keep_NxHxLxL), strict=True):
            # Some ten products of at most 38 terms that may be summed in another order; numbers up to GAIN.
            np.testing.assert_allclose(one[r], alone, rtol=0, atol=10 * 38 * EPS * induction.GAIN)
