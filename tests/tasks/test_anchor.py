import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab.tasks import Anchor

MANY = 40_000
ALPHA = 1e-3  # level of the chi-square tests; the seeds are fixed, so they pass or fail for good
RULES = {  # what anchor a adds, by the paper's words
    "printed": ((1, 0, 1, 0), lambda a: a % 2),
    "definition": ((1, 2, 3, 4), lambda a: a),
    "text": ((1, 1, 0, 0), lambda a: 1 if a in {1, 2} else 0),
}


@functools.cache
def batch_of(task, split="train", n=512, seed=0):
    return jax.tree.map(np.asarray, task.sample(jax.random.key(seed), n, split, {}))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_sequence_and_label_is_what_the_paper_says(rule, split):
    shifts, added = RULES[rule]
    tokens_BxL, targets_BxL, weights_BxL, info = batch_of(Anchor(shifts=shifts), split)
    assert {leaf.dtype.name for leaf in (tokens_BxL, targets_BxL, *info.values())} == {"int32"}
    assert tokens_BxL.shape == (512, 10)
    for tokens, targets, weights, *told in zip(tokens_BxL.tolist(), targets_BxL.tolist(), weights_BxL.tolist(),
                                               *(info[name].tolist() for name in info), strict=True):  # fmt: skip
        anchors = [(i, token) for i, token in enumerate(tokens) if token in (1, 2, 3, 4)]
        assert len(anchors) == 1 and anchors[0][0] < 9
        assert all(5 <= token <= 100 for i, token in enumerate(tokens) if i != anchors[0][0])
        position, anchor = anchors[0]
        key = tokens[position + 1]
        assert targets == [*tokens[1:], key + added(anchor)]
        assert weights == [0] * 9 + [1]
        assert dict(zip(info, told, strict=True)) == {
            "anchor_B": anchor - 1, "anchor_position_B": position, "key_B": key,
        }  # fmt: skip


def test_synonyms_are_those_of_the_rule():
    for rule, pairs in (("printed", [{1, 3}, {2, 4}]), ("text", [{1, 2}, {3, 4}])):
        task = Anchor(shifts=RULES[rule][0])
        alike = {shift: {a for a, s in zip(task.anchors, task.shifts, strict=True) if s == shift} for shift in (0, 1)}
        assert all(pair in alike.values() for pair in pairs)


def test_anchors_positions_and_keys_are_uniform_and_independent():
    tokens_BxL, _, _, info = batch_of(Anchor(), n=MANY, seed=3)
    anchor_B, position_B = info["anchor_B"], info["anchor_position_B"]
    joint = np.zeros((4, 9))
    np.add.at(joint, (anchor_B, position_B), 1)
    assert stats.chisquare(joint.ravel()).pvalue > ALPHA  # uniform on the product is both
    for column in (0, 4, 9):
        keys = tokens_BxL[:, column]
        counts = np.bincount(keys[keys >= 5], minlength=101)[5:]
        assert counts.size == 96 and stats.chisquare(counts).pvalue > ALPHA
    # neighbours are independent: parity of the key after the anchor against that of the last key
    both = np.zeros((2, 2))
    apart = position_B < 8
    np.add.at(both, (info["key_B"][apart] % 2, tokens_BxL[apart, 9] % 2), 1)
    assert stats.chi2_contingency(both).pvalue > ALPHA


def test_splits_are_told_apart_by_the_key_alone():
    train, test = batch_of(Anchor(), "train"), batch_of(Anchor(), "test")
    np.testing.assert_array_equal(train.tokens_BxL, test.tokens_BxL)  # one law: the engine gives each split its key
    assert not np.array_equal(train.tokens_BxL, batch_of(Anchor(), "train", seed=1).tokens_BxL)


def test_scores_count_the_answers():
    task = Anchor()
    tokens = jnp.array([[1, 50, 7, 8, 9, 10, 11, 12, 13, 14], [20, 2, 60, 8, 9, 10, 11, 12, 13, 14]] * 2, jnp.int32)
    batch = task.sample(jax.random.key(0), 4, "train", {})._replace(
        tokens_BxL=tokens,
        targets_BxL=jnp.array([[0] * 9 + [51], [0] * 9 + [60]] * 2, jnp.int32),
        info={"anchor_B": jnp.array([0, 1, 0, 1], jnp.int32)},
    )
    # right; another key of the sequence, unshifted; a key, but without the shift; the anchor itself
    answers = jnp.array([51, 20, 50, 2])
    logits = jax.nn.one_hot(answers, 201)[:, None]
    scores = task.score(logits, batch)
    assert float(scores["accuracy"]) == 1 / 4
    assert float(scores["unordered"]) == 2 / 4
    np.testing.assert_array_equal(scores["anchor_accuracy"], [1 / 2, 0, np.nan, np.nan])
