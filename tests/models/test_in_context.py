"""The softmax layer over vectors: its formula, its changes by hand, and that changes of nothing change no bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import normal

from lab import init, models
from lab.tree import named_leaves

D_IN, D, B, L = 3, 8, 4, 6
X = normal(0, B, L, D_IN)
PLAIN = models.VectorAttention(D_IN, D, d_augment=D, activation="identity")
forward = jax.jit(models.forward, static_argnums=0)


def row(model, seed=1):
    return models.init(model, jax.random.key(seed), X)


def with_views(params, **kernels):
    """The plain layer's parameters, with the same kernels added to both views."""
    attention = {name: dict(leaf) for name, leaf in params["block_0"].items()}
    for view in ("key", "value"):
        attention[view] |= {name: {"kernel": jnp.asarray(kernel, jnp.float32)} for name, kernel in kernels.items()}
    return params | {"block_0": attention}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, dict(alpha=0.4), dict(beta=0.6, n_negatives=2), dict(alpha=2.0, beta=1.0)])
def test_answer_is_that_of_the_formula(options):
    model = PLAIN.clone(**options)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), row(model))
    answer_B, _ = models.forward(model, params, X.astype(np.float64))
    p = named_leaves(params)
    alpha, beta, r = model.alpha, model.beta, model.n_negatives
    for x_LxI, answer in zip(X.astype(np.float64), answer_B, strict=True):
        h_LxD = x_LxI @ p["embed/kernel"]
        q_D = h_LxD[-1] @ p["block_0/query/kernel"]
        k_LxD, v_LxD = (h_LxD @ p[f"block_0/{name}/linear/kernel"] for name in ("key", "value"))
        score_L = k_LxD @ q_D / np.sqrt(D)
        weight_L = np.exp(score_L) / np.exp(score_L).sum()
        lowest = np.argsort(score_L[:-1])[:r]
        v_LxD = np.concatenate([v_LxD[:-1] - beta / r * v_LxD[lowest].sum(axis=0), (1 - alpha) * v_LxD[-1:]])
        np.testing.assert_allclose(answer, weight_L @ v_LxD @ p["head/kernel"][:, 0], rtol=0, atol=1e-12)


def test_no_penalty_no_negatives_and_identity_maps_reproduce_the_plain_layer_bit_for_bit():
    params = row(PLAIN)
    expected, _ = forward(PLAIN, params, X)
    same = {
        "alpha 0, beta 0": (PLAIN.clone(alpha=0.0, beta=0.0, n_negatives=4), params),
        "negatives of weight 0": (PLAIN.clone(beta=0.0, n_negatives=L), params),
        "serial identity": (PLAIN.clone(augment="serial"), with_views(params, **{"in": np.eye(D), "out": np.eye(D)})),
        "parallel zero": (
            PLAIN.clone(augment="parallel"), with_views(params, **{"in": np.eye(D), "out": np.zeros((D, D))})
        ),
    }  # fmt: skip
    for name, (model, own) in same.items():
        np.testing.assert_array_equal(forward(model, own, X)[0], expected, err_msg=name)
    changed = (PLAIN.clone(alpha=0.1), PLAIN.clone(beta=0.1))
    assert all(not np.array_equal(forward(model, params, X)[0], expected) for model in changed)


def test_rows_with_one_seed_differ_in_nothing_but_the_change():
    """Leaves are drawn by their names: a paired comparison."""
    plain = named_leaves(row(PLAIN))
    other = named_leaves(row(PLAIN.clone(augment="parallel", alpha=1.0)))
    assert set(plain) < set(other)
    for name, leaf in plain.items():
        np.testing.assert_array_equal(leaf, other[name])


def test_demonstrations_are_a_set():
    params = row(PLAIN.clone(beta=0.5, n_negatives=2))
    model = PLAIN.clone(beta=0.5, n_negatives=2)
    shuffled = X[:, [3, 0, 4, 2, 1, 5]]
    # sums of L terms below 10 in another order
    np.testing.assert_allclose(forward(model, params, shuffled)[0], forward(model, params, X)[0], atol=1e-5)


def test_groups_are_those_of_a_transformer_and_maps_follow_the_rate_of_mlps():
    leaves = init.leaves_of(PLAIN.clone(augment="serial"), X[:1])
    assert (leaves["embed/kernel"].group, leaves["embed/kernel"].d_in) == ("embed", D_IN)
    assert leaves["head/kernel"].group == "head" and leaves["block_0/query/kernel"].group == "qk"
    assert leaves["block_0/key/linear/kernel"].d_in == D
    groups = {name: leaves[f"block_0/{name}/kernel"].group for name in ("key/linear", "value/linear", "key/in")}
    assert groups == {"key/linear": "qk", "value/linear": "vo", "key/in": "mlp"}


def test_tokens_and_vectors_of_another_size_are_refused():
    for inputs in (np.zeros((2, 4), np.int32), X[:, :, :2]):
        with pytest.raises(ValueError, match=r"model\.d_in=3: reads sequences of vectors \(B, L, 3\), not"):
            models.forward(PLAIN, row(PLAIN), inputs)
    with pytest.raises(ValueError, match=r"model\.augment='both': one of none, serial, parallel"):
        PLAIN.clone(augment="both")
