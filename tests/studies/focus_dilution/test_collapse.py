import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import losses, models
from lab.measuring.declare import Row
from lab.studies.focus_dilution import collapse
from lab.tasks import Anchor
from lab.tree import named_leaves

EPS = 2.0**-52
TASK = Anchor(low=5, high=20, length=6, vocab_size=24)
D, F = 5, 7
pytestmark = pytest.mark.usefixtures("float64")


def model(activation):
    return models.AttentionMLP(TASK.vocab_size, D, F, activation)


@functools.cache
def shapes_of():
    return jax.eval_shape(lambda: models.init(model("tanh"), jax.random.key(0), jnp.zeros((1, 6), jnp.int32)))


def params_of(seed=0, **scales):
    """Float64 draws of order one; `scales` multiplies leaves by name, e.g. query=0."""
    rng = np.random.default_rng(seed)
    shapes = shapes_of()
    by_name = {name: scales.get(name.split("/")[-2], 1.0) for name in named_leaves(shapes)}
    return jax.tree.map(
        lambda leaf, scale: jnp.array(scale * rng.standard_normal(leaf.shape) / 2),
        shapes,
        jax.tree.unflatten(jax.tree.structure(shapes), by_name.values()),
    )


@functools.cache
def batch_of(n=40):
    """Sequences of unequal weight."""
    batch = TASK.sample(jax.random.key(7), n, "train", {})
    weight_B = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, n))
    return batch._replace(weights_BxL=jnp.zeros((n, 6)).at[:, -1].set(weight_B))


def loss(params, activation, batch):
    return losses.mean_cross_entropy(models.forward(model(activation), params, batch.tokens_BxL)[0], batch)


gradient = jax.jit(jax.grad(loss), static_argnums=1)
leading_matrix = jax.jit(collapse.leading_matrix)
attention_matrix = jax.jit(collapse.attention_matrix, static_argnums=2)
leading_pair, condition_rates = jax.jit(collapse.leading_pair), jax.jit(collapse.condition_rates)
balance_drift, relative_change = jax.jit(collapse.balance_drift), jax.jit(collapse.relative_change)


def descent(params, activation, batch):
    """-dL/dW of W_V, W_1, W_2 and W_Q, W_K, by autodiff of the model's loss."""
    slope = jax.tree.map(jnp.negative, gradient(params, activation, batch))
    return collapse.outer(slope), collapse.inner(slope)


def with_outer(params, outer):
    block = params["block_0"]
    attn = block["attn"] | {"value": {"kernel": outer.value_DxD}}
    return params | {"block_0": {"attn": attn, "mlp": {"in": {"kernel": outer[1]}, "out": {"kernel": outer[2]}}}}


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_losses_gradient_at_small_weights_is_that_of_the_energy(activation):
    batch, params = batch_of(), params_of(query=0, key=0)
    g = np.asarray(leading_matrix(collapse.context(params, batch)))
    value, into, out = (np.asarray(leaf) for leaf in collapse.outer(params))
    # dE/dW of E = tr(G^T W_V W_1 W_2), written out with indices
    expected = (
        np.einsum("ab,kf,fb->ak", g, into, out),
        np.einsum("ab,ak,fb->kf", g, value, out),
        np.einsum("ab,ak,kf->fb", g, value, into),
    )
    gaps = []
    for scale in (1e-2, 1e-3):
        small = with_outer(params, collapse.Outer(*(scale * leaf for leaf in (value, into, out))))
        found, _ = descent(small, activation, batch)
        gaps.append([np.abs(a / scale**2 - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True)])
    # What is left out is of relative order scale^3, the softmax's answer to logits of that size (tanh's cubic term is
    # of order scale^4, a hundredth of it): a thousandth at a tenth of the scale.
    np.testing.assert_allclose(np.divide(*gaps), 1000, rtol=0.1)
    assert np.max(gaps) < 1e-3  # which at scale 1 would be 1000: orders of weights and sums are allowed for


