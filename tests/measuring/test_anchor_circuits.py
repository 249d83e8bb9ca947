"""Cut circuits against masks filled by hand, on a model whose attention is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import config as configs
from lab import models, rng
from lab.analysis import flow
from lab.configs import complexity_control as config
from lab.measuring.catalogue import anchor_circuits as circuits
from lab.measuring.declare import Row

LENGTH = 9
POSITIONS = np.array([0, 3, 5], np.int32)  # of the key; the last token is at 8


@pytest.fixture(scope="module")
def experiment():
    return configs.experiment(configs.variants(config.smoke())["phase"])


@pytest.fixture(scope="module")
def row(experiment):
    """Random weights, and sequences of the unseen pair."""
    model = experiment.model.clone(readout="all")
    params = jax.jit(models.init, static_argnums=0)(model, rng.key(0, "init"), jnp.zeros((1, LENGTH), jnp.int32))
    batch = experiment.task.sample(rng.key(0, "batch"), circuits.SEQUENCES, "ood_43", {})
    return Row(model, params, params, {}, jnp.int32(0), batch, rng.key(0, "measure"))


def taken(measure, row):
    """What a measurement gives, compiled."""
    arrays = (row.params, row.batch, row.key)
    return jax.jit(lambda params, batch, key: measure.function(row._replace(params=params, batch=batch, key=key)))(
        *arrays
    )


def by_hand(name, k):
    """(block, reader, read) of a circuit, as the module says."""
    a, b, last = k + 1, k + 2, LENGTH - 1
    return {
        "reasoning": {(0, a, k), (0, b, k), (1, last, a), (1, last, b)},
        "symmetric": {(0, last, a), (0, last, b), (1, last, k)},
    }[name]


def listed(edges, item):
    return [
        (layer, int(query), int(key))
        for layer, query, key in zip(edges.layers, edges.query_BxE[item], edges.key_BxE[item], strict=True)
    ]


@pytest.mark.parametrize("name", ["reasoning", "symmetric"])
def test_edges_of_a_circuit_are_cut_and_no_others(row, name):
    edges = getattr(circuits, f"{name}_edges")(jnp.asarray(POSITIONS), LENGTH)
    tokens_BxL = row.batch.tokens_BxL[: len(POSITIONS)]
    _, whole = jax.jit(models.forward, static_argnums=0)(row.model, row.params, tokens_BxL)
    _, cut = jax.jit(lambda params: models.forward(row.model, params, tokens_BxL, flow.mask_edges(*edges)))(row.params)
    for item, k in enumerate(POSITIONS.tolist()):
        assert set(listed(edges, item)) == by_hand(name, k)
        for layer in (0, 1):
            mask_LxL = np.zeros((LENGTH, LENGTH), bool)
            for _, query, key in (edge for edge in by_hand(name, k) if edge[0] == layer):
                mask_LxL[query, key] = True
            pattern_LxL = np.asarray(cut[f"block_{layer}/attn/pattern"])[item, 0]
            assert (pattern_LxL[mask_LxL] == 0).all()
            assert (pattern_LxL[~mask_LxL & np.tri(LENGTH, dtype=bool)] > 0).all()
            np.testing.assert_allclose(pattern_LxL.sum(axis=1), 1, rtol=1e-6)  # nine float32 roundings
        # in the first block what is left keeps its proportions: the softmax over the other scores, by hand
        score_LxL = np.asarray(whole["block_0/attn/score"], np.float64)[item, 0]
        for _, query, key in (edge for edge in by_hand(name, k) if edge[0] == 0):
            score_LxL[query, key] = -np.inf
        expected_LxL = np.exp(score_LxL) / np.exp(score_LxL).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(np.asarray(cut["block_0/attn/pattern"])[item, 0], expected_LxL, atol=1e-6)


def test_random_edges_are_as_many_of_neither_circuit_and_differ_between_sequences():
    k_B = jnp.asarray(np.tile(POSITIONS, 50))
    edges = circuits.random_edges(rng.key(3, "edges"), k_B, LENGTH)
    found = [listed(edges, item) for item in range(k_B.size)]
    for of_item, k in zip(found, k_B.tolist(), strict=True):
        assert len(set(of_item)) == 4 and [layer for layer, _, _ in of_item] == [0, 0, 1, 1]
        assert not set(of_item) & (by_hand("reasoning", k) | by_hand("symmetric", k))
        assert all(0 <= key < query for _, query, key in of_item)
        assert all(query == LENGTH - 1 for layer, query, _ in of_item if layer == 1)
    assert {key for of_item in found for layer, _, key in of_item if layer == 1} == set(range(LENGTH - 1))
    assert len({tuple(of_item) for of_item in found}) > len(found) / 2


def test_masked_accuracy_is_that_with_a_mask_filled_by_hand(experiment, row):
    """Targets are what the model says with the symmetric circuit cut, for every second sequence that ends in noise."""
    (measure,) = [one for one in circuits.measures(experiment) if one.name == "masked_seen"]
    batch = experiment.task.sample(rng.key(1, "batch"), 24, "test_seen", {})
    position_B = np.asarray(batch.info["key_position_B"])
    mask_NxBxLxL = np.zeros((2, 24, LENGTH, LENGTH), bool)
    for item, k in enumerate(position_B.tolist()):
        for layer, query, key in by_hand("symmetric", k) if k <= LENGTH - 4 else ():
            mask_NxBxLxL[layer, item, query, key] = True

    def masked(score_BxHxQxL, layer):
        return jnp.where(mask_NxBxLxL[layer][:, None], -1e9, score_BxHxQxL)

    edits = {f"block_{layer}/attn/score": functools.partial(masked, layer=layer) for layer in (0, 1)}
    logits, _ = jax.jit(lambda params: models.forward(row.model, params, batch.tokens_BxL, edits))(row.params)
    counted = np.flatnonzero(position_B <= LENGTH - 4)
    target_B = np.full(24, -1, np.int32)
    target_B[counted[::2]] = np.argmax(logits[:, -1], axis=-1)[counted[::2]]
    targets_BxL = batch.targets_BxL.at[:, -1].set(target_B)
    found = taken(measure, row._replace(batch=batch._replace(targets_BxL=targets_BxL)))
    assert float(found["symmetric"]) == pytest.approx(len(counted[::2]) / len(counted), rel=1e-6)


def test_equivalence_takes_the_published_sequences(experiment, row, monkeypatch):
    seen = {}

    def forward(model, params, tokens_BxL):
        seen["tokens"] = np.asarray(tokens_BxL)
        vector_BxQxD = np.zeros((8, LENGTH, 3), np.float32)
        vector_BxQxD[:, -1] = [[1, 0, 0]] * 3 + [[1, 1, 0]] + [[0, 0, 1]] * 3 + [[1, 0, 1]]
        return None, {circuits.VECTOR: jnp.asarray(vector_BxQxD)}

    monkeypatch.setattr(circuits.models, "forward", forward)
    found = circuits.equivalence(experiment).function(row)
    for i, (tokens, target) in enumerate(zip(seen["tokens"].tolist(), [40] * 4 + [79] * 4, strict=True)):
        assert tokens[:2] == [35, 63] and tokens[4:] == [2, 38, 42, 36, 62] and tokens[3] == i % 4 + 1
        assert tokens[2] + experiment.task.shifts[tokens[3] - 1] == target
    half = np.sqrt(0.5)
    # three of six pairs within a value are at 1, three at sqrt(1/2); across: 3 + 1 of 16 are not 0
    expected = {"within_40": (1 + half) / 2, "within_79": (1 + half) / 2, "across": (3 * half + 0.5) / 16, "gap": 0.0}
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-6)  # float32, eight numbers


def test_pair_sequences_have_the_key_where_training_never_has_it(experiment):
    task = experiment.task
    pairs = ((1, 2), (4, 3))
    tokens_BxL = np.asarray(circuits.pair_sequences(rng.key(0, "x"), task, pairs, 20))
    assert tokens_BxL.shape == (40, LENGTH) and (tokens_BxL[:, 2:4] == np.repeat(pairs, 20, axis=0)).all()
    assert (tokens_BxL[:, 1] % task.modulus == 1).all() and (np.delete(tokens_BxL, [2, 3], 1) >= task.low).all()


def test_outputs_with_the_key_hidden_do_not_depend_on_it(experiment, row, monkeypatch):
    """And orders are merged to 1 where the model is given the same sequences for both."""
    drawn = circuits.pair_sequences
    measure = circuits.outputs(experiment)

    def with_keys(shift):
        def sequences(key, task, pairs, repeats):
            tokens_BxL = drawn(key, task, [tuple(sorted(pair)) for pair in pairs], repeats)
            return tokens_BxL.at[:, circuits.KEY_POSITION].add(shift)

        monkeypatch.setattr(circuits, "pair_sequences", sequences)
        return jax.tree.map(np.asarray, taken(measure, row))

    here, there = with_keys(0), with_keys(9)
    np.testing.assert_allclose(here["hidden"], there["hidden"], atol=1e-4)  # logits of a few units in float32
    assert np.abs(here["whole"] - there["whole"]).max() > 0.01
    assert here["whole"].shape == (12, circuits.REPEATS, 2)


def test_layouts_without_the_published_sequence_have_no_circuits(experiment):
    for changes in ({"n_layers": 3}, {}):
        task = dataclasses.replace(experiment.task, **({} if changes else {"length": 8}))
        other = dataclasses.replace(experiment, model=experiment.model.clone(**changes), task=task)
        assert circuits.measures(other) == []
    assert len(circuits.measures(experiment)) == 4
