"""Regression in context: its references against NumPy, autodiff and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.tasks import LinearRegression
from lab.tasks import linear_regression as regression

N = 20_000
TASKS = [LinearRegression(4, 9), LinearRegression(4, 9, noise=0.5), LinearRegression(5, 3)]
EPS = 2.0**-23


@functools.cache
def batch_of(task, n=N, split="train"):
    return jax.tree.map(np.asarray, jax.jit(lambda key: task.sample(key, n, split, {}))(jax.random.key(0)))


def mean_and_error(values):
    return values.mean(), values.std() / np.sqrt(len(values))


@pytest.mark.parametrize("task", TASKS)
def test_queries_hide_their_value_and_values_have_variance_one_and_that_of_noise(task):
    vectors, targets = batch_of(task)[:2]
    assert vectors.shape == (N, task.n_demos + 1, task.n_features + 1) and (vectors[:, -1, -1] == 0).all()
    mean, error = mean_and_error(targets**2)
    assert abs(mean - (1 + task.noise**2)) < 5 * error
    pairs = [mean_and_error(vectors[:, 0, 0] * vectors[:, 1, 0]), mean_and_error(targets * vectors[:, 0, 0])]
    assert all(abs(mean) < 5 * error for mean, error in pairs)


def test_without_noise_one_vector_of_weights_explains_a_sequence():
    vectors, targets = (np.asarray(a, np.float64) for a in batch_of(TASKS[0], 50)[:2])
    for x_LxI, y in zip(vectors, targets, strict=True):
        w_D = np.linalg.lstsq(x_LxI[:-1, :-1], x_LxI[:-1, -1], rcond=None)[0]
        assert abs(w_D @ x_LxI[-1, :-1] - y) < 1e-5


@pytest.mark.parametrize("penalty", [0.3, 4.0])
@pytest.mark.parametrize("task", TASKS)
def test_ridge_is_the_solution_of_its_normal_equations(task, penalty):
    vectors = batch_of(task, 100).tokens_BxL
    found = regression.ridge(jnp.asarray(vectors), penalty)
    for x_LxI, answer in zip(vectors.astype(np.float64), found, strict=True):
        x_NxD, y_N = x_LxI[:-1, :-1], x_LxI[:-1, -1]
        w_D = np.linalg.solve(x_NxD.T @ x_NxD + penalty * np.eye(task.n_features), x_NxD.T @ y_N)
        # eigenvalues are below 60 and at least 0.3: condition 200, sums of up to 9 terms
        assert abs(answer - w_D @ x_LxI[-1, :-1]) < 200 * 64 * EPS


def test_gradient_step_is_one_of_half_the_squared_error_of_all_demonstrations():
    vectors = batch_of(TASKS[1], 8).tokens_BxL
    found = regression.gradient_step(vectors, 0.05)
    for x_LxI, answer in zip(vectors, found, strict=True):

        def loss(w_D, x_LxI=x_LxI):
            return 0.5 * jnp.sum((x_LxI[:-1, :-1] @ w_D - x_LxI[:-1, -1]) ** 2)

        w_D = -0.05 * jax.grad(loss)(jnp.zeros(4))
        assert abs(answer - w_D @ x_LxI[-1, :-1]) < 64 * EPS * 10


@pytest.mark.parametrize("task", TASKS)
def test_error_of_the_best_step_is_the_closed_form_and_no_other_size_has_a_smaller_one(task):
    vectors, targets = batch_of(task)[:2]

    def squares(size):
        return (np.asarray(regression.gradient_step(vectors, size)) - targets) ** 2

    best = squares(task.step_size)
    mean, error = mean_and_error(best)
    assert abs(mean - task.step_error) < 5 * error
    for factor in (0.5, 1.5):  # paired: a tenth of the error is more than its own uncertainty
        assert squares(factor * task.step_size).mean() > mean


def test_scores_of_the_right_answers_of_nothing_and_of_ridge():
    task = TASKS[1]
    batch = batch_of(task, 2000, "test")
    right, nothing = (task.score(answer, batch) for answer in (batch.targets_BxL, np.zeros(2000, np.float32)))
    assert right["explained"] == 1 and nothing["explained"] == 0
    ridge = np.asarray(regression.ridge(batch.tokens_BxL, 4 * 0.25))
    assert right["ridge"] == pytest.approx(np.mean((ridge - batch.targets_BxL) ** 2), rel=1e-5)
    assert 0.25 < right["ridge"] < right["step"] < 1.25  # noise that nobody can know, Bayes' estimate, one step
    expected = 1 - float(right["ridge"]) / np.mean(batch.targets_BxL**2)
    assert float(task.score(ridge, batch)["explained"]) == pytest.approx(expected, rel=1e-5)


def test_noise_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"^task\.noise=-0\.1: must be at least 0$"):
        LinearRegression(noise=-0.1)