def test_leading_matrix_is_the_weighted_sum_over_sequences():
    batch, params = batch_of(9), params_of(3)
    tokens, targets = np.asarray(batch.tokens_BxL), np.asarray(batch.targets_BxL)[:, -1]
    weights = np.asarray(batch.weights_BxL)[:, -1]
    table, head = np.asarray(params["embed"]["token"]["embedding"]), np.asarray(params["head"]["kernel"])
    expected = np.zeros((D, D))
    for row, target, weight in zip(tokens, targets, weights, strict=True):
        x = sum(table[token] for token in row) / 6
        expected += weight * np.outer(x, head[:, target] - head.sum(axis=1) / 24)
    # 9 x 6 x 24 products of numbers below 10
    found = leading_matrix(collapse.context(params, batch))
    np.testing.assert_allclose(found, expected / weights.sum(), rtol=0, atol=9 * 6 * 24 * 10 * EPS)


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_attention_moves_by_f_from_uniform_attention_exactly(activation):
    batch = batch_of()
    for frozen in ("query", "key"):  # a zero matrix: scores are exactly 0, attention exactly uniform
        params = params_of(2, **{frozen: 0})
        f = attention_matrix(collapse.outer(params), collapse.context(params, batch), activation)
        query, key = collapse.inner(params)
        _, moved = descent(params, activation, batch)
        # Sums of 40 sequences x 6 tokens x 5 x 5 x 7 x 24 products, by two routes; their random signs leave the root.
        tolerance = 10 * math.sqrt(40 * 6 * 5 * 5 * 7 * 24) * EPS
        scale = float(jnp.abs(f).max())
        assert scale > 1e-3
        np.testing.assert_allclose(moved.query_DxD, f @ key, rtol=0, atol=tolerance)
        np.testing.assert_allclose(moved.key_DxD, f.T @ query, rtol=0, atol=tolerance)
        assert float(jnp.abs(moved[frozen == "key"]).max()) > 1e-3


def test_attention_matrix_is_the_papers_for_one_output():
    """F = 1/(n s sqrt(d)) sum_i y_i L_i x_is^T (W_V W_1 W_2)^T [sum_j x_ij^T (x_ij - mean_l x_il)]^T: two tokens as
    labels, of opposite embeddings, make the head's one direction, and y_i L_i its -dL/dlogit."""
    batch, params = batch_of(11), params_of(4)
    rng = np.random.default_rng(5)
    direction = rng.standard_normal(D)
    head = np.outer(direction, np.r_[1.0, -1.0])
    targets = rng.integers(0, 2, 11).astype(np.int32)
    x = np.asarray(params["embed"]["token"]["embedding"])[np.asarray(batch.tokens_BxL)]
    value, into, out = (np.asarray(leaf) for leaf in collapse.outer(params))
    f, slope = np.zeros((D, D)), value @ into @ out @ direction  # (W_V W_1 W_2)^T in the paper's one output
    for sequence, target in zip(x, targets, strict=True):
        y = 1 - 2 * target
        margin = y * (sequence.mean(axis=0) @ slope)
        push = y * 2 / (1 + np.exp(2 * margin))  # -d/df of log(1 + exp(-2 y f))
        spread = sum(np.outer(token, token - sequence.mean(axis=0)) for token in sequence)
        f += push * np.outer(sequence[-1], spread.T @ slope)
    held = collapse.Context(jnp.asarray(x), jnp.asarray(head), jnp.asarray(targets), jnp.ones(11))
    found = attention_matrix(collapse.outer(params), held, "identity")
    # 11 x 6 x 25 products below 100
    np.testing.assert_allclose(found, f / (11 * 6 * math.sqrt(D)), rtol=0, atol=11 * 6 * 25 * 100 * EPS)


def test_linear_attention_flow_grows_at_the_leading_singular_value_of_f_into_rank_one():
    batch, params = batch_of(), params_of(6)
    f = np.asarray(attention_matrix(collapse.outer(params), collapse.context(params, batch), "tanh"))
    pair = leading_pair(jnp.asarray(f))
    rate, ratio = float(pair.value), float(pair.second_ratio)
    query, key = (np.asarray(leaf) for leaf in collapse.inner(params))
    # The flow's matrix [[0, F], [F^T, 0]] exponentiated, to times at which all but the leading pair is 1e-10 of it.
    values, vectors = np.linalg.eigh(np.block([[np.zeros((D, D)), f], [f.T, np.zeros((D, D))]]))
    time = 10 * math.log(10) / (rate * (1 - ratio))

    def after(t):
        return (vectors * np.exp(values * t)) @ vectors.T @ np.r_[query, key]

    early, late = after(time), after(time + 1 / rate)
    # 1e-10 times the condition of the start, below 1e3
    assert np.linalg.norm(late) / np.linalg.norm(early) == pytest.approx(math.e, abs=1e-6)
    left, s, _ = np.linalg.svd(late[:D])
    assert s[1] / s[0] < 1e-6
    assert abs(left[:, 0] @ np.asarray(pair.left_D)) == pytest.approx(1, abs=1e-6)
    left, s, _ = np.linalg.svd(late[D:])
    assert s[1] / s[0] < 1e-6
    assert abs(left[:, 0] @ np.asarray(pair.right_D)) == pytest.approx(1, abs=1e-6)


