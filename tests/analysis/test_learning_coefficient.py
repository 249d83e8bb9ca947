import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from lab.analysis.learning_coefficient import local_learning_coefficient
from lab.analysis.loss_fn import minibatches

pytestmark = pytest.mark.usefixtures("float64")

ONE_BATCH = np.zeros((1, 1))
N_CHAINS = 128
# Five standard errors; each is itself known to 1 / sqrt(2 * 128) = 6 percent.
SIGMAS = 5


def n_beta(n):
    return n / math.log(n)


def run(loss, params, batches, **settings):
    """The estimate and the trace of 128 chains, in numpy."""
    chains = jax.jit(
        lambda params: local_learning_coefficient(
            loss, params, batches, jax.random.key(0), **{"n_chains": N_CHAINS, "n_burn_in": 0} | settings
        )
    )
    return jax.device_get(chains(params))


H_P = np.array([0.5, 1.0, 2.0, 4.0, 0.0])  # the last direction costs nothing


def quadratic(params, batch):
    """L = sum_i h_i (w_i - 1)^2 / 2 over a batch of any weight."""
    return 3.0 * jnp.sum(H_P * (params["w"] - 1) ** 2) / 2 + 0 * jnp.sum(batch), 3.0


def variances(eps, gamma, n, n_steps):
    """Var(w_t) of the chain, step size and all: w <- r w + sqrt(eps) N with r = 1 - eps (n beta h + gamma) / 2."""
    r_P = 1 - eps / 2 * (n_beta(n) * H_P + gamma)
    t_Tx1 = np.arange(n_steps)[:, None]
    return eps * (1 - r_P ** (2 * t_Tx1)) / (1 - r_P**2)


def test_chains_on_a_quadratic_have_the_exact_law_of_the_discretized_ornstein_uhlenbeck_process():
    # A coarse step (eps (n beta h + gamma) / 4 up to 0.35) and a strong localization: all terms of the update matter.
    n, gamma, eps = 100, 20.0, 0.013
    estimate, rise_CxT = run(
        quadratic,
        {"w": jnp.ones(5)},
        ONE_BATCH,
        n_examples=n,
        step_size=eps,
        localization=gamma,
        n_burn_in=5,
        n_steps=60,
    )
    expected_T = variances(eps, gamma, n, 65) @ H_P / 2
    np.testing.assert_array_equal(rise_CxT[:, 0], 0)
    error_T = np.std(rise_CxT, axis=0, ddof=1) / np.sqrt(N_CHAINS)
    assert np.all(np.abs(rise_CxT.mean(axis=0) - expected_T) <= SIGMAS * error_T)
    assert abs(estimate.value - n_beta(n) * expected_T[5:].mean()) <= SIGMAS * estimate.standard_error
    assert estimate.standard_error < 0.03 * estimate.value

    lambda_C = n_beta(n) * rise_CxT[:, 5:].mean(axis=1)
    assert estimate.value == pytest.approx(lambda_C.mean(), rel=1e-12)  # means of at most 128 float64 numbers
    assert estimate.standard_error == pytest.approx(lambda_C.std(ddof=1) / np.sqrt(N_CHAINS), rel=1e-12)
    assert len(np.unique(lambda_C)) == N_CHAINS  # no chain is another's copy


def test_learning_coefficient_of_a_regular_minimum_is_half_its_parameters():
    n, gamma, eps = 1000, 0.5, 1e-4
    settings = {"n_examples": n, "step_size": eps, "localization": gamma, "n_burn_in": 300, "n_steps": 1500}
    estimate, _ = run(quadratic, {"w": jnp.ones(5)}, ONE_BATCH, **settings)
    a_P = n_beta(n) * H_P[:4]  # four parameters count, the fifth is free
    # What separates the chain from 4/2: the localization gamma / (n beta h), the step eps a / 4, and the burn-in.
    bias = np.sum(gamma / a_P + eps * (a_P + gamma) / 4 + (1 - eps * a_P / 2) ** 600) / 2
    assert abs(estimate.value - 2) <= SIGMAS * estimate.standard_error + bias
    assert bias < 0.1 and estimate.standard_error < 0.05


