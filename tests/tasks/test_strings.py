"""Laws of strings that are known exactly: three ways to their entropy, and what is drawn has them."""

import jax
import numpy as np
import pytest
from tasks.draw import drawn

from lab.tasks import Strings, strings

TABLE = Strings(alphabet=3, length=4, order=3, concentration=0.4, law_seed=1)
CHAIN = Strings(alphabet=3, length=5, order=2, concentration=0.6, law_seed=2)
SYMBOLS = Strings(alphabet=4, length=3, order=0, concentration=0.6, law_seed=3)
LONG = Strings(alphabet=2, length=40, order=3, concentration=0.5, law_seed=4)
SMALL = (TABLE, CHAIN, SYMBOLS)
EPS = 2.0**-52


def joint(task):
    """P of every string, float64, (V,) * T, and its inputs."""
    tokens = strings.contexts(task)
    law = strings.laws(task, tokens)
    weight = np.ones(len(law))
    for t in range(task.length - 1):
        weight *= law[np.arange(len(law)), t, tokens[:, t + 1]]
    return (weight[:, None] * law[:, -1]).reshape((task.alphabet,) * task.length)


def entropy_of(p):
    p = p[p > 0]
    return -np.sum(p * np.log(p))


@pytest.mark.parametrize("task", SMALL)
def test_entropy_is_that_of_all_strings_enumerated(task):
    p = joint(task)
    assert p.sum() == pytest.approx(1, abs=task.length * p.size * EPS)
    prefixes = [0.0, *(entropy_of(p.reshape(task.alphabet**t, -1).sum(axis=1)) for t in range(1, task.length + 1))]
    np.testing.assert_allclose(strings.entropies(task), np.diff(prefixes), rtol=0, atol=100 * p.size * EPS)


@pytest.mark.parametrize("task", [CHAIN, SYMBOLS])
def test_chain_is_stationary(task):
    """Symbols at any places have the law of the first ones."""
    p = joint(task)
    n = task.alphabet ** (task.order + 1)
    first = p.reshape(n, -1).sum(axis=1)
    last = p.reshape(-1, n).sum(axis=0)
    np.testing.assert_allclose(first, last, rtol=0, atol=1000 * p.size * EPS)  # a system of 9 equations, solved


def test_long_chain_has_its_first_symbols_and_then_its_rate():
    """H = H(first k) + (T - k) h, h = sum of pi(s) H(P[s]) with pi by many steps of the chain."""
    table, n_states = strings._table(LONG)[-8:], 8
    law = np.full(n_states, 1 / n_states)
    for _ in range(2000):
        law = (law[:, None] * table).reshape(2, -1, 2).sum(axis=0).ravel()
    rate = np.sum(law * -np.sum(table * np.log(table), axis=1))
    expected = entropy_of(law) + (LONG.length - 3) * rate
    assert strings.entropies(LONG).sum() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("task", SMALL)
def test_strings_are_drawn_with_their_probabilities(task):
    n, p = 20_000, joint(task).ravel()
    batch = drawn(task, "train", n)
    place = batch.targets_BxL @ (task.alphabet ** np.arange(task.length)[::-1])
    count, often = np.bincount(place, minlength=p.size), n * p >= 5
    rare = n * p[~often].sum()
    chi = np.sum((count[often] - n * p[often]) ** 2 / (n * p[often]))
    assert chi < often.sum() + 5 * np.sqrt(2 * often.sum())
    assert abs(count[~often].sum() - rare) < 5 * np.sqrt(rare) + 1


@pytest.mark.parametrize("task", [*SMALL, LONG])
def test_law_beside_a_string_is_that_of_each_symbol(task):
    batch = drawn(task, "test", 50)
    expected = strings.laws(task, batch.tokens_BxL)
    np.testing.assert_allclose(batch.info["law_BxLxV"], expected, rtol=2**-23, atol=1e-38)
    assert (batch.tokens_BxL[:, 0] == strings.BEGIN).all()
    uncertain = -np.log(np.maximum(expected, 1e-300)) * expected
    spread = uncertain.sum(axis=(1, 2)).std() / np.sqrt(50)
    assert abs(uncertain.sum(axis=(1, 2)).mean() - strings.entropies(task).sum()) < 5 * spread + 1e-12


def test_the_best_answer_has_no_excess_and_is_calibrated():
    batch = drawn(TABLE, "test", 200)
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(batch.info["law_BxLxV"]), -80)
    scores = jax.jit(TABLE.score)(logits + 3.0, batch)
    # a mean of rounded terms of up to a few nats
    assert abs(scores["excess"]) < 1e-5 and scores["entropy"] == pytest.approx(float(scores["law_loss"]), abs=1e-5)
    flat = jax.jit(TABLE.score)(np.zeros_like(logits), batch)
    assert flat["law_loss"] == pytest.approx(np.log(3), rel=1e-6)
    assert flat["entropy"] == pytest.approx(np.log(3), rel=1e-6)


def test_seed_and_concentration_decide_the_law():
    same, other = (strings._table(Strings(3, 4, 3, 0.4, seed)) for seed in (1, 2))
    assert (same == strings._table(TABLE)).all() and not np.allclose(same, other)
    entropies = [strings.entropies(Strings(6, 5, 4, c, 0)).sum() for c in (0.03, 0.1, 0.3, 1.0, 10.0)]
    assert entropies == sorted(entropies) and entropies[-1] > 0.95 * 5 * np.log(6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(order=4), r"task.order=4: a number from 0 to 3"),
        (dict(alphabet=1), r"task.alphabet=1: must be at least 2"),
        (dict(concentration=0.01), r"task.concentration=0.01: a number of at least 0.02"),
        (dict(concentration=float("nan")), r"task.concentration=nan"),
        (dict(alphabet=64, order=3), r"task.order=3: 64\^4 conditional probabilities"),
        (dict(alphabet=16, order=3, length=9), r"task.order=3: a chain of 16\^3 states"),
    ],
)
def test_laws_that_cannot_be_are_refused(changes, message):
    options = dict(alphabet=3, length=4, order=3, concentration=0.4, law_seed=1)
    with pytest.raises(ValueError, match=message):
        Strings(**options | changes)


def test_too_many_strings_are_not_enumerated():
    with pytest.raises(ValueError, match=r"task.length=40: 2\^40 strings, at most 262,144 are enumerated"):
        strings.contexts(LONG)