def flow(slope, state, step, n_steps):
    """Fourth-order Runge-Kutta of dx/dt = slope(x): the states at every step."""

    def move(state, share, change):
        return jax.tree.map(lambda a, b: a + share * step * b, state, change)

    def advance(state, _):
        a = slope(state)
        b = slope(move(state, 0.5, a))
        c = slope(move(state, 0.5, b))
        d = slope(move(state, 1.0, c))
        change = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, a, b, c, d)
        return move(state, 1.0, change), state

    return jax.jit(lambda state: jax.lax.scan(advance, state, length=n_steps)[1])(state)


def leading_order(w: collapse.Reduced):
    """grad (W_v W_1 W_2)."""
    return collapse.Reduced(w.in_DxF @ w.out_F, jnp.outer(w.value_D, w.out_F), w.in_DxF.T @ w.value_D)


def reduced_start(seed=0, positive=True):
    """A start of E > 0, or < 0."""
    rng = np.random.default_rng(seed)
    start = collapse.Reduced(*(jnp.asarray(rng.standard_normal(shape) / 2) for shape in ((D,), (D, F), (F,))))
    flip = (float(start.value_D @ start.in_DxF @ start.out_F) > 0) is not positive
    return start._replace(value_D=-start.value_D if flip else start.value_D)


def test_neurons_align_and_conditions_are_met_as_the_flow_blows_up():
    path = flow(leading_order, reduced_start(3), 1e-3, 20_000)
    grown = int(np.argmax(~(np.asarray(jax.vmap(collapse.energy)(path)) < 1e8)))
    start, late = (jax.tree.map(lambda leaf, at=at: leaf[at], path) for at in (0, grown - 1))
    for rate in condition_rates(late).values():
        assert float(rate) == pytest.approx(1, abs=4 * EPS)
    assert float(collapse.alignment(late.in_DxF.T, late.value_D, 0.9)["mean"]) > 0.95
    assert float(collapse.alignment(start.in_DxF.T, start.value_D, 0.9)["mean"]) < 0.7


def test_condition_rates_count_what_the_paper_writes():
    w = reduced_start(4)
    value, into, out = (np.asarray(leaf).tolist() for leaf in w)
    hidden = [sum(value[k] * into[k][i] for k in range(D)) * out[i] > 0 for i in range(F)]
    onward = [sum(into[i][k] * out[k] for k in range(F)) * value[i] > 0 for i in range(D)]
    columns = [[out[i] * into[k][i] for k in range(D)] for i in range(F)]
    rows = [[value[i] * into[i][k] for k in range(F)] for i in range(D)]

    def pairs(vectors):
        each = [sum(a * b for a, b in zip(x, y, strict=True)) > 0 for x, y in itertools.product(vectors, vectors)]
        return sum(each) / len(each)

    expected = {"a1_hidden": sum(hidden) / F, "a1_value": sum(onward) / D, "a2_hidden": pairs(columns),
                "a2_value": pairs(rows)}  # fmt: skip
    assert {name: float(rate) for name, rate in condition_rates(w).items()} == pytest.approx(expected, rel=4 * EPS)
    assert min(expected.values()) > 0 and max(expected.values()) < 1


@pytest.mark.parametrize(("activation", "conserves"), [("identity", True), ("tanh", False)])
def test_gradient_flow_of_the_whole_loss_balances_a_linear_model(activation, conserves):
    batch, params = batch_of(), params_of(8)

    def slope(state):
        return jax.tree.map(jnp.negative, jax.grad(loss)(state, activation, batch))

    path = flow(slope, params, 0.02, 200)
    start, late = (collapse.outer(jax.tree.map(lambda leaf, at=at: leaf[at], path)) for at in (0, -1))
    drift = float(balance_drift(late, start))
    # Runge-Kutta errs by step^4 = 1.6e-7 times a fifth derivative over 120, in 4 units of time: below 1e-6 for one
    # below 190. Weights and slopes are of order one.
    assert (drift < 1e-6) is conserves
    assert drift > (0 if conserves else 1e-3)
    assert float(relative_change(late, start)) > 0.1


def test_balance_drifts_in_proportion_to_the_step_of_descent():
    """W - lr dW adds lr^2 (dW_V^T dW_V - dW_1 dW_1^T) a step: over a fixed time, lr times a constant."""
    batch, params = batch_of(), params_of(8)

    @jax.jit
    def descended(rate, n_steps):
        def advance(_, state):
            return jax.tree.map(lambda w, g: w - rate * g, state, jax.grad(loss)(state, "identity", batch))

        return jax.lax.fori_loop(0, n_steps, advance, params)

    drifts = [
        float(balance_drift(collapse.outer(descended(2.0 / n, n)), collapse.outer(params))) for n in (200, 400, 800)
    ]
    assert drifts[0] > 1e-5
    # Richardson: drift = a lr + b lr^2, so ratios approach 2 and their distance from it halves
    ratios = [drifts[0] / drifts[1], drifts[1] / drifts[2]]
    assert ratios == pytest.approx([2, 2], abs=0.05)
    assert abs(ratios[1] - 2) < 0.7 * abs(ratios[0] - 2)