def test_learning_coefficient_of_w_to_the_fourth_is_a_quarter():
    def quartic(params, batch):
        return params["w"] ** 4 + 0 * jnp.sum(batch), 1.0

    n = 1000
    eps = 0.01 / math.sqrt(n_beta(n))
    settings = {"n_examples": n, "step_size": eps, "localization": 0.0, "n_burn_in": 1000, "n_steps": 4000}
    estimate, _ = run(quartic, {"w": jnp.zeros(())}, ONE_BATCH, **settings)
    # E[w U'] = 1 for U = n beta w^4 gives 1/4. The discrete chain has E[w U'] = 1 + eps E[U'^2] / 4, and to leading
    # order E[U'^2] = E[U''] = 12 n beta E[w^2] = 12 Gamma(3/4) / Gamma(1/4) sqrt(n beta); twice that for
    # the next order.
    bias = 2 * eps / 16 * 12 * math.gamma(0.75) / math.gamma(0.25) * math.sqrt(n_beta(n))
    assert abs(estimate.value - 0.25) <= SIGMAS * estimate.standard_error + bias
    assert bias < 0.01 and estimate.standard_error < 0.02


def test_learning_coefficient_of_a_crossing_of_two_valleys_is_that_of_its_localized_posterior():
    def crossing(params, batch):
        return jnp.prod(params["w"]) ** 2 + 0 * jnp.sum(batch), 1.0

    n, gamma = 1000, 4.0
    eps = 0.004 / gamma
    settings = {"n_examples": n, "step_size": eps, "localization": gamma, "n_burn_in": 1000, "n_steps": 4000}
    estimate, _ = run(crossing, {"w": jnp.zeros(2)}, ONE_BATCH, **settings)

    # w_2 is normal given w_1, of precision a = 2 n beta w_1^2 + gamma: w_1 has density exp(-gamma w_1^2 / 2) / sqrt(a)
    # and n beta E[w_1^2 w_2^2 | w_1] = n beta w_1^2 / a, which a step of eps raises by the factor 1 / (1 - eps a / 4).
    def moment(f):
        def density(w):
            a = 2 * n_beta(n) * w**2 + gamma
            return f(w, a) * math.exp(-gamma * w**2 / 2) / math.sqrt(a)

        return 2 * integrate.quad(density, 0, 8 / math.sqrt(gamma), limit=200)[0]

    total = moment(lambda w, a: 1)
    exact = moment(lambda w, a: n_beta(n) * w**2 / a) / total
    bias = 2 * moment(lambda w, a: n_beta(n) * w**2 * eps / 4) / total  # both coordinates
    assert abs(estimate.value - exact) <= SIGMAS * estimate.standard_error + bias
    assert bias < 0.02 and estimate.standard_error < 0.02
    # lambda = 1/2 with multiplicity 2, approached from below as 1 / log: far from 1, what two regular parameters have.
    assert 0.2 < exact < 0.5


class Points(NamedTuple):
    c_B: np.ndarray
    weight_B: np.ndarray


def points(params, batch):
    return jnp.sum(batch.weight_B * (params["w"] - batch.c_B) ** 2) / 2, jnp.sum(batch.weight_B)


def weighted_points():
    weight_N = np.array([1.0, 2.0, 0.0, 5.0, 1.0, 3.0])
    c_N = np.array([0.3, -1.0, 7.0, 0.2, 1.0, -0.5])
    return Points(3 * (c_N - np.sum(weight_N * c_N) / weight_N.sum()), weight_N)  # minimum at 0


