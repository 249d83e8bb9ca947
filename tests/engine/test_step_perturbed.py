"""Rows with a SAM radius or noise in their weights: against a loop by hand, and rows without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import optim, rng
from lab.engine import estimate
from lab.engine import step as engine
from lab.tree import named_leaves

EPS = 2.0**-23  # float32
STEPS = 6
AXES = {"sam_radius": (0.0, 0.05, 0.0, 0.2), "weight_noise": (0.0, 0.0, 0.02, 0.1)}
NEITHER, SAM, NOISE, BOTH = range(4)


@pytest.fixture(scope="module")
def four(bench):
    return bench(4, 2, 1)


@pytest.fixture(scope="module")
def plain(four, echo):
    return four.train(echo.four_rows(), (STEPS,))


@pytest.fixture(scope="module")
def perturbed(four, echo):
    return four.train(echo.four_rows(**AXES), (STEPS,))


def weight_tolerance(row, echo):
    """As in test_sweep: a gradient entry is 32 roundings of terms at most ten times their sum, and Adam divides by its
    own size. Here it is taken where another gradient led, which doubles the roundings."""
    return 2 * STEPS * echo.four_rows().row(row)["learning_rate"] * 32 * 10 * EPS


def loss_tolerance(row, echo):
    return 32 * 4 * EPS + 4 * weight_tolerance(row, echo)


def train_by_hand(echo, hparams):
    """Losses, and weights after `STEPS` steps, of a loop in which noise, norms and steps up are written out."""
    experiment = echo.experiment()
    gradient = jax.jit(jax.value_and_grad(echo.loss_by_hand))
    params = echo.start_by_hand(experiment.model, hparams)  # matrices alone
    transform = engine.transform(experiment, hparams)
    moments, losses = transform.init(params), []
    for step in range(STEPS):
        batch = experiment.task.sample(rng.key(5, "data", step), 4, "train", {})
        data = batch.tokens_BxL, batch.targets_BxL[:, -1]
        key, noisy = rng.key(hparams["seed"], "weight_noise", step), []
        for name, leaf in named_leaves(params).items():
            size = np.float32(hparams["weight_noise"] * np.sqrt(np.mean(np.square(leaf))))
            noisy.append(leaf + size * jax.random.normal(rng.named(key, name), leaf.shape, leaf.dtype))
        noisy = jax.tree.unflatten(jax.tree.structure(params), noisy)
        value, grads = gradient(noisy, *data)
        norm = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(grads)))
        scale = np.float32(hparams["sam_radius"] / norm)
        _, grads = gradient(jax.tree.map(lambda leaf, g, scale=scale: leaf + scale * g, noisy, grads), *data)
        updates, moments = transform.update(grads, moments, params)
        params = jax.tree.map(jnp.add, params, updates)
        losses.append(float(value))
    return np.array(losses), params


@pytest.mark.parametrize("row", [SAM, NOISE, BOTH])
def test_row_equals_a_loop_by_hand(perturbed, echo, row):
    state, metrics = perturbed
    losses_T, params = train_by_hand(echo, echo.four_rows(**AXES).row(row))
    np.testing.assert_allclose(metrics["train_loss"][row], losses_T, rtol=0, atol=loss_tolerance(row, echo))
    for name, leaf in named_leaves(params).items():
        np.testing.assert_allclose(
            named_leaves(state.params)[name][row], leaf, rtol=STEPS * EPS, atol=weight_tolerance(row, echo)
        )


def test_row_at_zero_is_the_plain_one_up_to_rounding_and_no_other_is(plain, perturbed, echo):
    for mine, without in zip(jax.tree.leaves(perturbed[0].params), jax.tree.leaves(plain[0].params), strict=True):
        far = [np.abs(mine[row] - without[row]).max() / weight_tolerance(row, echo) for row in range(4)]
        assert far[NEITHER] < 1 and min(far[1:]) > 100
    for name, values in plain[1].items():
        np.testing.assert_allclose(
            perturbed[1][name][NEITHER], values[NEITHER], rtol=32 * EPS, atol=loss_tolerance(0, echo)
        )


def test_loss_of_sam_is_that_of_the_plain_weights_and_of_noise_that_of_the_noisy_ones(plain, perturbed):
    """At the first step, before weights differ."""
    apart = np.abs(perturbed[1]["train_loss"][:, 0] - plain[1]["train_loss"][:, 0])
    assert apart[SAM] < 32 * 4 * EPS and min(apart[NOISE], apart[BOTH]) > 1000 * EPS
    apart = np.abs(perturbed[1]["grad_norm"][:, 0] - plain[1]["grad_norm"][:, 0])
    assert apart[SAM] > 1000 * EPS  # but the gradient is the one that is descended


def test_perturbed_rows_continue_bitwise_after_resuming(four, echo, perturbed, same_bits):
    grid = echo.four_rows(**AXES)
    halfway, first = four.train(grid, (2,))
    state, second = four.train(grid, (4,), state=halfway, first_step=2)
    same_bits(state, perturbed[0])
    same_bits({name: np.concatenate([first[name], second[name]], axis=1) for name in first}, perturbed[1])


def test_noise_is_new_at_every_step_and_goes_by_step_and_seed_alone(echo):
    experiment, hparams = echo.experiment(), echo.four_rows(**AXES).row(NOISE)
    params = echo.start_by_hand(experiment.model, hparams)
    inner = lambda params: jnp.vdot(params["in"]["kernel"], jnp.ones((8, 8)))  # noqa: E731
    value = jax.jit(lambda hparams, step: engine.value_and_grad(inner, experiment, hparams, params, step)[0])
    first, second, again, other = (
        float(value(hparams | {"seed": seed}, step)) for seed, step in ((2, 0), (2, 1), (2, 0), (3, 0))
    )
    assert first == again and len({first, second, other}) == 3


def test_frozen_matrices_are_not_perturbed_and_have_no_share_in_the_radius(echo):
    experiment = echo.experiment(optim=optim.Optim(**echo.OPTIM, frozen=("embed", "mlp")))
    hparams = echo.four_rows(**AXES).row(BOTH)
    params = echo.start_by_hand(experiment.model, hparams)
    bowl = lambda params: 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))  # noqa: E731
    # a bowl's gradient is the place where it is taken
    _, at = engine.value_and_grad(bowl, experiment, hparams, params, 0)
    for name in ("embed", "in"):
        jax.tree.map(np.testing.assert_array_equal, at[name], params[name])
    _, at = engine.value_and_grad(bowl, experiment, {"sam_radius": 0.2}, params, 0)
    way = np.linalg.norm(np.asarray(at["head"]["kernel"], np.float64) - params["head"]["kernel"])
    assert way == pytest.approx(0.2, rel=64 * EPS)  # 64 weights below 1, each rounded by eps / 2


def test_operations_of_a_row_count_the_second_gradient(echo):
    count = functools.partial(estimate.flops, echo.experiment(batch_size=64))
    plain, sam = count(echo.four_rows()), count(echo.four_rows(sam_radius=AXES["sam_radius"]))
    # Adam's 20 operations on each of 192 weights are few beside two products of 64 x 8 x 8 numbers, three times each
    assert 1.7 * plain < sam < 2.1 * plain
