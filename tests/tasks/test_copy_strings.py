"""Copies are of the string that was shown; training and test strings share none, and each is uniform on its set."""

import collections

import numpy as np
import pytest
from tasks.draw import drawn

from lab.tasks import CopyStrings
from lab.tasks.answers import exact_match

TASK = CopyStrings(longest=9)
TINY = CopyStrings(longest=2, n_letters=4)


def sequences(batch):
    """Whole sequences, the last target with them."""
    return np.concatenate([batch.tokens_BxL, batch.targets_BxL[:, -1:]], axis=1)


@pytest.mark.parametrize("split", TASK.splits)
def test_a_string_stands_between_its_marks_and_comes_again(split):
    batch = drawn(TASK, split, 256)
    names = {TASK.begin: "$", TASK.bar: "|", TASK.end: "."} | {i + 1: chr(97 + i) for i in range(26)}
    lengths = set()
    for tokens, weights, length in zip(sequences(batch), batch.weights_BxL, batch.info["length_B"], strict=True):
        text = "".join(names[token] for token in tokens if token)
        original, _, copy = text.removeprefix("$").removesuffix(".").partition("|")
        assert text == f"${original}|{original}." and copy == original and len(original) == length
        assert not tokens[len(text) :].any()
        # the bar is to be answered by the first letter, the last letter by the end mark
        np.testing.assert_array_equal(np.flatnonzero(weights), np.arange(length + 1, 2 * length + 2))
        lengths.add(int(length))
    assert lengths == set(range(1, 10))


def test_training_and_test_strings_are_disjoint_and_together_all():
    found = {split: collections.Counter() for split in TINY.splits}
    for split, count in found.items():
        batch = drawn(TINY, split, 4096)
        for tokens, length in zip(batch.tokens_BxL, batch.info["length_B"], strict=True):
            count[tuple(tokens[1 : 1 + length])] += 1
    train, test = (set(count) for count in found.values())
    assert not train & test and len(train | test) == 4 + 4**2
    assert all(sum(letter - 1 for letter in string) % 2 == 0 for string in test)
    for count in found.values():  # two lengths, half of the draws each; of a length each string is as likely
        for length in (1, 2):
            of_length = [n for string, n in count.items() if len(string) == length]
            expected = sum(of_length) / len(of_length)
            assert np.sum(np.square(np.subtract(of_length, expected))) / expected < 30  # chi^2 of 7: P < 1e-4


def test_one_wrong_letter_makes_a_string_wrong():
    batch = drawn(TASK, "test", 8)
    logits = 50.0 * (batch.targets_BxL[..., None] == np.arange(TASK.vocab_size))
    wrong = logits.copy()
    wrong[0, batch.info["length_B"][0] + 1] = 0  # of the first letter nothing is known
    np.testing.assert_array_equal(exact_match(logits, batch), 1)
    np.testing.assert_array_equal(exact_match(wrong, batch), [0] + [1] * 7)