def test_minibatch_chains_are_unbiased_and_heated_by_exactly_the_minibatches_noise():
    data, n, gamma, eps = weighted_points(), 50, 10.0, 0.02
    batches = minibatches(data, 2)
    settings = {"n_examples": n, "step_size": eps, "localization": gamma, "n_burn_in": 100, "n_steps": 400}
    estimate, _ = run(points, {"w": jnp.zeros(())}, batches, **settings)
    # Minibatch m has gradient q w - f with q_m, f_m = M (weight, weight times centre) / (whole weight); the means of q
    # and f are 1 and 0. Then w <- r_m w + eps/2 n beta f_m + sqrt(eps) N with r_m = 1 - eps/2 (n beta q_m + gamma).
    weight_M = data.weight_B.reshape(3, 2).sum(axis=1)
    q_M = 3 * weight_M / weight_M.sum()
    f_M = 3 * (data.weight_B * data.c_B).reshape(3, 2).sum(axis=1) / weight_M.sum()
    r_M = 1 - eps / 2 * (n_beta(n) * q_M + gamma)
    variance = (eps + np.mean((eps / 2 * n_beta(n) * f_M) ** 2)) / (1 - np.mean(r_M**2))
    assert np.max(np.abs(r_M)) < 0.9  # 100 steps of burn-in leave 0.9^200 of the start
    assert abs(estimate.value - n_beta(n) * variance / 2) <= SIGMAS * estimate.standard_error
    assert estimate.standard_error < 0.03 * estimate.value

    # The heating is seen: the full gradient's law is far off.
    r = 1 - eps / 2 * (n_beta(n) + gamma)
    cold = n_beta(n) * eps / (1 - r**2) / 2
    assert estimate.value - cold > 2 * SIGMAS * estimate.standard_error
    full, _ = run(points, {"w": jnp.zeros(())}, minibatches(data, 6), **settings)
    assert abs(full.value - cold) <= SIGMAS * full.standard_error


def test_leaves_that_are_not_chosen_do_not_move():
    def two(params, batch):
        return jnp.sum(params["a"] ** 2) + 1e6 * jnp.sum(params["b"] ** 2) + 0 * jnp.sum(batch), 1.0

    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    settings = {"n_examples": 100, "step_size": 1e-3, "localization": 1.0, "n_steps": 50}
    estimate, _ = run(two, params, ONE_BATCH, where=lambda name: name == "a", **settings)
    assert 0 < estimate.value < 1  # one step of b alone would make it 1e6


def test_a_diverged_chain_and_a_point_that_is_no_minimum_are_seen():
    settings = {"n_examples": 100, "localization": 1.0, "n_chains": 4, "n_steps": 3000, "n_burn_in": 0}

    @jax.jit
    @jax.vmap
    def two_rows(params, step_size):
        return local_learning_coefficient(
            quadratic, params, ONE_BATCH, jax.random.key(0), step_size=step_size, **settings
        )

    points_RxP = jnp.stack([jnp.ones(5), jnp.full(5, 3.0)])
    estimate, rise_RxCxT = jax.device_get(two_rows({"w": points_RxP}, jnp.array([1.0, 1e-3])))
    assert not np.any(np.isfinite(rise_RxCxT[0, :, -1]))
    assert not np.isfinite(estimate.value[0]) and not np.isfinite(estimate.standard_error[0])
    assert estimate.value[1] < -SIGMAS * estimate.standard_error[1]


def test_bad_counts_are_refused():
    good = {"n_examples": 10, "step_size": 0.1, "localization": 1.0, "n_chains": 2, "n_steps": 3, "n_burn_in": 0}
    for name, bad in (("n_examples", 1), ("n_chains", 0), ("n_steps", 0), ("n_burn_in", -1)):
        with pytest.raises(ValueError, match=f"{name}={bad}"):
            local_learning_coefficient(
                quadratic, {"w": jnp.ones(5)}, ONE_BATCH, jax.random.key(0), **good | {name: bad}
            )
