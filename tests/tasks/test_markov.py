import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lab.tasks import Batch, Markov
from lab.tasks import markov as module

EPS = 2.0**-23  # float32
ALPHA = 1e-3  # level of the chi-square tests; the seeds are fixed, so they pass or fail for good
PI = (0.75, 0.19, 0.05, 0.01)
MANY = 40_000
draw = jax.jit(Markov.sample, static_argnums=(0, 2, 3))
CYCLIC = ((0.1, 0.8, 0.1), (0.0, 0.3, 0.7), (0.9, 0.1, 0.0))  # not reversible, with zeros


def kept(stationary=PI, asymmetry=(), delta=0.0, stay=0.5, length=8):
    return Markov(stationary, asymmetry, delta, stay, (), length)


def general(transition=CYCLIC, length=8):
    return Markov((), (), 0.0, 0.0, transition, length)


def chain_of(task, n=MANY, seed=0, hparams=None):
    """All s + 1 states of n chains, and the batch."""
    batch = jax.tree.map(np.asarray, draw(task, jax.random.key(seed), n, "train", hparams or {}))
    return np.concatenate([batch.tokens_BxL, batch.targets_BxL[:, -1:]], axis=1), batch


def matrix(law, stay):
    """P entry by entry."""
    size = range(len(law))
    return np.array([[stay * (i == v) + (1 - stay) * law[v] for v in size] for i in size])


