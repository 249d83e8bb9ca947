"""Sums of two numbers: every sequence is checked by schoolbook addition of the digits it shows."""

import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from lab.objective import Objective
from lab.tasks import Addition

EPS = 2.0**-23  # float32
ALPHA = 1e-3  # level of the chi-square tests; the seeds are fixed, so they pass or fail for good
N = 4000
PUBLISHED = Addition(999, (400, 600))
SMALL = Addition(99, (40, 60))
TINY = Addition(13, (5, 7))
TASKS = [PUBLISHED, SMALL, TINY, Addition(9, (0, 3)), Addition(105, (0, 99))]


@functools.cache
def drawn(task, split, seed=0):
    # All of one size, and piece by piece: every program would be compiled anew.
    return jax.tree.map(np.asarray, task.sample(jax.random.key(seed), N, split, {}))


def first(n, batch):
    return jax.tree.map(lambda leaf: leaf[:n], batch)


def name(task):
    return f"{task.high}-{task.block[0]}-{task.block[1]}"


def characters(sequence):
    return "".join({11: "+", 12: "="}.get(token, str(token - 1)) for token in sequence)


def schoolbook(a, b):
    """The sum of two equally long strings of digits, from the right, with carries; one digit more."""
    written, carry = "", 0
    for one, other in zip(reversed(a), reversed(b), strict=True):
        digit = int(one) + int(other) + carry
        written, carry = str(digit % 10) + written, digit // 10
    return str(carry) + written


def split_of(task, a, b):
    """By the words of the docstring."""
    low, high = task.block
    if low <= a <= high and low <= b <= high:
        return "ood"
    return "test_seen" if (7 * min(a, b) + max(a, b)) % 11 == 0 else "train"


def pairs_of(batch):
    return list(zip(batch.info["a_B"].tolist(), batch.info["b_B"].tolist(), strict=True))


@pytest.mark.parametrize("task", TASKS, ids=name)
@pytest.mark.parametrize("split", ["train", "test_seen", "ood"])
def test_every_sequence_is_a_right_sum_of_its_split(task, split):
    batch, width = drawn(task, split), len(str(task.high))
    assert batch.tokens_BxL.shape == (N, task.length) == (N, 3 * width + 2)
    assert {leaf.dtype.name for leaf in (batch.tokens_BxL, batch.targets_BxL, *batch.info.values())} == {"int32"}
    np.testing.assert_array_equal(batch.tokens_BxL[:, 1:], batch.targets_BxL[:, :-1])
    np.testing.assert_array_equal(batch.weights_BxL, np.tile([0.0] * (2 * width + 1) + [1.0] * (width + 1), (N, 1)))
    for tokens, targets, pair in zip(batch.tokens_BxL, batch.targets_BxL, pairs_of(batch), strict=True):
        question, answer = characters([*tokens, targets[-1]]).split("=")
        a, b = question.split("+")
        assert len(a) == len(b) == width and answer == schoolbook(a, b)
        assert (int(a), int(b)) == pair and max(pair) <= task.high
        assert split_of(task, *pair) == split


@pytest.mark.parametrize("task", [TINY, Addition(9, (0, 3))], ids=name)
def test_splits_part_all_pairs_with_both_orders_of_a_pair_in_the_same(task):
    seen = {split: set(pairs_of(drawn(task, split))) for split in task.splits}  # 170 pairs at most: none is missed
    everything = set(itertools.product(range(task.high + 1), repeat=2))
    assert sum(map(len, seen.values())) == len(everything) and set.union(*seen.values()) == everything
    for pairs in seen.values():
        assert pairs == {(b, a) for a, b in pairs}


@pytest.mark.parametrize("split", ["train", "test_seen", "ood"])
def test_pairs_of_a_split_are_equally_likely(split):
    support = [pair for pair in itertools.product(range(14), repeat=2) if split_of(TINY, *pair) == split]
    counts = dict.fromkeys(support, 0)
    for pair in pairs_of(drawn(TINY, split)):
        counts[pair] += 1
    assert stats.chisquare(list(counts.values())).pvalue > ALPHA


