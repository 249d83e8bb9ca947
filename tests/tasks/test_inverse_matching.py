"""Sequences are those of the paper's words, found again by a solver that reads tokens alone."""

import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from lab.tasks import InverseMatching

N = 4096
TASK = InverseMatching()


@functools.cache
def batch_of(split, task=TASK):
    return jax.tree.map(np.asarray, jax.jit(lambda key: task.sample(key, N, split, {}))(jax.random.key(0)))


def solve(tokens, n_fillers):
    """Which of the five sequences, 0 to 4, stands backwards at the end; all else that the paper says of them."""
    keys = [tuple(tokens[4 * i : 4 * i + 3]) for i in range(5)]
    numbers = set(keys[0])
    others = [*tokens[3:20:4], *tokens[20 : 20 + n_fillers]]
    assert len(numbers) == 3 and len(set(keys)) == 5 and all(set(key) == numbers for key in keys)
    assert not numbers & set(others)
    return keys.index(tuple(tokens[-3:][::-1])), numbers


@pytest.mark.parametrize("split", TASK.splits)
def test_labels_are_those_of_a_solver_that_reads_tokens(split):
    tokens_BxL, targets_BxL, weights_BxL, info = batch_of(split)
    assert tokens_BxL.shape == (N, 29)  # of two layers, as published
    low, high = (101, 200) if split == "ood" else (20, 100)
    assert tokens_BxL.min() == low and tokens_BxL.max() == high
    for i, tokens in enumerate(tokens_BxL.tolist()):
        label, numbers = solve(tokens, 6)
        assert label == targets_BxL[i, -1] - 1 == info["label_B"][i]
        if split != "ood":
            assert (len({number % 3 for number in numbers}) == 1) == (split == "test")
    np.testing.assert_array_equal(targets_BxL[:, :-1], tokens_BxL[:, 1:])
    np.testing.assert_array_equal(weights_BxL, np.eye(29)[-1:].repeat(N, axis=0))


def test_sets_of_training_and_test_are_all_there_are_and_share_none():
    sets = {}
    for split in ("train", "test"):
        rows = InverseMatching(low=20, high=28).sample(jax.random.key(1), N, split, {}).info["keys_Bx5x3"]
        sets[split] = {frozenset(row) for row in np.asarray(rows)[:, 0].tolist()}
    assert not sets["train"] & sets["test"]
    assert sets["train"] | sets["test"] == {frozenset(s) for s in itertools.combinations(range(20, 29), 3)}


def test_labels_orders_and_other_tokens_are_uniform():
    tokens_BxL, _, _, info = batch_of("train")
    assert stats.chisquare(np.bincount(info["label_B"])).pvalue > 1e-3
    ranks = np.argsort(np.argsort(info["keys_Bx5x3"], axis=2), axis=2)
    orders = ranks.reshape(-1, 3) @ (9, 3, 1)
    assert stats.chisquare(np.unique(orders, return_counts=True)[1]).pvalue > 1e-3
    assert stats.chisquare(np.bincount(tokens_BxL[:, 20:26].ravel(), minlength=101)[20:]).pvalue > 1e-3
    sets_BxK = np.sort(info["keys_Bx5x3"][:, 0], axis=1)
    assert abs(np.corrcoef(sets_BxK[:, 0], tokens_BxL[:, 22])[0, 1]) < 5 / np.sqrt(N)


@pytest.mark.parametrize("layers", [1, 5])
def test_fillers_are_as_many_as_are_asked_for(layers):
    task = InverseMatching(n_fillers=3 * layers)
    tokens_BxL = batch_of("test", task).tokens_BxL
    assert task.length == tokens_BxL.shape[1] == 23 + 3 * layers
    for tokens in tokens_BxL[:200].tolist():
        solve(tokens, 3 * layers)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(high=25), r"task\.low=20, task\.high=25: at least seven numbers in a row"),
        (dict(high=120), r"task\.ood_low=101, task\.ood_high=200: none of task\.low=20 to task\.high=120"),
        (dict(vocab_size=200), r"task\.vocab_size=200: numbers go to 200"),
        (dict(n_fillers=-1), r"task\.n_fillers=-1: must be at least 0"),
        (dict(low=5), r"task\.low=5: must be at least 6"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        InverseMatching(**changes)
