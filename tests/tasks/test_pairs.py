"""Inputs and targets as batches, their losses and scores by hand, and tables drawn without repetition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import configure
from lab.models import EmbMLP
from lab.tasks import Anchor
from lab.tasks.pairs import Scored

KEY = jax.random.key(0)


def tokens_and_answer(key, n):
    tokens_BxL = jax.random.randint(key, (n, 4), 0, 5, jnp.int32)
    return tokens_BxL, tokens_BxL[:, 0]


def tokens_and_next(key, n, split):
    tokens_BxL = jnp.full((n, 4), 1 if split == "train" else 2, jnp.int32)
    return tokens_BxL, tokens_BxL + 1


def vectors_and_class(key, n):
    x_BxD = jax.random.normal(key, (n, 3), jnp.float32)
    return x_BxD, jnp.argmax(x_BxD, axis=1).astype(jnp.int32)


def vectors_and_number(key, n):
    x_BxD = jax.random.normal(key, (n, 3), jnp.float32)
    return x_BxD, x_BxD[:, :1]


def test_answer_is_said_at_the_last_position():
    task = configure.task(tokens_and_answer, vocab_size=5)
    batch = task.sample(KEY, 6, "test", {})
    assert (task.inputs, task.length, task.example().shape) == ("tokens", 4, (1, 4)) and task.cross_entropy
    np.testing.assert_array_equal(batch.targets_BxL[:, -1], batch.tokens_BxL[:, 0])
    np.testing.assert_array_equal(batch.weights_BxL, [[0, 0, 0, 1]] * 6)
    logits_Bx1xV = jax.nn.one_hot(batch.targets_BxL[:, -1:], 5) * 100
    assert task.score(logits_Bx1xV, batch)["accuracy"] == 1 and task.mean_loss(logits_Bx1xV, batch) < 1e-6


def test_classifier_of_tokens_may_answer_without_positions():
    """(B, V) is (B, 1, V) to the loss and the score; a function of one's own gets (B, V) and (B,)."""
    task = configure.task(tokens_and_answer, vocab_size=5)
    batch = task.sample(KEY, 6, "test", {})
    logits_BxV = jax.random.normal(KEY, (6, 5), jnp.float32)
    assert task.classifies and not configure.task(tokens_and_next, vocab_size=4).classifies
    assert task.mean_loss(logits_BxV, batch) == task.mean_loss(logits_BxV[:, None], batch)
    assert task.score(logits_BxV, batch) == task.score(logits_BxV[:, None], batch)
    own = Scored(task, lambda o, t: jnp.take_along_axis(o, t[:, None], axis=1)[:, 0], (("right", _is_largest),))
    answers_B = np.asarray(batch.tokens_BxL[:, 0])
    np.testing.assert_allclose(own.mean_loss(logits_BxV, batch), np.asarray(logits_BxV)[range(6), answers_B].mean())
    assert own.classifies and own.score(logits_BxV, batch)["right"] == task.score(logits_BxV, batch)["accuracy"]


def _is_largest(logits_BxV, targets_B):
    return jnp.argmax(logits_BxV, axis=1).astype(jnp.int32) == targets_B


def test_every_position_counts_where_every_one_has_a_target():
    task = configure.task(tokens_and_next, vocab_size=4)
    batch = task.sample(KEY, 2, "train", {})
    np.testing.assert_array_equal(batch.weights_BxL, np.ones((2, 4)))
    np.testing.assert_array_equal(task.sample(KEY, 2, "test", {}).tokens_BxL, np.full((2, 4), 2))
    np.testing.assert_allclose(task.mean_loss(jnp.zeros((2, 4, 4)), batch), np.log(4), rtol=1e-6)


def test_classifier_has_cross_entropy_without_positions():
    task = configure.task(vectors_and_class)
    batch = task.sample(KEY, 50, "train", {})
    assert (task.inputs, task.length, task.vocab_size) == ("arrays", 0, 0) and task.cross_entropy
    logits_BxC = np.asarray(batch.tokens_BxL, np.float64)
    log_sum_B = np.log(np.exp(logits_BxC).sum(axis=1))
    np.testing.assert_allclose(
        task.mean_loss(batch.tokens_BxL, batch), np.mean(log_sum_B - logits_BxC.max(axis=1)), rtol=1e-5
    )
    assert task.score(batch.tokens_BxL, batch)["accuracy"] == 1


def test_floats_have_a_squared_error_and_r2():
    task = configure.task(vectors_and_number)
    batch = task.sample(KEY, 50, "train", {})
    mean_Bx1 = jnp.full((50, 1), jnp.mean(batch.targets_BxL))
    assert not task.cross_entropy and task.mean_loss(batch.targets_BxL, batch) == 0
    np.testing.assert_allclose(task.mean_loss(mean_Bx1, batch), np.var(batch.targets_BxL), rtol=1e-5)
    np.testing.assert_allclose(task.score(mean_Bx1, batch)["r2"], 0, atol=1e-5)
    assert task.score(batch.targets_BxL, batch)["r2"] == 1


@pytest.mark.parametrize(
    ("draw", "shape"), [(vectors_and_number, (6,)), (vectors_and_class, (6, 1, 3)), (vectors_and_class, (6,))]
)
def test_outputs_that_would_be_broadcast_are_refused(draw, shape):
    task = configure.task(draw)
    with pytest.raises(ValueError, match=r"the model returns \(6.*; expected \(6"):
        task.mean_loss(jnp.zeros(shape), task.sample(KEY, 6, "train", {}))


