"""Which sequences a row sees: a function of (seed, step) and of nothing else."""

import contextlib
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.engine import batches
from lab.tasks import Batch

STEPS = 30


def numbered(n):
    """A training set whose sequences are their own index."""
    index_N = jnp.arange(n, dtype=jnp.int32)
    return Batch(index_N[:, None], index_N[:, None] + 100, jnp.ones((n, 1)), {"index": index_N})


def seen(experiment, seed=0, first_step=0, max_steps=STEPS):
    """Index of each sequence of the steps first_step ..., shape (steps, batch)."""

    @jax.jit
    def index():
        batch_at = batches.batches(experiment, {"seed": seed}, numbered(experiment.train_size), first_step, max_steps)
        return jax.lax.map(lambda step: batch_at(step).tokens_BxL[:, 0], first_step + jnp.arange(max_steps))

    return np.asarray(index())


@pytest.mark.parametrize(("train_size", "batch_size"), [(12, 4), (13, 4), (15, 4), (8, 8), (7, 1)])
@pytest.mark.parametrize("data_order", ["shared", "row"])
def test_every_epoch_visits_each_sequence_at_most_once_and_drops_less_than_a_batch(
    echo, train_size, batch_size, data_order
):
    experiment = echo.experiment(train_size=train_size, batch_size=batch_size, data_order=data_order)
    per_epoch = train_size // batch_size
    index_TxB = seen(experiment)
    epochs = [index_TxB[i : i + per_epoch].ravel() for i in range(0, STEPS - per_epoch + 1, per_epoch)]
    assert len(epochs) >= 4
    for epoch in epochs:
        assert len(set(epoch.tolist())) == per_epoch * batch_size > train_size - batch_size
        assert set(epoch.tolist()) <= set(range(train_size))
    # There are at least 7! = 5040 orders: 29 pairs of neighbours agree by chance with probability 0.006.
    assert all(one.tolist() != other.tolist() for one, other in itertools.pairwise(epochs))
    assert set(index_TxB.ravel().tolist()) == set(range(train_size))  # what is dropped is not always the same


@pytest.mark.parametrize("train_size", [12, 13])
def test_batch_of_a_step_does_not_depend_on_where_its_chunk_began(echo, train_size):
    experiment = echo.experiment(train_size=train_size)
    expected_TxB = seen(experiment)
    for first_step, max_steps in ((1, 1), (2, 5), (3, 3), (11, 7), (17, 13)):
        np.testing.assert_array_equal(
            seen(experiment, 0, first_step, max_steps), expected_TxB[first_step : first_step + max_steps]
        )


def test_traced_first_step_gives_what_a_plain_number_gives(echo):
    experiment = echo.experiment(train_size=13)

    @jax.jit
    def batch(first_step, step):
        return batches.batches(experiment, {"seed": 0}, numbered(13), first_step, 6)(step).tokens_BxL[:, 0]

    expected_TxB = seen(experiment)
    assert [batch(7, step).tolist() for step in range(7, 13)] == expected_TxB[7:13].tolist()


def test_all_leaves_of_a_batch_are_of_the_same_sequences(echo):
    experiment = echo.experiment(train_size=13)
    batch = batches.batches(experiment, {"seed": 0}, numbered(13), 0, 4)(2)
    np.testing.assert_array_equal(batch.targets_BxL, batch.tokens_BxL + 100)
    np.testing.assert_array_equal(batch.info["index"], batch.tokens_BxL[:, 0])


@pytest.mark.parametrize("train_size", [0, 13])
def test_shared_order_shows_all_seeds_the_same_batches_and_row_order_does_not(echo, train_size):
    def tokens(order, seed, data_seed=5):
        experiment = echo.experiment(train_size=train_size, data_order=order, data_seed=data_seed)
        batch_at = batches.batches(experiment, {"seed": seed}, batches.train_set(experiment), 0, 8)
        return [batch_at(step).tokens_BxL.tolist() for step in range(8)]

    assert tokens("shared", 0) == tokens("shared", 1)
    assert tokens("row", 0) == tokens("row", 0)
    assert tokens("row", 0) != tokens("row", 1)
    assert tokens("shared", 0) != tokens("shared", 0, data_seed=6)
    if not train_size:
        assert tokens("row", 0) == tokens("row", 0, data_seed=6)  # an endless stream of its own


def test_finite_set_is_the_same_whatever_the_order_and_the_seed(echo):
    sets = [
        batches.train_set(echo.experiment(train_size=13, data_order=order, steps=steps))
        for order, steps in (("shared", 20), ("row", 40))
    ]
    np.testing.assert_array_equal(sets[0].tokens_BxL, sets[1].tokens_BxL)
    assert len(sets[0].tokens_BxL) == 13
    assert batches.train_set(echo.experiment()) is None


def test_endless_stream_does_not_repeat_itself(echo):
    experiment = echo.experiment(batch_size=16)
    batch_at = batches.batches(experiment, {"seed": 0}, None, 0, 8)
    streams = np.stack([batch_at(step).tokens_BxL for step in range(6)])
    for one, other in itertools.combinations(streams, 2):
        # 48 tokens agree by chance in a fourth (the first, even) or an eighth: 8 +- 2.7; 5 sigma for 15 pairs
        assert (one == other).sum() < 8 + 5 * 2.7


@pytest.mark.parametrize("train_size", [0, 40])
@pytest.mark.parametrize("where", ["tokens", "targets"])
@pytest.mark.parametrize("token", [-1, 8, 300])
def test_token_ids_beyond_the_tasks_vocabulary_are_refused_on_the_host(echo, train_size, where, token):
    class Strange(echo.Echo):
        def sample(self, key, n, split, hparams):
            batch = super().sample(key, n, split, hparams)
            return batch._replace(**{f"{where}_BxL": getattr(batch, f"{where}_BxL").at[n - 1, 1].set(token)})

    with pytest.raises(ValueError, match=rf"Strange, {where} of split '\w+': token id {token}; accepted: 0 to 7"):
        batches.check_ids(echo.experiment(task=Strange(), train_size=train_size))
    batches.check_ids(echo.experiment(train_size=train_size))


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_the_model_has_no_output_for_are_refused(label):
    import lab
    from lab import config as configs

    x_NxD, labels_N = np.zeros((20, 3), np.float32), np.arange(20) % 2
    wrong_N = np.where(np.arange(20) == 7, label, labels_N)
    for labels, refused in ((labels_N, False), (wrong_N, True)):
        table = lab.examples((x_NxD, labels), test=(x_NxD, labels))
        made = configs.variants(lab.Training(model=nn.Dense(2), task=table, grid=dict(seed=0), steps=1).config)["main"]
        message = rf"Examples, targets of split 'test': label {label}; accepted: 0 to 1 \(outputs=2\)"
        with pytest.raises(ValueError, match=message) if refused else contextlib.nullcontext():
            batches.check_ids(configs.experiment(made))
