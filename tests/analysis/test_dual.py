"""A softmax layer is its dual model after one gradient step: by features written out and autodiff, and on layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import normal

from lab import models
from lab.analysis import dual

EPS = 2.0**-23
D, V, N, DEGREE = 2, 3, 4, 12
CHANGES = {
    "plain": {}, "alpha": dict(alpha=0.3), "negatives": dict(beta=0.5, n_negatives=2),
    "all negatives": dict(beta=1.0, n_negatives=99), "both": dict(alpha=-1.0, beta=0.2, n_negatives=1),
}  # fmt: skip
changes = pytest.mark.parametrize("options", CHANGES.values(), ids=CHANGES)


def features(u_D):
    """phi(u): all products of n < DEGREE numbers, by 1 / sqrt(n!), so that phi(k) . phi(q) = sum of (k . q)^n / n!."""
    found, power = [], jnp.ones(1)
    for n in range(DEGREE):
        found.append(power / math.sqrt(math.factorial(n)))
        power = jnp.outer(power, u_D).ravel()
    return jnp.concatenate(found)


def prompt(seed, scale=0.5):
    q_D, k_LxD, v_LxV = normal(seed, D), normal(seed + 1, N + 1, D), normal(seed + 2, N + 1, V)
    return tuple(jnp.asarray(a, float) for a in (scale * q_D, scale * k_LxD, v_LxV))


def negatives_by_hand(q_D, k_LxD, v_LxV, beta=0.0, n_negatives=1, **_):
    """v_i - (beta / r) sum over the r lowest-scored demonstrations of v_j."""
    order = sorted(range(N), key=lambda i: float(np.dot(k_LxD[i], q_D)))[:n_negatives]
    mean_V = sum(np.asarray(v_LxV[j]) for j in order) / len(order)
    return np.array([np.asarray(v_LxV[i]) - beta * mean_V for i in range(N)])


@pytest.mark.usefixtures("float64")
@changes
def test_dual_is_a_gradient_step_of_its_loss_in_features_written_out(options):
    q_D, k_LxD, v_LxV = prompt(0)
    shown_NxV = negatives_by_hand(q_D, k_LxD, v_LxV, **options)
    phi_LxF = jnp.stack([features(k_D) for k_D in k_LxD])
    z, eta = sum(math.exp(np.dot(k_D, q_D)) for k_D in k_LxD), 0.7
    w_VxF = jnp.outer(v_LxV[-1], phi_LxF[-1]) / z  # the query's own term

    def loss(w_VxF):
        agreement = sum(v_V @ w_VxF @ phi_F for v_V, phi_F in zip(shown_NxV, phi_LxF[:-1], strict=True)) / z
        return (0.5 * options.get("alpha", 0.0) * jnp.sum(w_VxF**2) - agreement) / eta

    stepped_VxF = w_VxF - eta * jax.grad(loss)(w_VxF)
    assert np.abs(k_LxD @ q_D).max() < 1
    found = dual.trained(q_D, k_LxD, v_LxV, **options)
    # |k . q| is below 1, so the remainder of the series is below 1.1 / 12!, 2.3e-9, a key
    np.testing.assert_allclose(found(q_D[None])[0], stepped_VxF @ features(q_D), rtol=0, atol=1e-8)


@changes
@pytest.mark.parametrize("augment", ["none", "serial", "parallel"])
@pytest.mark.parametrize("scale", [1.5, 2.0])  # largest scores 40 to 70, and 130 to 360: exp overflows from 88 on
def test_layer_is_its_dual_to_rounding_in_float32(options, augment, scale):
    model = models.VectorAttention(6, 16, augment=augment, d_augment=8, **options)
    x_BxLxI = normal(3, 32, 12, 6)
    params = models.init(model, jax.random.key(0), x_BxLxI)
    _, acts = models.forward(model, jax.tree.map(lambda leaf: scale * leaf, params), x_BxLxI)
    acts = {name: acts[f"block_0/attn/{name}"] for name in ("q", "k", "v", "z")}

    def of_prompt(acts):
        q_D, k_LxD = dual.halves(acts["q"][0], acts["k"])
        return (
            dual.trained(q_D, k_LxD, acts["v"], **options)(q_D[None])[0],
            dual.token_by_token(q_D, k_LxD, acts["v"], **options)[-1],
        )

    size = np.linalg.norm(acts["z"])
    for answer_BxD in jax.jit(jax.vmap(of_prompt))(acts):
        assert np.linalg.norm(answer_BxD - acts["z"]) <= 1e-5 * size


@pytest.mark.usefixtures("float64")
@changes
def test_after_t_demonstrations_what_is_missing_is_what_the_others_add(options):
    q_D, k_LxD, v_LxV = prompt(5)
    path = dual.token_by_token(q_D, k_LxD, v_LxV, **options)
    whole = dual.trained(q_D, k_LxD, v_LxV, **options)(q_D[None])[0]
    shown_NxV = negatives_by_hand(q_D, k_LxD, v_LxV, **options)
    weight_L = np.exp([float(np.dot(k_D, q_D)) for k_D in k_LxD])
    weight_L /= weight_L.sum()
    for t in range(N + 1):
        missing = sum((weight_L[i] * shown_NxV[i] for i in range(t, N)), np.zeros(V))
        np.testing.assert_allclose(whole - path[t], missing, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_steps_over_one_demonstration_after_another_are_one_step_over_all():
    q_D, k_LxD, v_LxV = prompt(9)
    model = dual.Dual(v_LxV[-1:], k_LxD[-1:], jax.nn.logsumexp(k_LxD @ q_D))
    for i in range(N):
        model = model.step(v_LxV[i : i + 1], k_LxD[i : i + 1])
    everywhere = jnp.asarray(normal(10, 5, D), float)
    expected = dual.trained(q_D, k_LxD, v_LxV)(everywhere)
    np.testing.assert_allclose(model(everywhere), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_representations_of_values_on_a_line_have_rank_one_and_apart_they_have_all():
    keys = 9.0 * jnp.eye(N + 1)  # exp(81) to 1: each key finds itself
    line = jnp.outer(jnp.arange(1.0, N + 2), jnp.arange(1.0, V + 1))
    apart = jnp.eye(N + 1)
    for values, rank in ((line, 1), (apart, N)):
        model = dual.trained(keys[-1] / 9, keys, values)
        assert dual.representation_rank(model, keys[:-1]) == pytest.approx(rank, abs=1e-6)
        assert dual.alignment(model, keys[:-1], values[:-1]) == pytest.approx(1, abs=1e-6)


def test_representations_of_long_keys_do_not_overflow():
    k_LxD, v_LxV = 40 * normal(0, N + 1, D), normal(1, N + 1, V)
    f_NxV = dual.representations(dual.Dual(v_LxV, k_LxD, 0.0), k_LxD[:-1])
    np.testing.assert_allclose(np.linalg.norm(f_NxV, axis=1), 1, rtol=8 * EPS)


# --- random features ---


def short(seed, *shape):
    vectors = normal(seed, *shape)
    return 0.5 * vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_random_features_are_unbiased():
    q_D, k_D = short(0, 3), short(1, 3)
    n = 200_000
    omega_FxD = jax.random.normal(jax.random.key(0), (n, 3))
    both = dual.random_features(jnp.stack([q_D, k_D]), omega_FxD)
    products_F = n * both[0] * both[1]
    error = float(jnp.std(products_F)) / math.sqrt(n)
    assert abs(float(jnp.mean(products_F)) - math.exp(q_D @ k_D)) < 5 * error


def test_error_of_random_features_falls_as_one_over_their_number_and_is_the_predicted_one():
    q_PxD, k_PxLxD = short(2, 4, 5), short(3, 4, 6, 5)
    numbers = (100, 1000, 10_000)
    keys = jax.random.split(jax.random.key(1), len(numbers))
    found = [dual.feature_errors(key, q_PxD, k_PxLxD, n, 64) for key, n in zip(keys, numbers, strict=True)]
    error, predicted = np.array(found).T
    slope = np.polyfit(np.log(numbers), np.log(error), 1)[0]
    assert abs(slope + 1) <= 0.15
    assert ((error >= predicted / 2) & (error <= 2 * predicted)).all()
    by_hand = np.mean([np.exp(np.sum((q + k) ** 2)) - 1 for q, keys in zip(q_PxD, k_PxLxD, strict=True) for k in keys])
    np.testing.assert_allclose(predicted, by_hand / np.array(numbers), rtol=64 * EPS)