def chi_square(counts, expected):
    """p-value; cells that cannot occur must not."""
    counts, expected = np.ravel(counts), np.ravel(expected)
    assert not counts[expected == 0].any()
    return stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (kept(), matrix(PI, 0.5)),
        (kept(stay=0.0), matrix(PI, 0.0)),
        (kept(stay=0.9), matrix(PI, 0.9)),
        (kept((0.7, 0.1, 0.1, 0.1), (0.0, 1.0, 0.0, -1.0), 0.01), matrix((0.7, 0.11, 0.1, 0.09), 0.5)),
        (general(), np.array(CYCLIC)),
    ],
    ids=["kept", "independent", "sticky", "asymmetric", "general"],
)
def test_first_state_is_uniform_and_each_transition_has_the_law(task, expected):
    chain_BxM, batch = chain_of(task)
    size = len(expected)
    assert chi_square(np.bincount(chain_BxM[:, 0], minlength=size), np.full(size, MANY / size)) > ALPHA
    for j in (0, 1, task.length - 1):  # the first, one inside, and the one to the target
        counts = np.zeros((size, size))
        np.add.at(counts, (chain_BxM[:, j], chain_BxM[:, j + 1]), 1)
        rows = counts.sum(axis=1, keepdims=True)
        assert chi_square(counts, rows * expected) > ALPHA / 3
    np.testing.assert_allclose(batch.info["law_BxV"], expected[chain_BxM[:, -2]], rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("task", [kept(), general()], ids=["kept", "general"])
def test_two_steps_follow_the_squared_matrix(task):
    # The next state depends on the last one alone: else pairs two apart would not have the law P^2.
    squared = np.linalg.matrix_power(matrix(PI, 0.5) if task.stationary else np.array(CYCLIC), 2)
    chain_BxM, _ = chain_of(task, seed=1)
    counts = np.zeros(squared.shape)
    np.add.at(counts, (chain_BxM[:, 2], chain_BxM[:, 4]), 1)
    assert chi_square(counts, counts.sum(axis=1, keepdims=True) * squared) > ALPHA


def test_the_chain_without_a_loop_is_the_plain_walk_on_the_same_numbers():
    rng = np.random.default_rng(3)
    uniform, first, stay = rng.random((50, 20), np.float32), rng.integers(0, 4, 50).astype(np.int32), 0.3
    args = (jnp.array(PI, jnp.float32), jnp.float32(stay), jnp.array(first), jnp.array(uniform))
    found = np.asarray(module._walk_of_resamples(*args))
    for b, m in itertools.product(range(50), range(21)):
        state = first[b]
        for u in uniform[b, :m]:
            if u >= stay:
                state = int(np.searchsorted(np.cumsum(PI), (u - stay) / (1 - stay), side="right"))
        assert found[b, m] == state


def test_batches_score_the_last_position_and_targets_are_the_next_tokens():
    for task in (kept(), general()):
        _, batch = chain_of(task)
        np.testing.assert_array_equal(batch.tokens_BxL[:, 1:], batch.targets_BxL[:, :-1])
        assert batch.weights_BxL.tolist() == [[0.0] * 7 + [1.0]] * MANY
        assert {leaf.dtype.name for leaf in (batch.tokens_BxL, batch.targets_BxL)} == {"int32"}
        assert task.vocab_size == batch.info["law_BxV"].shape[1]


def test_a_row_samples_with_its_own_stay_and_delta():
    task = kept((0.7, 0.1, 0.1, 0.1), (0.0, 1.0, 0.0, -1.0))
    other = kept((0.7, 0.1, 0.1, 0.1), (0.0, 1.0, 0.0, -1.0), delta=0.05, stay=0.8)
    hparams = {"gamma": jnp.float32(1), "stay": jnp.float32(0.8), "delta": jnp.float32(0.05)}
    found, expected = chain_of(task, 100, hparams=hparams), chain_of(other, 100)
    assert not np.array_equal(found[0], chain_of(task, 100)[0])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(("name", "value"), [("stay", 1.0), ("stay", -0.1), ("delta", 0.2)])
def test_a_grid_value_that_makes_no_law_has_weights_of_nan(name, value):
    task = kept((0.7, 0.1, 0.1, 0.1), (0.0, 1.0, 0.0, -1.0))
    hparams = {"stay": jnp.float32(0.5), "delta": jnp.float32(0)} | {name: jnp.float32(value)}
    chain_BxM, batch = chain_of(task, 16, hparams=hparams)
    assert np.isnan(batch.weights_BxL[:, -1]).all()
    assert (chain_BxM >= 0).all() and (chain_BxM < 4).all()  # tokens stay tokens


@pytest.mark.usefixtures("float64")
def test_entropies_are_the_printed_ones():
    law, transition = jnp.array(PI), jnp.array(matrix(PI, 0.5))
    # Printed with four digits in the reference table.
    assert module.unigram_entropy(law) == pytest.approx(0.7271, abs=5e-5)
    assert module.entropy_rate(law, transition) == pytest.approx(0.5536, abs=5e-5)
    by_hand = -sum(PI[i] * p * np.log(p) for i, row in enumerate(matrix(PI, 0.5)) for p in row)
    assert module.entropy_rate(law, transition) == pytest.approx(by_hand, rel=40 * 2.0**-52)  # 16 terms


@pytest.mark.usefixtures("float64")
def test_the_law_is_stationary_under_its_transition_matrix_for_every_stay():
    law = module.stationary_law(jnp.array((0.7, 0.1, 0.1, 0.1)), jnp.array((0.0, 1.0, -0.5, -0.5)), 0.02)
    np.testing.assert_allclose(law, [0.7, 0.12, 0.09, 0.09], rtol=1e-15)
    for stay in (0.0, 0.5, 0.99):
        transition = module.transition_matrix(law, stay)
        np.testing.assert_allclose(transition, matrix(np.asarray(law), stay), rtol=4 * 2.0**-52)
        np.testing.assert_allclose(law @ transition, law, rtol=8 * 2.0**-52)


def test_stationary_law_of_a_matrix_is_the_limit_of_its_powers():
    found = module.stationary_of(CYCLIC)
    # |second eigenvalue| = 0.66: 0.66^200 is below 1e-36, and 8 squarings err by 3 eps each, doubled each time.
    np.testing.assert_allclose(found, np.linalg.matrix_power(np.array(CYCLIC), 200)[0], rtol=0, atol=3 * 256 * 2**-52)
    np.testing.assert_allclose(module.stationary_of(((0.0, 1.0), (1.0, 0.0))), [0.5, 0.5], rtol=1e-14)  # has no limit
    law, _ = general().law({})
    np.testing.assert_allclose(law, found, rtol=0, atol=EPS)


def test_law_loss_is_the_expected_loss_and_excess_vanishes_for_the_law_itself():
    task = general()
    rng = np.random.default_rng(5)
    logits_BxV, last_B = rng.standard_normal((32, 3)).astype(np.float32), rng.integers(0, 3, 32)
    law_BxV = np.array(CYCLIC)[last_B]
    batch = Batch(*(jnp.zeros((32, 8)),) * 3, {"law_BxV": jnp.asarray(law_BxV, jnp.float32)})
    found = task.score(jnp.asarray(logits_BxV)[:, None], batch)
    p_BxV = np.exp(logits_BxV.astype(float)) / np.exp(logits_BxV.astype(float)).sum(axis=1, keepdims=True)
    losses = [sum(law[v] * -np.log(p[v]) for v in range(3)) for law, p in zip(law_BxV, p_BxV, strict=True)]
    divergences = [stats.entropy(law, p) for law, p in zip(law_BxV, p_BxV, strict=True)]
    # Logarithms below 5 err by 4 eps of it, in sums of three.
    assert found["law_loss"] == pytest.approx(np.mean(losses), abs=60 * EPS)
    assert found["excess"] == pytest.approx(np.mean(divergences), abs=60 * EPS)
    best = jnp.log(jnp.asarray(law_BxV, jnp.float32) + 1e-30)[:, None]
    assert abs(task.score(best, batch)["excess"]) < 60 * EPS
    larger = jnp.concatenate([best, jnp.full((32, 1, 2), -1e9)], axis=2)  # a model with tokens the task has not
    assert abs(task.score(larger, batch)["excess"]) < 60 * EPS


def test_axes_that_would_change_nothing_are_refused():
    with pytest.raises(ValueError, match=r"grid\.stay changes nothing: task.stationary is empty"):
        general().sample(jax.random.key(0), 2, "train", {"stay": 0.1})
    with pytest.raises(ValueError, match=r"grid\.delta changes nothing: task.asymmetry is empty"):
        kept().sample(jax.random.key(0), 2, "train", {"delta": 0.1})