@pytest.mark.parametrize("score", [lambda o, t: jnp.sum(o), lambda o, t: {"a": jnp.sum(o), "b": o == o}])
def test_score_is_a_number_or_numbers_by_name(score):
    task = configure.task(vectors_and_class, score)
    scores = task.score(jnp.ones((2, 3)), task.sample(KEY, 2, "test", {}))
    assert scores in ({"score": 6.0}, {"a": 6.0, "b": 1.0})


def test_table_is_drawn_all_of_it_before_an_example_comes_again():
    table = np.arange(10, dtype=np.float32)[:, None]
    task = configure.examples((table, table), test=(table[:3], table[:3]), other=(table[5:], table[5:]))
    assert task.splits == ("train", "other", "test") and [task.size(s) for s in task.splits] == [10, 5, 3]
    drawn_B = np.asarray(task.sample(KEY, 25, "train", {}).tokens_BxL)[:, 0]
    np.testing.assert_array_equal(np.sort(drawn_B[:10]), np.arange(10))
    np.testing.assert_array_equal(drawn_B[:10], drawn_B[10:20])
    with pytest.raises(ValueError, match="split 'valid': one of train, other, test"):
        task.sample(KEY, 1, "valid", {})


def test_tables_of_other_numbers_are_other_tasks():
    table = np.arange(4, dtype=np.float32)[:, None]
    assert configure.examples((table, table), seed=1) == configure.examples((table, table), seed=1)
    assert configure.examples((table, table)) != configure.examples((table + 1, table))


def test_loss_and_metrics_of_ones_own_stand_beside_the_tasks_scores():
    inner = Anchor()
    task = Scored(inner, lambda outputs, targets: jnp.float32(3) * jnp.ones(5), (("mine", lambda o, t: o[:, 0, 0]),))
    batch = task.sample(KEY, 2, "train", {})
    logits = jnp.ones((2, batch.tokens_BxL.shape[1], inner.vocab_size))
    assert task.mean_loss(logits, batch) == 3 and not task.cross_entropy and not task.has_answer
    expected = inner.score(logits, batch) | {"mine": 1.0}
    jax.tree.map(np.testing.assert_array_equal, task.score(logits, batch), expected)  # some are NaN
    assert (task.splits, task.length, task.vocab_size) == (inner.splits, inner.length, inner.vocab_size)
    only_metrics = Scored(inner, None, task.metrics)
    assert only_metrics.cross_entropy and only_metrics.mean_loss(logits, batch) == inner.mean_loss(logits, batch)


def test_package_s_own_model_trains_on_a_task_of_functions():
    """By its config: the vocabulary and the length fit."""
    from lab import config as configs

    model = EmbMLP(vocab_size=5, d_model=4, d_ff=3, activation="tanh")
    made = configure.config(model, configure.task(tokens_and_answer, vocab_size=5), steps=2)
    del made["variants"]
    configs.experiment(made).check_model()
    made.task.vocab_size = 9
    with pytest.raises(ValueError, match=r"model\.vocab_size=5: the task needs at least 9"):
        configs.experiment(made)


def with_noise(key, n, noise=0.0):
    return jnp.full((n, 3), noise), jnp.zeros((n, 1))


def with_split(key, n, split="nowhere"):
    return jnp.full((n, 3), {"train": 1.0, "test": 2.0}[split]), jnp.zeros((n, 1))


@pytest.mark.parametrize(
    ("draw", "value"),
    [
        (with_noise, 0),
        (functools.partial(with_noise, noise=3.0), 3),
        (with_split, 2),
        (functools.partial(with_split, split="train"), 1),
        (lambda key, n, where: with_split(key, n, where), 2),
        (lambda key, n, *, split: with_split(key, n, split), 2),
    ],
)
def test_split_is_given_where_it_is_asked_for(draw, value):
    np.testing.assert_array_equal(configure.task(draw).sample(KEY, 2, "test", {}).tokens_BxL, np.full((2, 3), value))


def test_yes_and_no_are_whole_numbers():
    table = np.arange(12).reshape(6, 2) % 3 == 0
    classes = configure.examples((table.astype(np.float32), table[:, 0]), test=0.5)
    batch = classes.sample(KEY, 2, "train", {})
    assert classes.cross_entropy and batch.targets_BxL.dtype == np.int32
    assert classes.score(jnp.zeros((2, 2)), batch).keys() == {"accuracy"}
    tokens = configure.examples((table, table[:, 0]), test=0.5)
    assert (tokens.inputs, tokens.vocab_size, tokens.length) == ("tokens", 2, 2)


@pytest.mark.parametrize("own", [dict(loss=lambda o, t: o - t), dict(metrics=(("mine", lambda o, t: o - t),))])
@pytest.mark.parametrize(("targets", "outputs"), [((6,), (6, 1)), ((6, 1), (6,))])
def test_own_loss_and_metrics_are_not_given_what_would_be_broadcast(own, targets, outputs):
    task = Scored(configure.task(lambda key, n: (jnp.zeros((n, 3)), jnp.zeros((n, *targets[1:])))), **own)
    batch = task.sample(KEY, 6, "train", {})
    with pytest.raises(
        ValueError, match=r"the model returns \(6.* beside targets \(6.*; expected the same|expected \(6"
    ):
        task.mean_loss(jnp.zeros(outputs), batch) if task.loss else task.score(jnp.zeros(outputs), batch)
