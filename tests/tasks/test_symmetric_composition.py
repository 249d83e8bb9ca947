"""Sequences and labels are those of the paper's words: two sets of pairs, every pair symmetric, (4,3) held out."""

import functools

import jax
import numpy as np
import pytest

from lab.tasks import SymmetricComposition

N = 4096
TASK = SymmetricComposition()
A, B = {0: 2, 1: 5, 2: 1, 3: -2, 4: -8}, {0: -9, 1: 6, 2: -7, 3: 3, 4: -5}
SET_A = {"01", "10", "02", "20", "14", "41", "23", "32", "34", "43"}
SET_B = {"03", "30", "04", "40", "12", "21", "13", "31", "24", "42"}


@functools.cache
def batch_of(split):
    return jax.tree.map(np.asarray, jax.jit(lambda key: TASK.sample(key, N, split, {}))(jax.random.key(0)))


def solve(tokens):
    """Key, its position from 1, pair and label, of tokens alone: anchors are the only ones below 20."""
    (at, _) = [i for i, token in enumerate(tokens) if 1 <= token <= 5]
    key, a, b = tokens[at - 1], tokens[at] - 1, tokens[at + 1] - 1
    shifts = A if f"{a}{b}" in SET_A else B
    return key, at, f"{a}{b}", key + shifts[a] + shifts[b]


@pytest.mark.parametrize("split", TASK.splits)
def test_every_sequence_is_what_the_paper_says(split):
    tokens_BxL, targets_BxL, weights_BxL, _ = batch_of(split)
    pairs = set()
    for tokens, targets in zip(tokens_BxL.tolist(), targets_BxL.tolist(), strict=True):
        key, position, pair, label = solve(tokens)
        assert targets == [*tokens[1:], label]
        assert 1 <= position <= 6 and (key % 8 == position) == (split != "train")
        pairs.add(pair)
    every = SET_A | SET_B
    assert pairs == {"train": every - {"43"}, "test_seen": every - {"43"}, "test_34": {"34"}, "ood_43": {"43"}}[split]
    np.testing.assert_array_equal(weights_BxL, np.eye(8)[-1:].repeat(N, axis=0))


def test_no_anchor_stands_for_one_shift_and_every_pair_is_symmetric():
    labels = {}
    for tokens in batch_of("train").tokens_BxL.tolist():
        key, _, pair, label = solve(tokens)
        labels.setdefault(pair, set()).add(label - key)
    assert all(len(found) == 1 for found in labels.values())
    assert all(labels[pair] == labels[pair[::-1]] for pair in labels if pair != "34")
    assert labels["34"] == {-10}
    ab = [(int(pair[0]), int(pair[1]), min(found)) for pair, found in labels.items()]
    design = np.array([[(a == k) + (b == k) for k in range(5)] for a, b, _ in ab], float)
    _, residual, *_ = np.linalg.lstsq(design, np.array([shift for *_, shift in ab], float), rcond=None)
    assert residual > 1  # no shifts of single anchors give the labels


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(length=11), r"task\.length=11: a number from 3 to 10"),
        (dict(high=22), r"task\.low=20, task\.high=22: at least task\.modulus=8 keys"),
        (dict(vocab_size=100), r"task\.vocab_size=100: labels span 6 \.\.\. 108"),
        (dict(low=5), r"task\.low=5: must be at least 6"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        SymmetricComposition(**changes)
