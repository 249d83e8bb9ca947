"""What the tests of the reasoning tasks share: batches, drawn once, and which tasks and splits are looked at."""

import functools

import jax
import numpy as np
import pytest


@functools.cache
def drawn(task, split, n, seed=0):
    """`n` sequences of a split, on the host."""
    sample = jax.jit(lambda key: task.sample(key, n, split, {}))
    return jax.tree.map(np.asarray, sample(jax.random.key(seed)))


def cases(tasks, *default):
    """These, and all other tasks and splits among the long tests."""
    every = [(task, split) for task in tasks for split in task.splits]
    return [*default, *(pytest.param(*case, marks=pytest.mark.long) for case in every if case not in default)]
