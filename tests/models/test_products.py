"""Products, softmax and normalization: values and all derivatives are those of the plain expressions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.models import products


def plain_normalize(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


CASES = {
    "matmul": (products.matmul, lambda x, w: x @ w, [(5, 4), (4, 3)]),
    "scores": (products.scores, lambda q, k: jnp.einsum("bqk,blk->bql", q, k), [(2, 3, 4), (2, 5, 4)]),
    "mix": (products.mix, lambda p, v: jnp.einsum("bql,blk->bqk", p, v), [(2, 3, 5), (2, 5, 4)]),
    "softmax": (products.softmax, lambda s: jax.nn.softmax(s), [(2, 3, 5)]),
    "normalize": (lambda x: products.normalize(x, 1e-5), plain_normalize, [(2, 3, 6)]),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request, float64):
    """The function, its plain expression, arguments, tangents of them, and weights that make a scalar of its value."""
    ours, plain, shapes = CASES[request.param]
    draws = np.random.default_rng(0)
    arguments, tangents = (tuple(jnp.asarray(draws.normal(size=shape)) for shape in shapes) for _ in range(2))
    weights = jnp.asarray(draws.normal(size=jax.eval_shape(plain, *arguments).shape))
    return ours, plain, arguments, tangents, weights


def close(ours, plain):
    """A hundred roundings of numbers below a hundred."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e4 * 2.0**-52), ours, plain)


def test_values_and_both_modes_of_the_first_derivative(case):
    ours, plain, arguments, tangents, weights = case

    def derivatives(function):
        value, forward = jax.jvp(function, arguments, tangents)
        return value, forward, jax.vjp(function, *arguments)[1](weights)

    close(derivatives(ours), derivatives(plain))


@pytest.mark.parametrize("outer", ["forward", "reverse"])
def test_second_derivative_in_either_mode_over_reverse(case, outer):
    ours, plain, arguments, tangents, weights = case

    def second(function):
        def gradient(*arguments):
            return jax.grad(lambda given: jnp.sum(weights * jnp.sin(function(*given))))(arguments)

        if outer == "forward":
            return jax.jvp(gradient, arguments, tangents)[1]
        return jax.vjp(gradient, *arguments)[1](tangents)

    close(second(ours), second(plain))


def test_rows_under_vmap_have_their_own_derivatives(case):
    ours, plain, arguments, _, weights = case
    stacked = tuple(jnp.stack([a, -2 * a, a + 1]) for a in arguments)

    def gradients(function):
        return jax.vmap(jax.grad(lambda *given: jnp.sum(weights * function(*given)), tuple(range(len(arguments)))))

    close(gradients(ours)(*stacked), gradients(plain)(*stacked))
