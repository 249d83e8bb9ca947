"""A second task beside a first one: both as they are alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import config as configs
from lab.objective import Objective
from lab.tasks import Addition, Composition, Finetune

N = 64
LONG = Composition("34_unseen", 4, 9, 0)  # 9 tokens of 201
SHORT = Addition(99, (40, 60))  # 8 tokens of 13
WIDER = Finetune(SHORT, LONG)  # the first task is the longer one
TASKS = [
    WIDER,
    Finetune(LONG, SHORT),
    Finetune(SHORT, SHORT),
]
KEY = jax.random.key(3)


def tasks_of(finetune):
    """Every split with the task it is of and its name there."""
    return [(split, finetune.task, split) for split in finetune.task.splits] + [
        (f"first_{split}", finetune.first, split) for split in finetune.first.splits
    ]


def same(batch, other):
    """Whether two batches are equal, but for what else the first says of its sequences."""
    for leaf, twin in zip(batch[:3], other[:3], strict=True):
        assert leaf.dtype == twin.dtype
        np.testing.assert_array_equal(leaf, twin)
    for name in other.info:
        np.testing.assert_array_equal(batch.info[name], other.info[name])


@pytest.mark.parametrize("finetune", TASKS)
def test_every_split_is_that_of_its_task(finetune):
    assert finetune.length == max(finetune.task.length, finetune.first.length)
    assert finetune.vocab_size == max(finetune.task.vocab_size, finetune.first.vocab_size)
    assert finetune.splits == tuple(split for split, _, _ in tasks_of(finetune))
    for split, task, alone in tasks_of(finetune):
        same(finetune.sample(KEY, N, split, {}), task.sample(KEY, N, alone, {}))


@pytest.mark.parametrize("finetune", TASKS)
@pytest.mark.parametrize("objective", [Objective(ntp_weight=0.5), Objective(label_noise=0.5, shuffle_context=True)])
def test_rows_are_trained_on_what_the_second_task_alone_gives_them(finetune, objective):
    found, alone = (
        objective.apply(task, objective.sample(task, KEY, N, {}), {"context_noise": 0.5})
        for task in (finetune, finetune.task)
    )
    same(found, alone)


@pytest.mark.parametrize("finetune", TASKS)
def test_scores_and_loss_are_those_of_the_task_that_the_batch_is_of(finetune):
    for split, task, alone in tasks_of(finetune):
        batch, lone = finetune.sample(KEY, N, split, {}), task.sample(KEY, N, alone, {})
        logits_BxLxV = jax.random.normal(jax.random.key(1), (N, task.length, 201), jnp.float32)
        right_BxL = jax.random.bernoulli(jax.random.key(2), jnp.float32(0.8), batch.targets_BxL.shape)
        logits_BxLxV += 20 * jax.nn.one_hot(jnp.where(right_BxL, batch.targets_BxL, 0), 201, dtype=jnp.float32)
        found, expected = finetune.score(logits_BxLxV, batch), task.score(logits_BxLxV, lone)
        scalars = {name for name, score in expected.items() if score.ndim == 0}
        assert set(found) == (scalars if split.startswith("first_") else set(expected))
        assert 0 < expected["accuracy"] < 1
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])
        assert finetune.mean_loss(logits_BxLxV, batch) == task.mean_loss(logits_BxLxV, lone)


def test_axes_of_scores_are_those_of_the_second_task():
    both_have = Finetune(dataclasses.replace(LONG, n_anchors=9, setting="all_pairs"), LONG)
    assert len(both_have.coords["pair"]) == 81 and both_have.dims == LONG.dims
    assert WIDER.dims == SHORT.dims and WIDER.coords == SHORT.coords


def test_logits_at_the_last_position_alone_and_unknown_splits_are_refused():
    batch = WIDER.sample(KEY, N, "train", {})
    with pytest.raises(ValueError, match=r"logits at 1 of 8 positions: .* use model.readout='all'"):
        WIDER.score(jnp.zeros((N, 1, 201)), batch)
    for split, known in (("ood_43", "one of train, test_seen, ood$"), ("first_ood", "one of train, .* swap$")):
        with pytest.raises(ValueError, match=known):
            WIDER.sample(KEY, N, split, {})


ADDITION = dict(family="addition", high=99, block=(40, 60))
CORPUS = dict(family="markov", stationary=(0.5, 0.5), asymmetry=(), delta=0.0, stay=0.5, transition=(), length=4)


def built(**sections):
    return configs._build("task", dict(family="sequel", **sections), "task")


def test_config_builds_both_tasks_and_names_what_is_wrong_in_either():
    first = dict(family="composition", setting="34_unseen", n_anchors=4, modulus=9, noise_groups=0)
    assert built(task=ADDITION, first=first) == WIDER
    for wrong, message in (
        (dict(ADDITION, hihg=9), r"task.first.hihg: unknown option; did you mean 'high'\?"),
        (dict(family="adition"), "task.first.family='adition': one of composition"),
        (3, "task.first=3: expected Task"),
        (CORPUS, "task.first=Markov: one task, and one with an answer, is needed"),
        (
            dict(family="sequel", task=ADDITION, first=first),
            "task.first=Finetune: one task, and one with an answer, is needed",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            built(task=ADDITION, first=wrong)
    with pytest.raises(ValueError, match=r"task.first is missing"):
        built(task=ADDITION)