def test_balance_drift_is_that_of_the_gram_matrices_over_their_norms():
    rng = np.random.default_rng(9)
    now, start = ([rng.standard_normal(shape) for shape in ((D, D), (D, F), (F, D))] for _ in range(2))

    def blocks(v, a, b):
        return np.r_[(v.T @ v - a @ a.T).ravel(), (a.T @ a - b @ b.T).ravel()]

    norms = [np.sqrt(np.sum(np.linalg.svd(w, compute_uv=False) ** 4)) for w in now]
    expected = np.linalg.norm(blocks(*now) - blocks(*start)) / (norms[0] + 2 * norms[1] + norms[2])
    found = balance_drift(*(collapse.Outer(*map(jnp.asarray, w)) for w in (now, start)))
    assert float(found) == pytest.approx(expected, rel=1000 * EPS)  # sums of at most 7 x 49 products


def test_reduction_of_a_rank_one_leading_matrix_keeps_the_energy():
    params = params_of(10)
    w = collapse.outer(params)
    u, v = (np.linalg.qr(np.random.default_rng(seed).standard_normal((D, 2)))[0][:, 0] for seed in (1, 2))
    pair = leading_pair(jnp.asarray(3 * np.outer(u, v)))
    assert float(pair.value) == pytest.approx(3, rel=10 * EPS) and float(pair.second_ratio) < 10 * EPS
    expected = np.sum(np.outer(u, v) * np.asarray(w.value_DxD @ w.in_DxF @ w.out_FxD))
    assert float(collapse.energy(collapse.reduce(w, pair))) == pytest.approx(expected, abs=D * D * F * 10 * EPS)


def test_alignment_of_planted_angles():
    angles = np.array([0, 0.2, np.pi - 0.2, np.pi / 2, 1.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([1, 1e-9, 3, 2, 5])[:, None]
    found = collapse.alignment(jnp.asarray(vectors), jnp.array([4.0, 0.0]), 0.9)
    assert float(found["mean"]) == pytest.approx((1 + 2 * np.cos(0.2) + np.cos(1)) / 5, abs=10 * EPS)
    assert float(found["above"]) == pytest.approx(3 / 5)


def test_signals_are_those_of_each_matrix():
    batch, start, now = batch_of(), params_of(11), params_of(12)
    row = Row(model("tanh"), now, start, {}, jnp.int32(3), batch, jax.random.key(0))
    found = jax.jit(lambda params, start: collapse.signals(row._replace(params=params, start=start)))(now, start)
    kernels = [np.asarray(leaf) for leaf in (*collapse.outer(now), *collapse.inner(now))]
    for i, (name, kernel) in enumerate(zip(collapse.MATRICES, kernels, strict=True)):
        neurons = kernel if name == "out" else kernel.T
        cosines = [abs(a @ b) / math.sqrt((a @ a) * (b @ b)) for a, b in itertools.combinations(neurons, 2)]
        assert float(found["cosine"][i]) == pytest.approx(np.mean(cosines), abs=100 * EPS)
        p = np.linalg.svd(kernel, compute_uv=False)
        p /= p.sum()
        assert float(found["effective_rank"][i]) == pytest.approx(math.exp(-p @ np.log(p)), abs=1000 * EPS)
        gram = kernel.T @ kernel if name == "out" else kernel @ kernel.T
        top = np.linalg.eigh(gram)[1][:, -1]
        # eigenvectors err by EPS over the gap of the squares, here above 1e-2
        assert abs(top @ np.asarray(found["direction"][i])) == pytest.approx(1, abs=1e4 * EPS)
    before = [np.asarray(leaf) for leaf in (*collapse.outer(start), *collapse.inner(start))]
    for change, which in (("change_outer", range(3)), ("change_inner", range(3, 5))):
        moved = sum(np.sum((kernels[i] - before[i]) ** 2) for i in which)
        assert float(found[change]) == pytest.approx(math.sqrt(moved / sum(np.sum(before[i] ** 2) for i in which)))
    pattern = np.asarray(models.forward(row.model, now, batch.tokens_BxL)[1]["block_0/attn/pattern"])
    assert float(found["from_uniform"]) == pytest.approx(np.abs(pattern - 1 / 6).mean(), abs=10 * EPS)
