"""The table and the answer against other algorithms: patience sorting, and paths through all allowed steps."""

import bisect
import functools

import numpy as np
import pytest
from tasks.draw import drawn

from lab.tasks import IncreasingSubsequence
from lab.tasks.increasing_subsequence import table

TASKS = {band: IncreasingSubsequence(shortest=3, longest=12, n_values=10, band=band) for band in (0, 1, 3)}
DIRECT = IncreasingSubsequence(shortest=3, longest=12, n_values=10, chain_of_thought=False)


def patience(values):
    """Length of the longest strictly increasing subsequence, by piles."""
    tops = []
    for value in values:
        at = bisect.bisect_left(tops, value)
        tops[at : at + 1] = [value]
    return len(tops)


def longest_path(values, band):
    """The same where a step goes at most `band` numbers ahead, by following all paths."""

    @functools.cache
    def onwards(i):
        ahead = range(i + 1, min(i + band, len(values) - 1) + 1)
        return 1 + max((onwards(j) for j in ahead if values[j] > values[i]), default=0)

    return max(map(onwards, range(len(values))))


def parsed(task, split="test"):
    """List, table (empty where there is none) and answer of each sequence, as numbers."""
    batch = drawn(task, split, 128)
    sequence = np.concatenate([batch.tokens_BxL, batch.targets_BxL[:, -1:]], axis=1)
    for tokens, length, weights in zip(sequence, batch.info["length_B"], batch.weights_BxL, strict=True):
        tokens = list(tokens[tokens > 0])
        bars = [i for i, token in enumerate(tokens) if token == task.bar]
        assert bars[0] == length and bars[-1] == len(tokens) - 2
        assert list(np.flatnonzero(weights)) == list(range(bars[0], len(tokens) - 1))  # all that follows the first bar
        entries = [token - task.bar for token in tokens[bars[0] + 1 : bars[-1]]]
        yield [token - 1 for token in tokens[: bars[0]]], entries, tokens[-1] - task.bar


@pytest.mark.parametrize("band", TASKS)
def test_the_answer_is_the_longest_and_the_table_that_of_every_beginning(band):
    for values, entries, answer in parsed(TASKS[band]):
        assert len(entries) == len(values) and answer == max(entries)
        assert answer == longest_path(values, band or len(values))
        for i, entry in enumerate(entries):  # ends at i: what is larger, or comes later, cannot be in it
            kept = [v if v < values[i] else -1 for v in values[:i]] + [values[i]]
            if not band:
                assert entry == patience([v for v in kept if v >= 0])


def test_without_a_chain_of_thought_the_answer_follows_at_once():
    for values, entries, answer in parsed(DIRECT):
        assert not entries and answer == patience(values)


def test_a_band_forbids_long_steps():
    values = np.array([[0, 9, 9, 1, 9, 9, 2]], np.int32)
    np.testing.assert_array_equal(table(values, 7), [[1, 2, 2, 2, 3, 3, 3]])
    np.testing.assert_array_equal(table(values, 3), [[1, 2, 2, 2, 3, 3, 3]])
    np.testing.assert_array_equal(table(values, 2), [[1, 2, 2, 1, 2, 2, 1]])
    np.testing.assert_array_equal(table(values, 1), [[1, 2, 1, 1, 2, 1, 1]])


def test_training_and_test_lists_are_disjoint():
    task = IncreasingSubsequence(shortest=2, longest=3, n_values=4)
    lists = {split: {tuple(values) for values, *_ in parsed(task, split)} for split in task.splits}
    assert not lists["train"] & lists["test"]
    assert all(sum(values) % 2 == 0 for values in lists["test"])
    assert all(sum(values) % 2 == 1 for values in lists["train"])
