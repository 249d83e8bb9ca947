"""Measurements of questions of several hops against forward passes written out, on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import config as configs
from lab import models, rng
from lab.analysis import lens, patching
from lab.configs import chain_of_thought as config
from lab.measuring.catalogue import hops
from lab.measuring.declare import Row
from lab.tasks import answers, swapped_hops

N = 32
forward = jax.jit(lambda model, params, tokens: models.forward(model, params, tokens)[0], static_argnums=0)


@pytest.fixture(scope="module", autouse=True)
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hops, "SEQUENCES", N)
        yield


@pytest.fixture(scope="module")
def experiment():
    return configs.experiment(configs.variants(config.smoke())["thought"])


def said(row, *columns):
    """What the likeliest token after these is."""
    return jnp.argmax(forward(row.model, row.params, jnp.stack(columns, axis=1))[:, -1], axis=-1).astype(jnp.int32)


@pytest.fixture(scope="module")
def row(experiment):
    """Large random weights, and questions whose bridge and answer are what this model says: so it is right."""
    model = experiment.model
    params = jax.jit(models.init, static_argnums=0)(model, rng.key(0, "init"), jnp.zeros((1, 7), jnp.int32))
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    batch = experiment.task.sample(rng.key(0, "batch"), N, "two_hop_id", {})
    made = Row(model, params, params, {}, jnp.int32(0), batch, rng.key(0, "measure"))
    question, bridge_B = batch.tokens_BxL.T[:3], batch.tokens_BxL[:, 3]
    info = batch.info | {"bridge_B": said(made, *question), "answer_B": said(made, *question, bridge_B)}
    return made._replace(batch=batch._replace(info=info))


def taken(measure, row):
    def function(params, batch, key):
        return measure.function(row._replace(params=params, batch=batch, key=key))

    return {name: np.asarray(value) for name, value in jax.jit(function)(row.params, row.batch, row.key).items()}


def test_at_the_input_a_swapped_state_is_a_swapped_token(experiment, row):
    found = taken(hops.routing(experiment), row)
    assert found["n_bridge"] == found["n_answer"] == N
    other = swapped_hops.tokens(experiment.task, swapped_hops.parts(experiment.task, row.batch), row.key)
    tokens = dict(zip(("h", "r1", "r2", "b"), row.batch.tokens_BxL.T[:4], strict=True))
    for stage, swaps, n_tokens in (("bridge", hops.FROM_QUESTION, 3), ("answer", hops.FROM_BRIDGE, 4)):
        for i, part in enumerate(swaps):
            changed = [*(tokens | {part: other[part]}).values()][:n_tokens]
            lost = np.mean(said(row, *changed) != row.batch.info[f"{stage}_B"])
            np.testing.assert_allclose(found[stage][i, 0, i], lost, atol=1e-6)  # a mean of 32, in another order
            elsewhere = np.delete(found[stage][i, 0], i)  # tokens that are the same in both runs
            np.testing.assert_array_equal(elsewhere, 0)


def test_readability_is_the_lens_of_bridge_and_answer(experiment, row):
    found = taken(hops.readability(experiment), row)
    _, acts = models.forward(row.model, row.params, row.batch.tokens_BxL)
    for part in ("bridge", "answer"):
        for i, name in enumerate(patching.stream_names(row.model.n_layers)):
            logits = lens.logit_lens(row.model, row.params, acts[name])
            rank = lens.target_rank(logits, row.batch.info[f"{part}_B"])
            np.testing.assert_allclose(found[part][i], np.mean(1 / rank, axis=0), rtol=1e-5)  # near ties may part
    last = -1, 2
    assert found["bridge"][last] == 1 and found["answer"][-1, 3] == 1  # it says both


def test_generation_is_exact_match_of_a_forward_pass_on_every_split_of_hops(experiment, row):
    found = taken(hops.generation(experiment), row)
    splits = ("two_hop_id", "two_hop_ood", "three_hop_id", "three_hop_ood")
    assert set(found) == {f"{split}{end}" for split in splits for end in ("", "_error")}
    for split in splits:
        batch = experiment.task.sample(rng.named(row.key, split), N, split, {})
        expected = np.mean(answers.exact_match(forward(row.model, row.params, batch.tokens_BxL), batch))
        assert found[split] == expected


def test_a_pair_is_right_where_its_own_questions_are(experiment, row):
    measure = hops.overlapping_pairs(experiment)
    found = taken(measure, row)
    for i, split in enumerate(measure.coords["split"]):
        batch = experiment.task.sample(rng.named(row.key, split), N, split, {})
        h, r1, r2, r3, b, c, t = batch.tokens_BxL.T
        right = [said(row, h, r1, r2) == b, said(row, h, r1, r2, b) == c, said(row, b, r2, r3, c) == t]
        for name, right_B in zip(("first_bridge", "first_answer", "second_answer"), right, strict=True):
            assert found[name][i] == np.mean(right_B)
        assert found["all"][i] == np.mean(np.all(right, axis=0))


def test_without_a_chain_of_thought_the_answer_stands_after_the_question(experiment):
    task = dataclasses.replace(experiment.task, chain_of_thought=False)
    assert hops.readability(dataclasses.replace(experiment, task=task)).coords["place"] == ("h", "r1", "r2", "t")
