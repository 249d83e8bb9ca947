"""The laws, on plants whose fixed points are known; and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.controller import Controller, Seen
from lab.tasks import Batch

EPS = 2.0**-23
TARGET, LOAD, LAG = 0.5, 2.0, 10.0
GAINS = {"control_target": TARGET, "control_gain_p": 3.0, "control_gain_i": 0.2, "control_constant": 0.0}
PI = Controller(family="pi", signal="act", least=0.0, most=10.0, **GAINS)


@functools.partial(jax.jit, static_argnums=(0, 2))
def run(controller, hparams, n_steps, load_T=None):
    """A first-order plant, m <- m + (load - c - m) / lag: measured falls with the coefficient. `(m, c, I)` by step."""

    def step(carry, load):
        measured, state = carry
        measured = measured + (load - state.coefficient - measured) / LAG
        new = controller.update(state, measured, hparams)
        return (measured, new), (measured, *new)

    load_T = jnp.full((n_steps,), LOAD, jnp.float32) if load_T is None else load_T
    return jax.lax.scan(step, (jnp.float32(LOAD), controller.start(hparams)), load_T)[1]


def test_proportional_law_leaves_the_error_of_its_fixed_point():
    """m = load - K (m - target): m - target = (load - target) / (1 + K)."""
    measured_T, coefficient_T, _ = run(Controller(family="p", signal="act", most=10.0, **GAINS), {}, 200)
    error = (LOAD - TARGET) / (1 + 3)
    assert measured_T[-1] == pytest.approx(TARGET + error, abs=16 * EPS)
    assert coefficient_T[-1] == pytest.approx(3 * error, abs=32 * EPS)


def test_integral_leaves_none():
    measured_T, coefficient_T, integral_T = run(PI, {}, 400)
    assert measured_T[-1] == pytest.approx(TARGET, abs=16 * EPS)
    # what the plant needs to stand at its target is all integrated
    assert coefficient_T[-1] == pytest.approx(LOAD - TARGET, abs=32 * EPS) == integral_T[-1]


def test_constant_law_is_its_constant_whatever_is_measured():
    law = Controller(family="constant", signal="act", most=10.0, **GAINS | {"control_constant": 0.7})
    measured_T, coefficient_T, _ = run(law, {}, 200)
    np.testing.assert_array_equal(coefficient_T, np.float32(0.7))
    assert measured_T[-1] == pytest.approx(LOAD - 0.7, abs=16 * EPS)


@pytest.mark.parametrize("most", [1.0, 10.0])
def test_integral_does_not_wind_up_at_a_bound(most):
    """The load is too great for the bound for 200 steps, then small: the target is reached as if it never had been.

    Without anti-windup the integral would be 200 steps of an error of 9 and more times the gain, 360: the coefficient
    would stay at its bound for thousands of steps.
    """
    law = Controller(family="pi", signal="act", least=0.0, most=most, **GAINS)
    load_T = jnp.where(jnp.arange(300) < 200, 20.0, TARGET + 0.2).astype(jnp.float32)
    measured_T, coefficient_T, integral_T = run(law, {}, 300, load_T)
    assert coefficient_T[199] == most and integral_T[:200].max() <= most
    assert measured_T[-1] == pytest.approx(TARGET, abs=0.05) and integral_T[-1] == pytest.approx(0.2, abs=0.05)


def test_coefficient_stays_within_its_bounds_and_begins_at_its_constant():
    law = Controller(family="pi", signal="act", least=-1.0, most=1.0, **GAINS | {"control_constant": 0.25})
    load_T = jnp.asarray(np.random.default_rng(0).normal(scale=50, size=300), jnp.float32)
    _, coefficient_T, integral_T = run(law, {}, 300, load_T)
    assert law.start({}).coefficient == 0.25
    assert np.abs(coefficient_T).max() == 1 and np.isfinite(integral_T).all()


def test_laws_are_the_integral_law_with_gains_of_zero():
    none = {"control_gain_i": 0.0}
    for family, gains in (("p", none), ("constant", none | {"control_gain_p": 0.0})):
        law = Controller(family=family, signal="act", most=10.0, **GAINS | {"control_constant": 0.3})
        alike = Controller(family="pi", signal="act", most=10.0, **GAINS | {"control_constant": 0.3} | gains)
        for of, other in zip(run(law, {}, 50), run(alike, {}, 50), strict=True):
            np.testing.assert_array_equal(of, other)


def test_gains_and_target_are_the_rows():
    """Traced, and side by side."""
    rows = {"control_target": jnp.array([0.2, 0.5, 1.0]), "control_gain_i": jnp.array([0.1, 0.2, 0.0])}
    together = jax.vmap(lambda hparams: run(PI, hparams, 400)[0])(rows)
    for i in range(3):
        alone = Controller(
            family="pi", signal="act", most=10.0, **GAINS | {name: float(column[i]) for name, column in rows.items()}
        )
        np.testing.assert_allclose(together[i], run(alone, {}, 400)[0], rtol=0, atol=400 * EPS)
    np.testing.assert_allclose(together[:2, -1], [0.2, 0.5], rtol=0, atol=1e-3)
    assert together[2, -1] > 1.05  # no integral: an error is left


def test_quantities_of_a_step_are_what_they_are_named_after():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 4)), jnp.float32)
    zeros, weights = jnp.zeros((2, 3), jnp.int32), jnp.array([[0, 0, 1.0], [0, 0, 3.0]], jnp.float32)
    seen = Seen(jnp.float32(1.5), logits, Batch(zeros, zeros, weights, {}), {"w": jnp.array([3.0, 4.0])})
    prob = np.exp(np.asarray(logits, np.float64))[:, 0]
    prob /= prob.sum(axis=-1, keepdims=True)
    entropy_B = -(prob * np.log(prob)).sum(axis=-1)
    acts = {"act": jnp.array([[1, 2], [3, 6]], jnp.int32)}
    expected = {"loss": 1.5, "weight_norm": 5, "act": 3, "entropy": (entropy_B * [0.25, 0.75]).sum()}
    for name, value in expected.items():
        assert PI.quantity(name, seen, acts) == pytest.approx(value, rel=16 * EPS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "pid"}, r"controller\.family='pid': one of constant, p, pi"),
        ({"signal": ""}, r"controller\.signal='': the penalty"),
        ({"signal": "grad_norm"}, r"controller\.signal='grad_norm': the penalty, an activation or one of loss"),
        ({"least": 2.0, "most": 1.0}, r"controller\.least=2\.0, controller\.most=1\.0: want least < most"),
        ({"most": float("nan")}, r"want least < most"),
        ({"control_constant": 11.0}, r"controller\.control_constant=11\.0: a number from 0\.0 to 10\.0"),
        ({"control_target": float("inf")}, r"controller\.control_target=inf: expected a finite number"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Controller(**dict(family="pi", signal="act", most=10.0) | GAINS | changes)
