"""The forms of the recurrence are one function, with finite derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.models import ssm

B, H, K, N = 2, 2, 3, 4
LENGTHS = (1, 2, 7, 8, 33)
EPS, EPS64 = 2.0**-23, 2.0**-52


def masked(c, b, v, a):
    return ssm.mix(ssm.quadratic(c, b, a), v)


def sequential(c_BxLxN, b_BxLxN, v_BxLxHxK, a_BxHxL):
    """`masked` by the recurrence, token by token."""

    def step(h_BxHxKxN, now):
        c_BxN, b_BxN, v_BxHxK, a_BxH = now
        h_BxHxKxN = jnp.exp(a_BxH)[..., None, None] * h_BxHxKxN + v_BxHxK[..., None] * b_BxN[:, None, None]
        return h_BxHxKxN, jnp.einsum("bhkn,bn->bhk", h_BxHxKxN, c_BxN)

    batch, _, n_heads, width = v_BxLxHxK.shape
    start = jnp.zeros((batch, n_heads, width, b_BxLxN.shape[-1]), v_BxLxHxK.dtype)
    tokens_first = (*(jnp.swapaxes(x, 0, 1) for x in (c_BxLxN, b_BxLxN, v_BxLxHxK)), jnp.moveaxis(a_BxHxL, 2, 0))
    return jnp.swapaxes(jax.lax.scan(step, start, tokens_first)[1], 0, 1)


def associative(c_BxLxN, b_BxLxN, v_BxLxHxK, a_BxHxL):
    """`sequential`, as an associative scan over pairs (a1, h1) (a2, h2) = (a1 a2, a2 h1 + h2): states of all tokens."""

    def join(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    written_BxLxHxKxN = v_BxLxHxK[..., None] * b_BxLxN[:, :, None, None]
    kept_BxLxHx1x1 = jnp.exp(jnp.swapaxes(a_BxHxL, 1, 2))[..., None, None]
    _, h_BxLxHxKxN = jax.lax.associative_scan(join, (kept_BxLxHx1x1, written_BxLxHxKxN), axis=1)
    return jnp.einsum("blhkn,bln->blhk", h_BxLxHxKxN, c_BxLxN)


FORMS = {"quadratic": masked, "associative": associative, "sequential": sequential}


def inputs(length, seed=0):
    rng = np.random.default_rng(seed)
    c, b = rng.standard_normal((2, B, length, N))
    return c, b, rng.standard_normal((B, length, H, K)), -rng.exponential(0.3, (B, H, length))


def by_hand(c, b, v, a):
    y = np.zeros_like(v)
    for i in np.ndindex(B, H):
        state = np.zeros((K, N))
        for t in range(v.shape[1]):
            state = np.exp(a[*i, t]) * state + np.outer(v[i[0], t, i[1]], b[i[0], t])
            y[i[0], t, i[1]] = state @ c[i[0], t]
    return y


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, weights, *args):
    y = FORMS[form](*args)
    return y, jax.grad(lambda *args: jnp.sum(weights * FORMS[form](*args)), argnums=(0, 1, 2, 3))(*args)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.usefixtures("float64")
def test_sequential_associative_and_quadratic_form_are_one_function_with_its_gradients(length):
    args = inputs(length)
    weights = np.random.default_rng(1).standard_normal((B, length, H, K))
    found = {form: values_and_gradients(form, weights, *args) for form in FORMS}
    for form in FORMS:
        np.testing.assert_allclose(found[form][0], by_hand(*args), rtol=0, atol=1e-12)
        for one, other in zip(found[form][1], found["sequential"][1], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_forms_agree_in_float32(form):
    args = inputs(33)
    found = jax.jit(FORMS[form])(*(x.astype(np.float32) for x in args))
    expected = by_hand(*args)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_answers_of_the_last_tokens_are_those_of_all():
    c, b, _, a = (x.astype(np.float32) for x in inputs(8))
    np.testing.assert_array_equal(ssm.quadratic(c[:, -2:], b, a), ssm.quadratic(c, b, a)[:, :, -2:])


def test_state_after_the_last_token_is_what_the_next_one_reads():
    c, b, v, a = inputs(9)
    state = ssm.final_state(*(x.astype(np.float32) for x in (b[:, :-1], v[:, :-1], a[:, :, :-1])))
    kept = np.exp(a[:, :, -1])[..., None, None] * state
    written = v[:, -1][..., None] * b[:, -1, None, None]
    # nine terms, each rounded some three times
    np.testing.assert_allclose(
        np.einsum("bhkn,bn->bhk", kept + written, c[:, -1]), by_hand(c, b, v, a)[:, -1], rtol=0, atol=1e3 * EPS
    )


@pytest.mark.usefixtures("float64")
def test_without_decay_and_with_steps_of_one_it_is_linear_attention():
    c, b, v, a = inputs(7)
    expected = np.einsum("bin,bjn,ij,bjhk->bihk", c, b, np.tril(np.ones((7, 7))), v)
    np.testing.assert_allclose(masked(c, b, v, 0 * a), expected, rtol=0, atol=1e3 * EPS64)


def test_zeroed_columns_of_s_leave_what_is_computed_by_hand():
    c, b, v, a = (x.astype(np.float32) for x in inputs(2))
    s_BxHx2x2 = ssm.quadratic(c, b, a)
    y = ssm.mix(s_BxHx2x2.at[:, :, 1, 0].set(0), v)
    for t in range(2):  # each token reads itself alone
        alone = (c[:, t] * b[:, t]).sum(-1)[:, None, None] * v[:, t]
        np.testing.assert_allclose(y[:, t], alone, rtol=0, atol=1e2 * EPS)


def test_gradients_are_finite_where_the_decay_is_fastest():
    """128 tokens of dt = 1 under A = -16: above the diagonal the sums are up to +2,048, and exp of that overflows."""
    c, b, v, _ = (x.astype(np.float32) for x in inputs(128))
    a = np.full((B, H, 128), -16, np.float32)
    gradients = jax.jit(jax.grad(lambda *args: jnp.sum(masked(*args) ** 2), argnums=(0, 1, 2, 3)))(c, b, v, a)
    assert all(np.isfinite(np.asarray(gradient)).all() for gradient in gradients)
    assert (np.asarray(ssm.decays(jnp.asarray(a), 128)) <= 1).all()


@pytest.mark.usefixtures("float64")
def test_mamba_1s_scan_is_its_matrix_for_every_channel():
    rng = np.random.default_rng(2)
    c, b = rng.standard_normal((2, B, 7, N))
    x, dt = rng.standard_normal((B, 7, K)), rng.exponential(0.3, (B, 7, K))
    a_KxN = -rng.exponential(1.0, (K, N))
    y, h_BxKxN = jax.jit(ssm.scan)(c, b, x, dt, a_KxN)
    whole = jax.jit(ssm.selective)(c, b, dt, a_KxN)
    np.testing.assert_allclose(y, np.einsum("bcij,bjc->bic", whole, dt * x), rtol=0, atol=1e-12)
    state = np.zeros((B, K, N))
    for t in range(7):
        state = np.exp(dt[:, t, :, None] * a_KxN) * state + (dt * x)[:, t, :, None] * b[:, t, None]
        np.testing.assert_allclose(y[:, t], np.einsum("bkn,bn->bk", state, c[:, t]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(h_BxKxN, state, rtol=0, atol=1e-12)
