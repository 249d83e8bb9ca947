"""The 2 x 2 block: closed forms against singular values, and its least nuclear norm against a convex program."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from lab.analysis import bridges
from lab.analysis.bridges import Block

BLOCKS = [(1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), (2.0, -0.3, 0.5, 1.5), (0.7, 0.9, 2.0, 1.1), (1.0, 0.4, 0.0, 1.0)]
ROUNDING = 1e-5  # float32, a handful of operations on numbers of order one


def norm(c, a, p, s):
    return np.linalg.svd(np.array([[a, c], [p, s]]), compute_uv=False).sum()


@pytest.mark.parametrize("entries", BLOCKS)
def test_nuclear_norm_is_the_sum_of_singular_values_and_its_least_is_over_c(entries):
    a, c, p, s = entries
    block = Block(*map(jnp.float32, entries))
    np.testing.assert_allclose(block.nuclear, norm(c, a, p, s), rtol=ROUNDING)
    best = optimize.minimize_scalar(norm, args=(a, p, s), bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
    np.testing.assert_allclose(block.least.nuclear, best.fun, rtol=ROUNDING)
    assert block.excess >= 1 - ROUNDING


def test_with_identities_the_least_block_is_of_rank_one_and_without_any_c_up_to_one_is_as_good():
    assert Block(1.0, 0.0, 1.0, 1.0).least.c == 1 and Block(1.0, 1.0, 1.0, 1.0).sharing == 1
    assert [float(norm(c, 1, c, 1)) for c in (-1.0, 0.0, 0.5, 1.0)] == pytest.approx([2] * 4)


def test_over_the_minimum_is_one_for_equal_entries_and_counts_what_a_large_p_costs():
    assert Block(2.0, 2.0, 2.0, 2.0).over_minimum == 1
    np.testing.assert_allclose(Block(1.0, 0.5, 2.0, 1.0).over_minimum, 2.5 / 2, rtol=ROUNDING)  # of rank one


def test_a_convex_program_over_whole_matrices_finds_the_block():
    """min |W|_* with margins of 1, n = 3: what e1 and e2 say of bridges and objects, each row centred within a set.

    With identities the answer has c = p = a = s times the identity; with the Frobenius norm in its place c = 0.
    """
    n = 3
    centre = np.eye(n) - 1 / n
    trained = [(0, 0), (1, 0), (1, 1)]  # e1 -> e2, e2 -> e2, e2 -> e3, as blocks (row, column)

    def whole(x):
        return x.reshape(2, n, 2, n)

    def margins(x):
        w = whole(x)
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        return np.array([w[r, i, k, i] - w[r, i, k, j] - 1 for r, k in trained for i, j in pairs])

    def nuclear(x):
        u, s, v = np.linalg.svd(x.reshape(2 * n, 2 * n))
        smooth = np.sqrt(s**2 + 1e-6)
        return smooth.sum(), ((u * (s / smooth)) @ v).ravel()

    start = np.random.default_rng(0).standard_normal(4 * n * n) * 0.1
    jacobian = optimize.approx_fprime(start, margins, 1e-6)  # margins are linear
    constraint = {"type": "ineq", "fun": margins, "jac": lambda _: jacobian}
    options = {"maxiter": 500, "ftol": 1e-10}
    found = optimize.minimize(nuclear, start, jac=True, method="SLSQP", constraints=constraint, options=options)
    least = whole(found.x)
    entries = Block(*(np.trace(centre @ least[r, :, k]) / (n - 1) for r, k in ((0, 0), (0, 1), (1, 0), (1, 1))))
    np.testing.assert_allclose(entries, 1, atol=0.02)
    assert entries.sharing == pytest.approx(1, abs=0.05)
    frobenius = optimize.minimize(
        lambda x: (x @ x, 2 * x), start, jac=True, method="SLSQP", constraints=constraint, options=options
    )
    np.testing.assert_allclose(whole(frobenius.x)[0, :, 1], 0, atol=1e-4)


GROUP = np.array([0, 0, 0, 1, 1, 1], np.int32)
TOKEN = np.array([0, 1, 2, 5, 4, 3], np.int32)


def test_margin_is_the_right_logit_less_those_of_the_group():
    logits = np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32)
    expected = []
    for i in range(6):
        others = [TOKEN[j] for j in range(6) if j != i and GROUP[j] == GROUP[i]]
        expected.append(logits[i, TOKEN[i]] - logits[i, others].mean())
    np.testing.assert_allclose(bridges.margin(logits, TOKEN, GROUP), np.mean(expected), rtol=ROUNDING, atol=1e-6)
    shifted = logits + np.arange(7, dtype=np.float32)[None]  # of a column alone: it tells no entities apart
    np.testing.assert_allclose(bridges.margin(shifted, TOKEN, GROUP), np.mean(expected), rtol=1e-4, atol=1e-5)


def test_states_that_are_the_bridges_plus_a_relation_are_aligned_once_centred():
    rng = np.random.default_rng(1)
    bridge = rng.standard_normal((6, 50)).astype(np.float32)
    relation = 3 * rng.standard_normal((2, 50)).astype(np.float32)[GROUP]
    entity = np.concatenate([rng.standard_normal((20, 50)), bridge]).astype(np.float32)
    found = bridges.latent(bridge + relation, bridge, entity, GROUP)
    assert found["centred"] == pytest.approx(1, abs=ROUNDING)
    assert abs(found["other"]) < 0.3 < found["cosine"] < 0.6 and found["rank"] == 1
    unlike = bridges.latent(rng.standard_normal((6, 50)).astype(np.float32), bridge, entity, GROUP)
    assert abs(unlike["centred"]) < 0.3 and unlike["rank"] > 3
    cosines = (bridge / np.linalg.norm(bridge, axis=1, keepdims=True)) @ (
        bridge / np.linalg.norm(bridge, axis=1, keepdims=True)
    ).T
    own = bridges.latent(bridge, bridge, entity, GROUP)
    off = ~np.eye(6, dtype=bool)
    assert own["random"] == pytest.approx(cosines[off].mean(), abs=1e-5)
    assert own["other"] == pytest.approx(cosines[off & (GROUP[:, None] == GROUP)].mean(), abs=1e-5)
