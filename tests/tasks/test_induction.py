"""Patterns repeat as said, what is scored is what content tells, and positions alone tell as much as is said."""

import collections
import functools

import jax
import numpy as np
import pytest

from lab.tasks import Induction

N = 4096
TASK = Induction()


@functools.cache
def batch_of(task=TASK):
    return jax.tree.map(np.asarray, jax.jit(lambda key: task.sample(key, N, "train", {}))(jax.random.key(0)))


def test_targets_that_count_are_those_that_an_induction_head_says():
    tokens, targets, weights, info = batch_of()
    for sequence, said, counts, period in zip(tokens.tolist(), targets, weights, info["period_B"], strict=True):
        for t, token in enumerate(sequence):
            earlier = [i for i in range(t) if sequence[i] == token]
            assert bool(earlier) == bool(counts[t]) and len(earlier) < 2
            if earlier:
                assert said[t] == sequence[earlier[0] + 1] and t - earlier[0] == period
    assert collections.Counter(info["period_B"].tolist()).keys() == {8, 9, 10, 11, 12}
    assert {*np.unique(tokens)} == {*range(32)}


def test_positions_alone_are_right_as_often_as_is_said():
    """The best table of one distance a position, counted."""
    _, _, weights, info = batch_of()
    right = 0.0
    for t in range(TASK.length):
        known = weights[:, t] > 0
        right += max((np.sum(info["period_B"][known] == period) for period in range(8, 13)), default=0)
    share = right / weights.sum()
    # the best of five counts of some 800 is above its mean by up to two standard errors
    assert abs(share - TASK.positions_accuracy) < 0.02
    assert TASK.positions_accuracy == pytest.approx(8 / 5 / 6)


def test_accuracy_is_of_what_counts_and_needs_all_positions():
    batch = batch_of()
    logits = 9 * jax.nn.one_hot(batch.targets_BxL, 32)
    half = np.where((np.arange(N) % 2 == 0)[:, None, None], logits, 0 * logits - 9 * logits)
    assert TASK.score(logits, batch)["accuracy"] == 1
    assert abs(TASK.score(half, batch)["accuracy"] - 0.5) < 0.05
    with pytest.raises(ValueError, match=r"use model\.readout='all'"):
        TASK.score(logits[:, -1:], batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(low=8, high=16), "task.low=8, task.high=16, task.length=16"),
        (dict(low=7), "at most twice the lowest"),
        (dict(vocab_size=11), "task.vocab_size=11: a pattern of period 12 has distinct tokens"),
    ],
)
def test_periods_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Induction(**options)