def test_training_shows_every_digit_everywhere_and_every_sum_the_held_out_pairs_have():
    """What `test_seen` asks for is new pairs alone: of last digits no combination is missing, and no sum."""
    pairs = {split: [p for p in itertools.product(range(100), repeat=2) if split_of(SMALL, *p) == split]
             for split in ("train", "test_seen")}  # fmt: skip
    assert {(a % 10, b % 10) for a, b in pairs["train"]} == set(itertools.product(range(10), repeat=2))
    assert {(a // 10, b // 10) for a, b in pairs["train"]} >= {(a // 10, b // 10) for a, b in pairs["test_seen"]}
    # 0 + 0 and 99 + 99 are the only pairs with their sums, and a multiple of 11 each
    assert {a + b for a, b in pairs["test_seen"]} - {a + b for a, b in pairs["train"]} == {0, 198}
    assert len(pairs["test_seen"]) / (100**2 - 21**2) == pytest.approx(1 / 11, abs=0.005)


def logits_of(batch, targets_BxL):
    return np.eye(13, dtype=np.float32)[targets_BxL]


@pytest.mark.parametrize("task", [SMALL, PUBLISHED], ids=name)
def test_scores_are_those_of_an_adder_that_forgets_to_carry(task):
    batch = first(512, drawn(task, "train"))
    said_BxL, forgot = batch.targets_BxL.copy(), []
    for i, (a, b) in enumerate(pairs_of(batch)):
        digits = [f"{number:0{task.width}d}" for number in (a, b)]
        sums = [0, *(int(one) + int(other) for one, other in zip(*digits, strict=True))]
        said_BxL[i, -task.width - 1 :] = [1 + digit % 10 for digit in sums]
        forgot.append([int(digit) == one % 10 for digit, one in zip(schoolbook(*digits), sums, strict=True)])
    scores = task.score(logits_of(batch, said_BxL), batch)
    assert task.coords["digit"] == ((100, 10, 1) if task is SMALL else (1000, 100, 10, 1))
    # counts of up to 2048, exact, and one division
    np.testing.assert_allclose(scores["digit_accuracy"], np.mean(forgot, axis=0), rtol=2 * EPS)
    assert scores["digit_accuracy"][-1] == 1
    assert scores["accuracy"] == pytest.approx(np.mean(np.all(forgot, axis=1)), rel=2 * EPS)
    assert scores["token_accuracy"] == pytest.approx(np.mean(forgot), rel=2 * EPS)
    assert 0.1 < scores["accuracy"] < scores["token_accuracy"] < 0.9


def test_what_is_said_of_the_operands_does_not_matter():
    batch = first(512, drawn(SMALL, "ood"))
    said_BxL = np.where(batch.weights_BxL > 0, batch.targets_BxL, 0)
    scores = SMALL.score(logits_of(batch, said_BxL), batch)
    assert (scores["accuracy"], scores["token_accuracy"], *scores["digit_accuracy"]) == (1, 1, 1, 1, 1)


def test_noise_puts_digits_in_sums_and_any_sign_in_operands():
    all_of_it = Objective(label_noise=1.0, context_noise=1.0)
    noisy = all_of_it.apply(SMALL, all_of_it.sample(SMALL, jax.random.key(0), N, {}), {})
    sequence_BxM = np.concatenate([noisy.tokens_BxL, noisy.targets_BxL[:, -1:]], axis=1)
    assert {*sequence_BxM[:, :6].ravel().tolist()} == {*range(1, 13)}
    for place in (6, 7, 8):  # of sums as well where none can be: 999 is no sum of numbers below 100
        assert stats.chisquare(np.bincount(sequence_BxM[:, place], minlength=11)[1:]).pvalue > ALPHA
